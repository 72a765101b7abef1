"""What a worker counts about itself: requests, rows, errors, and how long predictions took.

Plain integers on the event loop's thread; no locks, no NumPy. Read by the window and by Ping.
"""

from __future__ import annotations

from agent.latency import PARTS, index_of, percentile
from agent.sandbox.protocol import Stats
from modules.windows import LATENCY_BINS


class Latency:
    """A histogram as of `agent.latency`; it only ever grows."""

    def __init__(self) -> None:
        self._counts = [0] * (LATENCY_BINS * PARTS)

    def add(self, microseconds: int) -> None:
        self._counts[index_of(microseconds, LATENCY_BINS)] += 1

    def octaves(self) -> tuple[int, ...]:
        """Counts so far, one per power of two of microseconds."""
        return tuple(sum(self._counts[i : i + PARTS]) for i in range(0, len(self._counts), PARTS))

    def percentile(self, share: float) -> float:
        """Microseconds below which `share` of all predictions so far stayed; 0 when there were none."""
        return percentile(self._counts, share)

    def counts(self) -> tuple[int, ...]:
        """As far as there are any."""
        used = next((n for n in range(len(self._counts), 0, -1) if self._counts[n - 1]), 0)
        return tuple(self._counts[:used])


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
            latency=self.latency.counts(),
        )
