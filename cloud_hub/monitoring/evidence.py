"""Calibrated evidence that counts have changed: a mixture of two-sample Bayes factors, since every look. Pure.

For each feature explanations of the current counts compete. "Nothing changed": current and reference rows have the
same unknown distribution, so the current counts follow a Dirichlet-multinomial with weights 1 + reference counts; a
small reference is uncertain and explains more. "Something changed": one of the weights of `alternatives`. The
logarithm of the ratio, averaged over the alternatives, is the evidence. Under "nothing changed" each ratio has mean
1, for any number of rows, and so has their average. For numeric features the null is no assumption: the shares of
cells whose edges are order statistics of the training rows are Dirichlet distributed, whatever the values are.

Rows that join a span of looks multiply its ratio by one whose mean is 1 again. So, over all ends of the spans that
start with one look, and all times within the last look, the ratio exceeds exp(t) with probability at most exp(-t):
the threshold for at most one false alarm in N looks with F tests is log(N * F), however often it is asked.

Cells where the reference is empty (out of range, unknown category) weigh UNSEEN_WEIGHT under the alternative that
knows nothing: they cost nearly nothing while they stay empty, and a few nats once when they fill. The weights depend
on the reference alone, which keeps the mean of the ratio at 1.

Source: Dirichlet-multinomial marginal likelihoods; Ville's inequality with a union over starts and tests; Wilks,
"Determination of sample sizes for setting tolerance limits" (1941), for the shares between order statistics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
Numbers = TypeVar("Numbers", IntArray, FloatArray)

WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # how many of the latest looks are merged
MAX_LOOKS = WINDOWS[-1]
UNSEEN_WEIGHT = 0.1
MONTH_S = 365.25 * 86_400 / 12
_SHIFT = 7  # from here on three terms of Stirling's series are exact to a billionth
_AT_ONCE = 1 << 15  # numbers; more do not fit into the processor's cache


@dataclass(frozen=True)
class AlarmRate:
    """The promise to the user: at most one false alarm in `months`, over everything that is watched.

    `groups` is the number of pairs of a module and a device, a group of devices or the fleet under watch.
    """

    months: float
    look_s: float
    groups: int

    def threshold(self, tests: int) -> float:
        """The evidence, in nats, from which one of `tests` tests of one group is an alarm."""
        looks = max(self.months * MONTH_S / self.look_s, 1.0)
        return math.log(looks * max(tests, 1) * max(self.groups, 1))


class Weights:
    """Of the cells of several features: `null` (cells,), `changed` (alternatives, cells), `log_prior` of these.

    `starts` is the first cell of each feature, ascending; each feature has at least one cell.
    """

    def __init__(self, null: FloatArray, changed: FloatArray, log_prior: FloatArray, starts: IntArray) -> None:
        self._all = np.concatenate([null[np.newaxis], changed])
        self._log_prior = log_prior[:, np.newaxis]
        self._starts = starts
        self._sums = np.add.reduceat(self._all, starts, axis=-1)
        self._before = lgamma(self._sums) - np.add.reduceat(lgamma(self._all), starts, axis=-1)

    def log_ratios(self, counts: FloatArray) -> FloatArray:
        """Of each alternative to the null, in nats: `counts` is (..., cells), the result (..., alternatives, features).

        Counts need not be whole.
        """
        flat = counts.reshape(-1, counts.shape[-1])
        step = max(_AT_ONCE // self._all.size, 1)
        parts = [self._log_ratios(flat[place : place + step]) for place in range(0, len(flat), step)]
        shape = (*counts.shape[:-1], len(self._all) - 1, len(self._starts))
        return np.concatenate(parts).reshape(shape) if parts else np.zeros(shape)

    def _log_ratios(self, counts: FloatArray) -> FloatArray:
        rows = np.add.reduceat(counts, self._starts, axis=-1)
        cells = np.add.reduceat(lgamma(counts[..., np.newaxis, :] + self._all), self._starts, axis=-1)
        likelihood = cells - lgamma(rows[..., np.newaxis, :] + self._sums) + self._before
        return np.asarray(likelihood[..., 1:, :] - likelihood[..., :1, :])

    def evidence(self, counts: FloatArray) -> FloatArray:
        """The logarithm of the average ratio: (..., features)."""
        return log_mean(self.log_ratios(counts) + self._log_prior, axis=-2)


def log_mean(weighted: FloatArray, axis: int) -> FloatArray:
    """Log of the sum of exp, without overflow; the prior's logarithm is in `weighted`."""
    highest = weighted.max(axis=axis, keepdims=True)
    return np.asarray(np.log(np.exp(weighted - highest).sum(axis=axis)) + highest.squeeze(axis))


def log_bayes_factor(current: IntArray, reference: IntArray, starts: IntArray) -> FloatArray:
    """Evidence for any change, in nats, per feature: `current` is (..., cells), the result (..., features).

    Only against the alternative that knows nothing; `starts` is the first cell of each feature.
    """
    free = np.where(reference > 0, 1.0, UNSEEN_WEIGHT)
    return Weights(1.0 + reference.astype(np.float64), free[np.newaxis], np.zeros(1), starts).evidence(
        current.astype(np.float64)
    )


def merge_latest(looks: Numbers) -> Numbers:
    """Counts of the last 1, 2, 4, ... looks: (looks, cells), oldest first, becomes (windows, cells).

    With fewer looks than a window asks for, the window holds all there are.
    """
    if not len(looks):
        return np.zeros((len(WINDOWS), looks.shape[1]), looks.dtype)
    summed = np.cumsum(looks[::-1][:MAX_LOOKS], axis=0)
    return cast("Numbers", summed[[min(window, len(summed)) - 1 for window in WINDOWS]])


def lgamma(values: FloatArray) -> FloatArray:
    """Log Gamma of positive values: Stirling's series, after shifting small values up by the recurrence.

    Source: NIST DLMF 5.11.1 and 5.5.1.
    """
    flat = np.array(values, np.float64).reshape(-1)
    small = np.flatnonzero(flat < _SHIFT)
    low = flat[small]
    flat[small] += _SHIFT
    result = np.log(flat)
    result *= flat - 0.5
    result -= flat
    inverse = np.divide(1.0, flat, out=flat)
    square = inverse * inverse
    series = square * (1 / 1260)
    series -= 1 / 360
    series *= square
    series += 1 / 12
    series *= inverse
    result += series
    result += 0.5 * math.log(2 * math.pi)
    product = low.copy()
    for step in range(1, _SHIFT):
        product *= low + step
    result[small] -= np.log(product)
    return result.reshape(np.shape(values))
