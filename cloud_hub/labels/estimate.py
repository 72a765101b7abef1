"""How right a classifier probably is, without labels: from its confidences, of which every row is counted. Pure.

Each cell of the confidence has a share of right answers. Labels tell it, as they come; before, the confidence itself
is believed. The mean over all rows counted is the estimate. It holds while a confidence means what it meant when the
labels were given: a model that is wrong in a new way and as sure as before is not seen (concept drift), so the
estimate of each day, made of the labels of the days before, is held against the labels of that day.

Source: confidence-based performance estimation (NannyML's CBPE; Guillory et al., Predicting with Confidence on Unseen
Distributions, 2021), on counts instead of rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
import numpy as np

from cloud_hub.labels.intervals import Sums, mean_interval

PRIOR_ROWS: Final = 4.0  # labels that the confidence itself is worth, in each cell
ENOUGH: Final = 30.0  # effective labels from which the estimate is called calibrated
Z95: Final = 1.96
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
Basis = Literal["confidence", "labels"]


class DayEstimate(msgspec.Struct, frozen=True):
    """One day (since the epoch): what was estimated with the labels of the days before, and what labels say."""

    day: int
    rows: int
    accuracy: float
    low: float | None
    high: float | None
    labels: int
    labelled_accuracy: float | None


class Check(msgspec.Struct, frozen=True):
    """The estimate against the labels: `gap` is truth less estimate over the labelled predictions, each estimated with
    the labels of the days before its own. `significant`: 0 lies outside its interval. `coverage` is the share of all
    predictions that have a label.
    """

    labels: int
    coverage: float
    gap: float
    low: float | None
    high: float | None
    significant: bool


class Estimate(msgspec.Struct, frozen=True, tag_field="kind", tag="estimate"):
    """Expected accuracy over all predictions that were counted, labelled or not. No measurement: `estimated`.

    `basis` says what the confidences were held against: `labels`, or nothing but themselves. The interval is that of
    the calibration, with 95 %; None where there is none.
    """

    accuracy: float
    low: float | None
    high: float | None
    rows: int
    basis: Basis
    calibrated_on: int
    days: tuple[DayEstimate, ...]
    check: Check | None
    estimated: bool = True


class NoEstimate(msgspec.Struct, frozen=True, tag_field="kind", tag="none"):
    """Why there is none."""

    reason: str
    estimated: bool = True


@dataclass(frozen=True)
class _Rates:
    """Share of right answers per cell, and the variance of each."""

    right: FloatArray
    variance: FloatArray
    basis: Basis
    labels: int


def stated(edges: tuple[float, ...], classes: int) -> FloatArray | None:
    """What the confidences in each cell say of themselves; None where they are no probabilities."""
    least = 1.0 / max(classes, 2)
    if not (edges[0] >= -1e-6 and edges[-1] <= 1.01):
        return None
    bounds = np.array(edges)
    middles = (bounds[:-1] + bounds[1:]) / 2
    under, over, missing = (least + edges[0]) / 2, (edges[-1] + 1.0) / 2, least
    return np.asarray(np.clip(np.concatenate([middles, [under, over, missing]]), least, 1.0))


def estimate(
    counted: Mapping[int, FloatArray], labelled: Mapping[tuple[int, int], Sums], prior: FloatArray | None
) -> Estimate | NoEstimate:
    """`counted`: rows per day and cell; `labelled`: sums of errors by day and cell; `prior`: see `stated`."""
    rows = sum(float(cells.sum()) for cells in counted.values())
    if not rows:
        return NoEstimate("no predictions have been counted in this time")
    everything = _rates(labelled, math.inf, prior)
    if everything is None:
        return NoEstimate("its confidences are no probabilities, and there are too few labels to say what they mean")
    total = np.sum([*counted.values()], axis=0)
    accuracy, low, high = _expected(total, everything)
    days: list[DayEstimate] = []
    for day in sorted(counted):
        rates = _rates(labelled, day, prior)
        if rates is not None and counted[day].sum():
            days.append(_of_day(day, counted[day], rates, labelled))
    check = _check(labelled, prior, rows)
    return Estimate(accuracy, low, high, int(rows), everything.basis, everything.labels, tuple(days), check)


def _rates(labelled: Mapping[tuple[int, int], Sums], before: float, prior: FloatArray | None) -> _Rates | None:
    """From the labels of the days before that one."""
    by_cell: dict[int, Sums] = {}
    for (day, cell), sums in labelled.items():
        if day < before:
            by_cell[cell] = by_cell.get(cell, Sums()) + sums
    total = sum(by_cell.values(), Sums())
    if prior is None:
        if total.effective < ENOUGH:
            return None
        size = max(by_cell) + 1
        prior = np.full(size, 1.0 - total.mean)
    right, variance = prior.copy(), prior * (1 - prior) / (PRIOR_ROWS + 1)
    for cell, sums in by_cell.items():
        if cell < len(prior):
            # Not `effective`: within a cell there is no stratum still to come.
            rows = sums.w * sums.w / sums.w2
            right[cell] = (rows * (1 - sums.mean) + PRIOR_ROWS * prior[cell]) / (rows + PRIOR_ROWS)
            variance[cell] = right[cell] * (1 - right[cell]) / (rows + PRIOR_ROWS + 1)
    return _Rates(right, variance, "labels" if total.effective >= ENOUGH else "confidence", total.rows)


def _expected(cells: FloatArray, rates: _Rates) -> tuple[float, float | None, float | None]:
    size = min(len(cells), len(rates.right))
    shares = cells[:size] / cells[:size].sum()
    accuracy = float(shares @ rates.right[:size])
    if rates.basis == "confidence":
        return accuracy, None, None
    half = Z95 * math.sqrt(float(shares**2 @ rates.variance[:size]))
    return accuracy, max(accuracy - half, 0.0), min(accuracy + half, 1.0)


def _of_day(day: int, cells: FloatArray, rates: _Rates, labelled: Mapping[tuple[int, int], Sums]) -> DayEstimate:
    accuracy, low, high = _expected(cells, rates)
    truth = sum((sums for (of, _), sums in labelled.items() if of == day), Sums())
    measured = 1 - truth.mean if truth.rows else None
    return DayEstimate(day, int(cells.sum()), accuracy, low, high, truth.rows, measured)


def _check(labelled: Mapping[tuple[int, int], Sums], prior: FloatArray | None, rows: float) -> Check | None:
    """Each labelled row's right (1 or 0) less what was expected of it."""
    gaps = Sums()
    for day in sorted({day for day, _ in labelled}):
        rates = _rates(labelled, day, prior)
        if rates is None:
            continue
        for (of, cell), sums in labelled.items():
            if of == day and cell < len(rates.right):
                gaps += _less(sums, float(rates.right[cell]))
    if not gaps.rows:
        return None
    low, high = mean_interval(gaps) or (None, None)
    significant = low is not None and high is not None and not low <= 0 <= high
    return Check(gaps.rows, min(gaps.rows / rows, 1.0), gaps.mean, low, high, significant)


def _less(wrong: Sums, expected: float) -> Sums:
    """Sums of (1 - error) - expected; errors are 0 or 1."""
    top = 1 - expected
    return Sums(
        wrong.rows,
        wrong.w,
        wrong.w2,
        top * wrong.w - wrong.wx,
        top * wrong.w2 - wrong.w2x,
        top * top * wrong.w2 - 2 * top * wrong.w2x + wrong.w2x2,
        wrong.largest,
    )
