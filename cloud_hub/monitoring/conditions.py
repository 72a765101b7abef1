"""How a group has been running, held against how it ran before: errors, slow answers, values that stand still. Pure.

Training data says nothing of these, so the reference is the group's own looks before the span, as counts with their
noise; looks in which one is much like the next count for less (`dispersion`). Each is a share that is tested upwards,
like missing values, with the same evidence and threshold.

- errors: predictions answered 5xx among all.
- slow: predictions slower than nine in ten were before.
- still: windows (of at least STILL_ROWS rows) in which all rows of a feature held one value. An alarm needs that this
  was rare here before, in at least MOVING_WINDOWS windows: a slow sensor that always stood still has not got stuck.

Used by `verdict`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from cloud_hub.monitoring.alternatives import RATE_LOG_PRIOR, rises
from cloud_hub.monitoring.dispersion import LEAST_PAIRS, dispersion
from cloud_hub.monitoring.evidence import MAX_LOOKS, FloatArray, IntArray, Weights, merge_latest
from cloud_hub.monitoring.look_series import LookSeries

Ongoing = Literal["errors", "slow", "still"]

MOVING_WINDOWS: Final = 12
LEAST_RISE: Final[dict[Ongoing, float]] = {"errors": 0.005, "slow": 0.1, "still": 0.1}
SLOW: Final = 0.9  # share of predictions before, in octaves of latency, that were not slow
# Every group starts with so many good predictions and one bad: errors from the first look on are called, too.
FIRST_ERRORS: Final = (100, 1)


@dataclass(frozen=True)
class Condition:
    """One test per span of looks: evidence in nats, whether it matters, pairs (good, bad) now and before: (spans, 2).

    `feature` is a place among the numeric features where the test is of one of them, -1 otherwise.
    """

    problem: Ongoing
    feature: int
    evidence: FloatArray
    matters: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    now: IntArray
    before: IntArray


def weigh_conditions(series: LookSeries) -> list[Condition]:
    """All tests for which the series holds what they need; none where privacy added noise."""
    found: list[Condition] = []
    if series.is_private:
        return found
    if len(series.errors) and len(series.rows):
        found.append(_weigh("errors", -1, np.stack([series.rows, series.errors], axis=1), FIRST_ERRORS))
    if len(series.latency):
        found.append(_slow(series.latency))
    if series.still.size and len(series.windows):
        found += [
            _still(feature, np.stack([np.maximum(series.windows - column, 0), column], axis=1))
            for feature, column in enumerate(series.still.T)
            if column.any()
        ]
    return found


def count_conditions(numeric: int) -> int:
    """How many tests there are to pay for, of so many numeric features."""
    return numeric + 2


def _weigh(problem: Ongoing, feature: int, pairs: IntArray, first: tuple[int, int] = (0, 0)) -> Condition:
    """`pairs` are (good, bad) per look, oldest first."""
    now = merge_latest(pairs)
    before = pairs[-MAX_LOOKS:].sum(axis=0) - now + np.array(first)
    evidence = _evidence(now, before, pairs)
    return _condition(problem, feature, evidence, now, before)


def _slow(latency: IntArray) -> Condition:
    """What is slow is said by the looks before each span, so that the span itself has no part in it."""
    now = merge_latest(latency)
    before = latency[-MAX_LOOKS:].sum(axis=0) - now
    cut = (np.cumsum(before, axis=1) >= SLOW * before.sum(axis=1, keepdims=True)).argmax(axis=1)
    above = np.arange(latency.shape[1]) > cut[:, np.newaxis]
    pairs_now, pairs_before = (np.stack([(c * ~above).sum(1), (c * above).sum(1)], axis=1) for c in (now, before))
    evidence = _evidence(pairs_now, pairs_before, latency)
    if len(latency) <= LEAST_PAIRS:  # how much alike the answers of one look are is not known yet
        evidence = np.zeros(len(evidence))
    return _condition("slow", -1, evidence, pairs_now, pairs_before)


def _still(feature: int, pairs: IntArray) -> Condition:
    found = _weigh("still", feature, pairs)
    moved = found.before[:, 0] >= np.maximum(found.before[:, 1], MOVING_WINDOWS)
    return Condition(
        found.problem, feature, np.where(moved, found.evidence, 0.0), found.matters, found.now, found.before
    )


def _evidence(now: IntArray, before: IntArray, looks: IntArray) -> FloatArray:
    """One weighing per span, each against its own past; 0 without a past."""
    alike = dispersion(looks, np.zeros(1, np.int64)).repeat(2)
    reference = before.reshape(-1) / alike
    weights = Weights(1.0 + reference, rises(reference), RATE_LOG_PRIOR, np.arange(0, before.size, 2))
    evidence = weights.evidence(now.reshape(-1) / alike)
    return np.where(before.sum(axis=1) > 0, evidence, 0.0)


def _condition(problem: Ongoing, feature: int, evidence: FloatArray, now: IntArray, before: IntArray) -> Condition:
    rise = now[:, 1] / np.maximum(now.sum(axis=1), 1) - before[:, 1] / np.maximum(before.sum(axis=1), 1)
    return Condition(problem, feature, evidence, rise >= LEAST_RISE[problem], now, before)
