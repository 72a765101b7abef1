"""What a worker counts about itself: requests, rows, errors, runs, and how long predictions took.

Plain integers on the event loop's thread; no locks, no NumPy. Read by the window, by Ping, and by the endpoint's
statistics and metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from agent.latency import PARTS, index_of, percentile
from agent.sandbox.protocol import SourceSeen, Stats
from modules.windows import LATENCY_BINS

BATCH_SIZES = 18  # powers of two: 1, 2, 4 ... rows in a run


class Latency:
    """A histogram as of `agent.latency`; it only ever grows. `total_us` is the sum."""

    def __init__(self) -> None:
        self._counts = [0] * (LATENCY_BINS * PARTS)
        self.total_us = 0

    def add(self, microseconds: int) -> None:
        self._counts[index_of(microseconds, LATENCY_BINS)] += 1
        self.total_us += microseconds

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
        self.statuses: dict[int, int] = {}  # requests by status
        self.in_flight = 0
        self.sampled = 0
        self.dropped_samples = 0
        self.dropped_why: dict[str, int] = {}  # the same by reason
        self.thinned_samples = 0  # left out for the quota alone
        self.odd_times = 0  # rows with an event time that cannot be, counted as they arrived
        self.latency = Latency()
        self.failed_us = 0  # what requests took that were not answered 200
        self.queue_us = 0  # from arrival to the run, of all predictions
        self.runs = 0
        self.run_us = 0
        self.batches = [0] * BATCH_SIZES  # runs by rows, at their power of two
        self.batch_us = [0] * BATCH_SIZES
        self.last_at = 0.0  # wall clock of the last prediction
        self.sources: Callable[[], tuple[SourceSeen, ...]] = tuple  # how the module's own sources do

    def answered(self, status: int) -> None:
        self.requests += 1
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status >= 500:
            self.errors += 1
        elif status >= 400:
            self.refused += 1

    def ran(self, rows: int, took_us: int) -> None:
        """One run of the backend, for one request or several."""
        size = min(rows.bit_length() - 1, BATCH_SIZES - 1) if rows > 0 else 0
        self.runs += 1
        self.run_us += took_us
        self.batches[size] += 1
        self.batch_us[size] += took_us
        self.last_at = time.time()

    def stats(self) -> Stats:
        return Stats(
            requests=self.requests,
            rows=self.rows,
            errors=self.errors,
            refused=self.refused,
            in_flight=self.in_flight,
            sampled=self.sampled,
            dropped_samples=self.dropped_samples,
            thinned=self.thinned_samples,
            dropped_why=dict(self.dropped_why),
            p50_us=self.latency.percentile(0.5),
            p99_us=self.latency.percentile(0.99),
            latency=self.latency.counts(),
        )
