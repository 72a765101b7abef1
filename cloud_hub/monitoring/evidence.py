"""Calibrated evidence that counts have changed: a two-sample Bayes factor, scanned over the latest looks. Pure.

For each feature two explanations of the current counts compete. "Nothing changed": current and reference rows have
the same unknown distribution, so the current counts follow a Dirichlet-multinomial with weights 1 + reference counts;
a small reference is uncertain and explains more. "Something changed": weights that know nothing of the reference's
proportions. The logarithm of their ratio is the evidence. Under "nothing changed" the ratio has mean 1, so it
exceeds exp(t) with probability at most exp(-t), for any number of rows, and the threshold for at most one false
alarm in N evaluations of F tests is log(N * F).

Cells where the reference is empty (out of range, unknown category) weigh UNSEEN_WEIGHT under "changed": they cost
nearly nothing while they stay empty, and a few nats once when they fill. The weights depend on the reference alone,
which keeps the mean of the ratio at 1.

Source: Dirichlet-multinomial marginal likelihoods; the bound is Markov's inequality with a union over tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]

WINDOWS = (1, 2, 4, 8, 16, 32, 64, 128)  # how many of the latest looks are merged
MAX_LOOKS = WINDOWS[-1]
UNSEEN_WEIGHT = 0.1
MONTH_S = 365.25 * 86_400 / 12
_SHIFT = 9  # Stirling's series is exact to double precision from here on


@dataclass(frozen=True)
class AlarmRate:
    """The promise to the user: at most one false alarm in `months`, over everything that is watched.

    Evidence is weighed at most `evaluations_per_look` times per look and group, an open look included; each of these
    is paid for. `groups` is the number of pairs of a module and a device (or the whole fleet) under watch.
    """

    months: float
    look_s: float
    evaluations_per_look: int
    groups: int

    def threshold(self, tests: int) -> float:
        """The evidence, in nats, from which one of `tests` features of one group is an alarm."""
        evaluations = max(self.months * MONTH_S / self.look_s, 1.0) * self.evaluations_per_look
        return math.log(evaluations * max(tests, 1) * len(WINDOWS) * max(self.groups, 1))


def log_bayes_factor(current: IntArray, reference: IntArray, starts: IntArray) -> FloatArray:
    """Evidence for a change, in nats, per feature: `current` is (..., cells), the result (..., features).

    `starts` is the first cell of each feature, ascending; each feature has at least one cell.
    """
    free = np.where(reference > 0, 1.0, UNSEEN_WEIGHT)
    bound = 1.0 + reference.astype(np.float64)
    counts = current.astype(np.float64)
    cells = lgamma(counts + free) - lgamma(free) - lgamma(counts + bound) + lgamma(bound)
    rows = np.add.reduceat(counts, starts, axis=-1)
    free_sum, bound_sum = np.add.reduceat(free, starts), np.add.reduceat(bound, starts)
    totals = lgamma(free_sum) - lgamma(rows + free_sum) - lgamma(bound_sum) + lgamma(rows + bound_sum)
    return np.asarray(np.add.reduceat(cells, starts, axis=-1) + totals)


def merge_latest(looks: IntArray) -> IntArray:
    """Counts of the last 1, 2, 4, ... looks: (looks, cells), oldest first, becomes (windows, cells).

    With fewer looks than a window asks for, the window holds all there are.
    """
    if not len(looks):
        return np.zeros((len(WINDOWS), looks.shape[1]), np.int64)
    summed = np.cumsum(looks[::-1][:MAX_LOOKS], axis=0)
    return np.asarray(summed[[min(window, len(summed)) - 1 for window in WINDOWS]])


def lgamma(values: FloatArray) -> FloatArray:
    """Log Gamma of positive values: Stirling's series, after shifting small values up by the recurrence.

    Source: NIST DLMF 5.11.1 and 5.5.1.
    """
    small = values < _SHIFT
    shifted = np.where(small, values + _SHIFT, values)
    inverse = 1.0 / shifted
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188))))
    result = (shifted - 0.5) * np.log(shifted) - shifted + 0.5 * math.log(2 * math.pi) + series
    if small.any():
        low = values[small]
        product = low.copy()
        for step in range(1, _SHIFT):
            product *= low + step
        result[small] -= np.log(product)
    return np.asarray(result)
