"""Sources of bytes for tests: each answers from a mapping, after what a test wants to happen first. The other party."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

Before = Callable[[str, int, int], Awaitable[bytes | None]]


class Shelf:
    """`before(sha256, offset, length)` may raise, wait, or give other bytes than the right ones; None gives those."""

    def __init__(self, name: str, files: Mapping[str, bytes], before: Before | None = None) -> None:
        self.name, self.files, self.before = name, dict(files), before
        self.asked: list[tuple[str, int, int]] = []
        self.under_way = self.most_under_way = 0

    async def read(self, sha256: str, offset: int, length: int, timeout_s: float) -> bytes:
        self.asked.append((sha256, offset, length))
        self.under_way += length
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(0)
            other = await self.before(sha256, offset, length) if self.before is not None else None
            return self.files[sha256][offset : offset + length] if other is None else other
        finally:
            self.under_way -= length

    @property
    def bytes_asked(self) -> int:
        return sum(length for _, _, length in self.asked)
