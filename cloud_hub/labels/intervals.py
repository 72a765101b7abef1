"""Confidence intervals that stay true however often one looks, for weighted means and shares. Pure.

Labels arrive one after the other and are looked at all the time; an interval made for one look is wrong then. These
are confidence sequences: over all looks together, the truth is outside with probability ALPHA at most. Weights (a
sample stands for 1/probability predictions) make a row count for fewer rows than one: what counts is the effective
number of labels, the smaller of Kish's and of the one that the linearised variance of the mean implies.

Sources: the mixture of Bernoulli likelihood ratios under a uniform prior (Robbins 1970; exact without weights); the
asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas (2021), for means; Kish, Survey
Sampling (1965); Hajek's estimator of a mean with the Taylor-linearised variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

ALPHA: Final = 0.05
_TIGHTEST_AT: Final = 200.0  # labels at which the interval of a mean is as narrow as it can be
_RHO2: Final = (2 * math.log(1 / ALPHA) + math.log(1 + 2 * math.log(1 / ALPHA))) / _TIGHTEST_AT
_FEW: Final = 6.0  # found by simulation: half-normal errors are missed in at most 5 of 100 runs of 2,000 labels
_STEPS: Final = 60


@dataclass(frozen=True)
class Sums:
    """Sums over rows with weight w and value x; enough for a weighted mean and its interval.

    `largest` is the largest weight that a row has, or could have had.
    """

    rows: int = 0
    w: float = 0.0
    w2: float = 0.0
    wx: float = 0.0
    w2x: float = 0.0
    w2x2: float = 0.0
    largest: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.rows + other.rows,
            self.w + other.w,
            self.w2 + other.w2,
            self.wx + other.wx,
            self.w2x + other.w2x,
            self.w2x2 + other.w2x2,
            max(self.largest, other.largest),
        )

    @classmethod
    def of_share(cls, rows: int, w: float, w2: float, wx: float, w2x: float, largest: float = 0.0) -> Sums:
        """Where every value is 0 or 1."""
        return cls(rows, w, w2, wx, w2x, w2x, largest)

    @property
    def mean(self) -> float:
        """Hajek's estimate. Only with rows."""
        return self.wx / self.w

    @property
    def spread(self) -> float:
        """The linearised variance of the mean."""
        mean = self.mean
        return max(self.w2x2 - 2 * mean * self.w2x + mean * mean * self.w2, 0.0) / (self.w * self.w)

    @property
    def effective(self) -> float:
        """Rows of equal weight that would say as much (Kish), with one more of the largest weight still to come.

        That one matters while few rows are there: those of a stratum of which nearly all are sampled come first, and
        say nothing of the others.
        """
        if not self.w2 > 0:
            return 0.0
        with_one_more = (self.w + self.largest) ** 2 / (self.w2 + self.largest**2)
        return min(self.w * self.w / self.w2, with_one_more)


def mean_interval(sums: Sums) -> tuple[float, float] | None:
    """Asymptotic; None below two rows, of which no spread can be had."""
    if sums.rows < 2:
        return None
    rows = sums.effective
    # The spread of a few rows around their own mean is too small, above all where the tail is long.
    deviation = math.sqrt(sums.spread * sums.w * sums.w / sums.w2) * (1 + _FEW / rows)
    grown = rows * _RHO2 + 1
    half = deviation * math.sqrt(2 * grown / (rows * rows * _RHO2) * math.log(math.sqrt(grown) / ALPHA))
    return sums.mean - half, sums.mean + half


def share_interval(sums: Sums) -> tuple[float, float] | None:
    """For a mean of zeros and ones (or of shares); exact without weights. None without rows."""
    if not sums.rows:
        return None
    share = min(max(sums.mean, 0.0), 1.0)
    rows = sums.effective
    if sums.spread > 0 and 0 < share < 1:
        rows = min(rows, share * (1 - share) / sums.spread)
    hits = share * rows
    mixed = math.lgamma(hits + 1) + math.lgamma(rows - hits + 1) - math.lgamma(rows + 2)

    def excluded(candidate: float) -> bool:
        against = _xlogy(hits, candidate) + _xlogy(rows - hits, 1 - candidate)
        return mixed - against >= math.log(1 / ALPHA)

    return _edge(share, 0.0, excluded), _edge(share, 1.0, excluded)


def share_evidence(sums: Sums, bound: float, above: bool) -> float:
    """Log evidence, in nats, that a share lies above (or below) `bound`, and not at it or on the other side.

    A mixture over the shares beyond the bound only, so it may be looked at all the time: under the other side it
    exceeds t with probability exp(-t) at most.
    """
    if not sums.rows or not 0 < bound < 1:
        return 0.0
    share = min(max(sums.mean, 0.0), 1.0)
    if (share <= bound) if above else (share >= bound):
        return 0.0
    rows = sums.effective
    if sums.spread > 0 and 0 < share < 1:
        rows = min(rows, share * (1 - share) / sums.spread)
    steps = 64
    low, high = (bound, 1.0) if above else (0.0, bound)
    places = [low + (high - low) * (i + 0.5) / steps for i in range(steps)]
    at_bound = _xlogy(share * rows, bound) + _xlogy((1 - share) * rows, 1 - bound)
    logs = [_xlogy(share * rows, p) + _xlogy((1 - share) * rows, 1 - p) - at_bound for p in places]
    largest = max(logs)
    return largest + math.log(sum(math.exp(one - largest) for one in logs) / steps)


def mean_evidence(sums: Sums, bound: float) -> float:
    """Log evidence, in nats, that a mean lies above `bound`: a normal mixture, asymptotic. 0 where it does not."""
    if sums.rows < 2 or sums.mean <= bound:
        return 0.0
    rows = sums.effective
    deviation = math.sqrt(sums.spread * sums.w * sums.w / sums.w2) * (1 + _FEW / rows)
    if deviation == 0:
        return 0.0  # numbers that are all the same say nothing of their spread
    grown = rows * _RHO2 + 1
    away = rows * (sums.mean - bound) / deviation
    return away * away * _RHO2 / (2 * grown) - math.log(grown) / 2


def _edge(inside: float, outside: float, excluded: Callable[[float], bool]) -> float:
    """Where the excluded part begins, between a share that is not and the end of the scale."""
    if not excluded(outside):
        return outside
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if excluded(middle) else (middle, outside)
    return inside


def _xlogy(x: float, y: float) -> float:
    if x == 0:
        return 0.0
    return x * math.log(y) if y > 0 else -math.inf
