"""How much one device may cause: events in the audit trail, which is kept for ever, and bytes in the database.

Far above what an agent says (it tells the same thing once a minute), also after weeks without a connection. An event
beyond is counted and not kept; a batch beyond is not acknowledged, so the device keeps it. Used by `ingest`.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from cloud_hub.clock import Clock
from cloud_hub.limits import Limiter, Rate

EVENTS: Final = Rate(per_s=0.1, burst=5000.0)
MAX_DEVICES: Final = 100_000
ENTRY_BYTES: Final = 512  # what an entry costs beside its own bytes
DAY_S: Final = 86_400.0
TELL_EVERY_S: Final = 3600.0


class Allowance:
    """In memory: a hub that starts again begins with full buckets."""

    def __init__(self, clock: Clock, rate: Rate = EVENTS) -> None:
        self._bucket = Limiter("events of a device", rate, clock, MAX_DEVICES)
        self._missed: Counter[str] = Counter()

    def allows(self, device: str) -> bool:
        """Takes one from the device's allowance; where none is left, counts what is not recorded."""
        if self._bucket.try_take(device):
            return True
        if device in self._missed or len(self._missed) < MAX_DEVICES:
            self._missed[device] += 1
        return False

    def missed(self, device: str) -> int:
        """How many were not recorded since this was last asked."""
        return self._missed.pop(device, 0)


class Room:
    """Bytes of windows and samples per device: a day's worth at once, and as much again in the course of a day."""

    def __init__(self, clock: Clock, mib_per_day: float) -> None:
        day = mib_per_day * 2**20
        self._clock = clock
        self._bytes = Limiter("bytes of a device", Rate(day / DAY_S, day), clock, MAX_DEVICES)
        self._told: dict[str, float] = {}

    def fitting(self, device: str, entries: list[tuple[int, bytes]]) -> int:
        """How many of the entries, from the first on, the device has room for. Takes nothing yet."""
        left = self._bytes.left(device)
        for number, (_, body) in enumerate(entries):
            left -= ENTRY_BYTES + len(body)
            if left < 0:
                return number
        return len(entries)

    def use(self, device: str, entries: list[tuple[int, bytes]]) -> None:
        self._bytes.spend(device, sum(ENTRY_BYTES + len(body) for _, body in entries))

    def is_news(self, device: str) -> bool:
        """Whether it should be told that the device has none left: once an hour."""
        now = self._clock()
        if now - self._told.get(device, -TELL_EVERY_S) < TELL_EVERY_S:
            return False
        if len(self._told) >= MAX_DEVICES:
            self._told.clear()
        self._told[device] = now
        return True
