"""A link that is only arithmetic: a rate, a round trip, loss; and downloads over it, each with a window of its own.

For tests of `agent.transfer.window`: events in order of time, no clock and no sleep.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence

from agent.transfer.window import Window

TIMEOUT_S = 15.0
HEADER_BYTES = 200


class Download:
    """`size` bytes to fetch. `marks` are (time, bytes so far), `trips` the seconds that blocks spent in the queue."""

    def __init__(self, size: int, window: Window | None = None) -> None:
        self.window = window or Window()
        self.left, self.got = size, 0
        self.marks: list[tuple[float, int]] = [(0.0, 0)]

    def between(self, start: float, stop: float) -> int:
        """Bytes that arrived in this time."""
        at_start = max(got for at, got in self.marks if at <= start)
        return max(got for at, got in self.marks if at <= stop) - at_start


class Line:
    """Bytes a second, seconds there and back, the share of blocks that get lost, jitter in seconds."""

    def __init__(self, rate: float, trip_s: float, *, loss: float = 0.0, jitter_s: float = 0.0) -> None:
        self.rate, self.trip_s, self._loss, self._jitter_s = rate, trip_s, loss, jitter_s
        self._random = random.Random(5)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._free_at = self._last = 0.0
        self.now = 0.0
        self.queues: list[float] = []  # seconds that each block waited for the one before it

    def run(self, downloads: Sequence[Download], starts: Sequence[float] = (), until: float = 1e9) -> None:
        for number, download in enumerate(downloads):
            self._at(starts[number] if starts else 0.0, lambda download=download: self._ask(download))  # type: ignore[misc]
        while self._events and self._events[0][0] < until:
            self.now, _, happen = heapq.heappop(self._events)
            happen()

    def _at(self, moment: float, happen: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (moment, self._number, happen))

    def _ask(self, download: Download) -> None:
        window = download.window
        while window.room() > 0 and download.left > 0:
            size = min(window.block, download.left)
            download.left -= size
            self._send(download, size)

    def _send(self, download: Download, size: int) -> None:
        flight = download.window.sent(size, self.now)

        def lost() -> None:
            download.window.lost(flight)
            download.left += size
            self._ask(download)

        def arrived() -> None:
            download.window.arrived(flight, self.now)
            download.got += size
            download.marks.append((self.now, download.got))
            self._ask(download)

        def at_hub() -> None:
            begins = max(self.now, self._free_at)
            self.queues.append(begins - self.now)
            self._free_at = begins + (size + HEADER_BYTES) / self.rate
            jitter = self._random.uniform(0, self._jitter_s)
            self._last = max(self._last, self._free_at + self.trip_s / 2 + jitter)  # nothing overtakes
            self._at(self._last, arrived)

        if self._random.random() < self._loss:
            self._at(self.now + download.window.timeout_s(TIMEOUT_S), lost)
        else:
            self._at(self.now + self.trip_s / 2, at_hub)
