"""How a worker has done so far, over its life and over its last minutes: what its successor is held against.

Kept by `agent.runtimes.unit`; the update engine takes a `Before` at the switch and keeps it through probation.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from agent.sandbox.protocol import Stats

LATELY_S = 300.0  # the last minutes are at least this long, and at most twice


class Rates(msgspec.Struct, frozen=True):
    """What a worker did in some time; `latency` are counts as of `agent.latency`."""

    requests: int = 0
    errors: int = 0
    latency: tuple[int, ...] = ()

    @property
    def predictions(self) -> int:
        return sum(self.latency)


class Before(msgspec.Struct, frozen=True):
    """How the module did that served under the name before, up to the switch: its worker's life, its last minutes."""

    version: int
    lived: Rates = Rates()
    lately: Rates = Rates()


class Past:
    """Two counts from earlier are enough, where a ring would keep many."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._earlier = self._later = Stats()
        self._at = clock()

    def note(self, stats: Stats) -> None:
        """Called again and again with what the worker has counted so far."""
        if self._clock() - self._at >= LATELY_S:
            self._earlier, self._later, self._at = self._later, stats, self._clock()

    def before(self, version: int, stats: Stats) -> Before:
        return Before(version, rates(stats), rates(stats, self._earlier))


def rates(stats: Stats, since: Stats | None = None) -> Rates:
    """Of a worker's life, or of the part since it had counted `since`."""
    since = since or Stats()
    earlier = (*since.latency, *(0,) * len(stats.latency))
    latency = tuple(now - was for now, was in zip(stats.latency, earlier, strict=False))
    return Rates(stats.requests - since.requests, stats.errors - since.errors, latency)
