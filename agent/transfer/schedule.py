"""When bytes may be asked for, and how many a second: the allowed hours and the bandwidth cap of this device.

Hours are the device's local time by its clock. The arithmetic is pure; `Gate` is what a transfer waits at. Called by
`agent.transfer.pull` and, for the settings, by `agent.config`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

_DAY_MIN = 24 * 60
_PATTERN = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(?:([01]\d|2[0-3]):([0-5]\d)|24:00)")
LOOK_S = 30.0  # how long a wait for the hours may trust the clock: it may be set meanwhile
BURST_S = 0.25

Span = tuple[int, int]


def parse_hours(text: str) -> Span:
    """`22:00-06:00` as minutes of the day (from, to); from is after to where midnight lies between.

    Raises ValueError on anything else, and where both are the same.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"hours: expected HH:MM-HH:MM, such as 22:00-06:00, got {text[:40]!r}")
    start = int(match[1]) * 60 + int(match[2])
    stop = _DAY_MIN if match[3] is None else int(match[3]) * 60 + int(match[4])
    if start == stop:
        raise ValueError(f"hours: expected two different times, got {text!r}; leave the list empty to allow all hours")
    return start, stop


def minutes_until(spans: Sequence[Span], minute: int) -> int:
    """From this minute of the day until the next allowed one; 0 inside a span and where there are none."""
    if not spans or any(_inside(span, minute) for span in spans):
        return 0
    return min((start - minute) % _DAY_MIN for start, _ in spans)


def _inside(span: Span, minute: int) -> bool:
    start, stop = span
    return start <= minute < stop if start < stop else minute >= start or minute < stop


class Bucket:
    """A token bucket: so many bytes a second on average, and at most a quarter of a second's worth at once.

    Pure: the time is passed in. A block larger than the bucket passes and is paid for afterwards.
    """

    def __init__(self, bytes_per_s: int) -> None:
        self._rate = bytes_per_s
        self._tokens, self._at = 0.0, 0.0

    def wait_s(self, now: float) -> float:
        """How long until the next block may be asked for; 0 is now."""
        if self._rate <= 0:
            return 0.0
        self._tokens = min(BURST_S * self._rate, self._tokens + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, -self._tokens / self._rate)

    def take(self, size: int) -> None:
        self._tokens -= size


class Gate:
    """Waits for the hours and the cap. `waiting` says for what, in words, while a transfer stands still for the hours.

    `closed_s` is the time, in seconds, that has passed so: deadlines do not count it.
    """

    def __init__(
        self,
        hours: Sequence[str] = (),
        bytes_per_s: int = 0,
        *,
        now: Callable[[], datetime] = datetime.now,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._spans = [parse_hours(text) for text in hours]
        self._bucket = Bucket(bytes_per_s)
        self._now, self._pause = now, pause
        self.waiting = ""
        self.closed_s = 0.0

    async def open(self) -> bool:
        """Returns within the allowed hours; whether that took a wait."""
        waited = False
        try:
            while minutes := minutes_until(self._spans, _minute(self._now())):
                waited = True
                until = self._now() + timedelta(minutes=minutes)
                self.waiting = f"outside the allowed hours, waiting until {until:%H:%M}"
                began = time.monotonic()
                await self._pause(min(LOOK_S, 60.0 * minutes - self._now().second))
                self.closed_s += time.monotonic() - began
        finally:
            self.waiting = ""
        return waited

    async def admit(self, size: int) -> bool:
        """Returns when a block of `size` bytes may be asked for; whether that took a wait."""
        waited = await self.open()
        while wait_s := self._bucket.wait_s(time.monotonic()):
            waited = True
            await self._pause(wait_s)
        self._bucket.take(size)
        return waited


def _minute(now: datetime) -> int:
    return now.hour * 60 + now.minute
