"""What a worker counts about itself: requests, rows, errors, and how long predictions took.

Plain integers on the event loop's thread; no locks, no NumPy. Read by the window and by Ping.
"""

from __future__ import annotations

from agent.sandbox.protocol import Stats
from modules.windows import LATENCY_BINS

_PARTS = 8  # parts of an octave, so that a percentile is right to an eighth


class Latency:
    """A histogram over octaves of microseconds, each cut into equal parts; it only ever grows."""

    def __init__(self) -> None:
        self._counts = [0] * (LATENCY_BINS * _PARTS)

    def add(self, microseconds: int) -> None:
        us = microseconds if microseconds > 0 else 1
        octave = us.bit_length() - 1
        if octave >= LATENCY_BINS:
            octave, us = LATENCY_BINS - 1, (1 << LATENCY_BINS) - 1
        self._counts[octave * _PARTS + (((us << 3) >> octave) & 7)] += 1

    def octaves(self) -> tuple[int, ...]:
        """Counts so far, one per power of two of microseconds."""
        return tuple(sum(self._counts[i : i + _PARTS]) for i in range(0, len(self._counts), _PARTS))

    def percentile(self, share: float) -> float:
        """Microseconds below which `share` of all predictions so far stayed; 0 when there were none."""
        wanted = share * sum(self._counts)
        below = 0
        for index, count in enumerate(self._counts):
            if count and below + count >= wanted:
                octave, part = divmod(index, _PARTS)
                within = (wanted - below) / count
                return float(2**octave) * (1 + (part + within) / _PARTS)
            below += count
        return 0.0


class Counters:
    """Since the worker started. `errors` are requests answered 5xx, `refused` those answered 4xx."""

    def __init__(self) -> None:
        self.requests = 0
        self.rows = 0
        self.errors = 0
        self.refused = 0
        self.in_flight = 0
        self.sampled = 0
        self.dropped_samples = 0
        self.latency = Latency()

    def answered(self, status: int) -> None:
        self.requests += 1
        if status >= 500:
            self.errors += 1
        elif status >= 400:
            self.refused += 1

    def stats(self) -> Stats:
        return Stats(
            requests=self.requests,
            rows=self.rows,
            errors=self.errors,
            refused=self.refused,
            in_flight=self.in_flight,
            sampled=self.sampled,
            dropped_samples=self.dropped_samples,
            p50_us=self.latency.percentile(0.5),
            p99_us=self.latency.percentile(0.99),
        )
