"""Whether somebody else uses this device's certificate: the broker then ends our connection, again and again.

Once may be a broker that was restarted; several times in a while looks like another device. It is reported like an
attack; the hub, which hears both, has the better evidence. One unit of the supervisor.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

SUSPECT_AT = 4
WITHIN_S = 600.0
KEY = "clone-suspected"


class CloneWatch:
    """`taken_over` may be called often, from the loop; `suspect(key, text)` keeps the suspicion."""

    def __init__(
        self, suspect: Callable[[str, str], Awaitable[None]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._suspect = suspect
        self._clock = clock
        self._times: deque[float] = deque(maxlen=SUSPECT_AT)
        self._happened = asyncio.Event()

    def taken_over(self) -> None:
        self._times.append(self._clock())
        self._happened.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._happened.wait()
            self._happened.clear()
            if len(self._times) == SUSPECT_AT and self._times[-1] - self._times[0] <= WITHIN_S:
                self._times.clear()
                text = f"the broker ended {SUSPECT_AT} fresh connections within {WITHIN_S:.0f} s: does another device"
                text += " use our certificate?"
                await self._suspect(KEY, text)
