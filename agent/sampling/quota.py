"""Bytes per day, spent evenly: a bucket that fills all day long, and by its level the share of predictions kept.

A sampler that keeps everything until the day's bytes are gone has seen the morning and says it of the day. So the rates
fall as the bucket empties, all by the same factor, and each sample carries the rate that it was kept with: weighing by
1/probability stays unbiased, because the factor depends on what was kept before and never on the prediction at hand.
The factor never reaches zero, so no prediction is left out for certain; the price is that the bucket may go below empty
by a few samples, which later ones pay for.

Pure. The worker decides by it, the agent's parent keeps one alongside and writes its level down, so that a worker that
starts again does not begin a new day. Any clock that only grows.
"""

from __future__ import annotations

import math

DAY_S = 86_400.0
# Of the day's bytes, what the bucket holds: a burst. The rest flows in, so that no 24 hours take more than a day's.
BURST = 1 / 8
# In parts of the bucket: from this level on nothing is held back, and every `STEEP` below it the rates fall to 1/e.
EASY, STEEP = 1 / 2, 1 / 16


class Quota:
    """`level`: the bytes that may be spent now, which may be below zero. Without `bytes_per_day` nothing is bounded."""

    def __init__(self, bytes_per_day: int | None, now: float, level: float | None = None) -> None:
        """`level` is what an earlier one had; without it the bucket is full."""
        self._at = now
        self._fill(bytes_per_day)
        self.level = self._most if level is None else min(level, self._most)

    @property
    def bytes_per_day(self) -> int | None:
        return self._bytes_per_day

    def change(self, bytes_per_day: int | None, now: float) -> None:
        """Another bound from now on; what was spent stays spent."""
        self._flow(now)
        unbounded = self._bytes_per_day is None
        self._fill(bytes_per_day)
        self.level = self._most if unbounded else min(self.level, self._most)

    def used_up(self, now: float) -> bool:
        """Whether nothing is left now."""
        self._flow(now)
        return self._bytes_per_day is not None and self.level <= 0

    def factor(self, size: int, now: float) -> float:
        """By what the rate of a prediction of this many bytes is multiplied now: above 0, at most 1."""
        if self._bytes_per_day is None:
            return 1.0
        self._flow(now)
        # One that is large beside the bucket goes by steps of its own size, or one alone would close it for long.
        steep = max(self._most * STEEP, float(size))
        return math.exp(min(0.0, max(-700.0, (self.level - self._most * EASY) / steep)))

    def spend(self, size: int, now: float) -> None:
        """Bytes that leave."""
        if self._bytes_per_day is not None:
            self._flow(now)
            self.level -= size

    def _fill(self, bytes_per_day: int | None) -> None:
        self._bytes_per_day = bytes_per_day
        self._most = (bytes_per_day or 0) * BURST
        self._flow_per_s = (bytes_per_day or 0) * (1 - BURST) / DAY_S

    def _flow(self, now: float) -> None:
        self.level = min(self._most, self.level + max(0.0, now - self._at) * self._flow_per_s)
        self._at = now
