"""Rung when there is something new: whoever waits hears it, also when it was rung a moment before they waited.

One process only. Rung by `store.engine` after the commit of a transaction that recorded events; heard by
`outward.feed`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Bell:
    """`count` is how often it has been rung: what a listener remembers of it, it cannot miss."""

    def __init__(self) -> None:
        self.count = 0
        self._rung = asyncio.Event()

    def ring(self) -> None:
        self.count += 1
        self._rung.set()
        self._rung = asyncio.Event()

    async def heard(self, since: int, timeout_s: float) -> int:
        """The count, as soon as it is not `since` any more, or after `timeout_s`."""
        if self.count == since:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._rung.wait()
        return self.count
