"""How much better a candidate is for sure: one-sided bounds from weighted rows. Pure.

For scores between two known ends (right or wrong, and the difference of two such) the bound is a bet: a capital that
grows only when the rows contradict the bound, whose mean would stay at most 1 if it were true. It holds for any number
of rows, also for five. Figures without ends (mean error) or that are no means (F1) are bootstrapped over rows, both
models on the same ones, which is honest from some dozens of rows on.
Sources: Waudby-Smith and Ramdas (2024), "Estimating means of bounded random variables by betting"; Efron and
Tibshirani (1993), "An introduction to the bootstrap".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
BETS: Final = np.geomspace(0.001, 0.95, 40)
STEPS: Final = 40  # halvings of the interval
RESAMPLES: Final = 2000
SEED: Final = 20_260_601


def weighted_mean(values: FloatArray, weights: FloatArray) -> float:
    total = float(weights.sum())
    return float(values @ weights) / total if total > 0 else float("nan")


def effective_rows(weights: FloatArray) -> float:
    """As many equally weighted rows would say as much (Kish)."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def mean_at_least(values: FloatArray, weights: FloatArray, lowest: float, confidence: float) -> float:
    """The largest bound under the weighted mean, of values not below `lowest`, that holds with `confidence`."""
    if not len(values):
        return lowest
    share = weights / weights.max()
    low, high = lowest, weighted_mean(values, weights)
    limit = -np.log1p(-confidence)
    for _ in range(STEPS):
        middle = (low + high) / 2
        if middle <= lowest or _log_capital(values, share, middle, lowest) < limit:
            high = middle
        else:
            low = middle
    return low


def _log_capital(values: FloatArray, share: FloatArray, mean: float, lowest: float) -> float:
    """Against "the mean is at most `mean`": the mean over all bets, each of which can lose less than everything."""
    gains = share * (values - mean) / (mean - lowest)
    logs = np.log1p(np.outer(BETS, gains)).sum(axis=1)
    top = float(logs.max())
    return top + float(np.log(np.exp(logs - top).mean()))


def bootstrap_at_least(figure: Callable[[IntArray], float], rows: int, confidence: float) -> float:
    """As `mean_at_least` for any figure of row numbers; rows are drawn again with their weights beside them.

    The smaller of the percentile and the reflected one: each errs where the other does not.
    """
    random = np.random.default_rng(SEED)
    found = np.sort([figure(random.integers(0, rows, rows)) for _ in range(RESAMPLES)])
    here = figure(np.arange(rows))
    low, high = np.quantile(found, [1 - confidence, confidence])
    return float(min(low, 2 * here - high))
