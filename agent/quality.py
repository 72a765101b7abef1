"""How good the way to the hub is: counted where messages go out and come in, told with each report.

Belongs to the `Link`, which notes; read by `agent.service` for the report.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from modules.vitals import LinkQuality

REMEMBERED: Final = 16  # acknowledgements that the round trip is the median of


class Quality:
    def __init__(self) -> None:
        self._connections = self._sent = self._received = 0
        self._round_trips_s: deque[float] = deque(maxlen=REMEMBERED)

    def connected(self) -> None:
        self._connections += 1

    def sent(self, size: int) -> None:
        self._sent += size

    def received(self, size: int) -> None:
        self._received += size

    def acknowledged(self, after_s: float) -> None:
        self._round_trips_s.append(after_s)

    def now(self) -> LinkQuality:
        # Of an even number the upper one of the middle: the library for medians would take a megabyte of memory.
        trips = sorted(self._round_trips_s)
        return LinkQuality(
            reconnects=max(0, self._connections - 1),
            rtt_ms=round(1000 * trips[len(trips) // 2], 1) if trips else 0.0,
            sent_bytes=self._sent,
            received_bytes=self._received,
        )
