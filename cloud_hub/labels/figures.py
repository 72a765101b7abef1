"""How good a module is, in figures: made of weighted sums, each with its interval and a dummy beside it. Pure.

A dummy is what a model without any input would reach: the largest class, the shares of the classes, the mean of the
numbers. Used by `quality`, which gets the sums from the database.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from cloud_hub.labels.answers import BINS
from cloud_hub.labels.intervals import Sums, mean_interval, share_interval

MAX_CONFUSIONS: Final = 2000
OTHER: Final = "(none of them)"  # an answer that is of no known class


class Figure(msgspec.Struct, frozen=True):
    """An estimate over all predictions, weighted by 1/probability; the truth is from `low` to `high`, with 95 %.

    The interval stays true however often one looks. `dummy` is what a model without input would reach, `rows` are the
    labelled predictions behind it, `effective` as how many of equal weight they count.
    """

    value: float
    rows: int
    effective: float
    low: float | None = None
    high: float | None = None
    dummy: float | None = None


class ClassFigures(msgspec.Struct, frozen=True):
    """One class: `share` of the labels, and how well it is told from the others. None where there is nothing of it."""

    name: str
    share: float
    precision: Figure | None
    recall: Figure | None
    f1: Figure | None


class Confusion(msgspec.Struct, frozen=True):
    """How often this was answered where that was right; `share` of all, weighted."""

    truth: str
    predicted: str
    rows: int
    share: float


class ReliabilityBin(msgspec.Struct, frozen=True):
    """Predictions with a confidence in [low, high): how sure they were on average, and how often right."""

    low: float
    high: float
    share: float
    confidence: float
    accuracy: Figure


class Calibration(msgspec.Struct, frozen=True):
    """Whether confidences are true. `ece` is the mean gap between both; a model that is perfectly calibrated would
    show `ece_by_chance` with as many labels.
    """

    ece: float
    ece_by_chance: float
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class ConfusionCell:
    """Weighted rows of one pair of truth and answer, by name."""

    truth: str
    predicted: str
    rows: int
    w: float
    w2: float
    largest: float


@dataclass(frozen=True)
class BinCell:
    """Sums over the rows of one bin of confidence; `wc` of the confidence, `w2v` of its c(1 - c)."""

    bin: int
    wrong: Sums
    wc: float
    w2v: float


def mean_figure(sums: Sums, dummy: float | None = None, floor: float = -math.inf) -> Figure | None:
    """None without rows. The interval ends at `floor`, below which no truth can be."""
    if not sums.rows:
        return None
    low, high = mean_interval(sums) or (None, None)
    low = None if low is None else max(low, floor)
    return Figure(sums.mean, sums.rows, sums.effective, low, high, dummy)


def share_figure(sums: Sums, dummy: float | None = None) -> Figure | None:
    if not sums.rows:
        return None
    low, high = share_interval(sums) or (None, None)
    return Figure(min(max(sums.mean, 0.0), 1.0), sums.rows, sums.effective, low, high, dummy)


def root_figure(squares: Sums, dummy: float | None = None) -> Figure | None:
    """The root of a mean square, and of its interval."""
    figure = mean_figure(squares, None, 0.0)
    if figure is None:
        return None
    low, high = (None if end is None else math.sqrt(end) for end in (figure.low, figure.high))
    return Figure(math.sqrt(max(figure.value, 0.0)), figure.rows, figure.effective, low, high, dummy)


@dataclass
class _ClassSums:
    hit: list[ConfusionCell] = field(default_factory=list)
    answered: list[ConfusionCell] = field(default_factory=list)  # as this class, wrongly
    missed: list[ConfusionCell] = field(default_factory=list)


def class_figures(cells: Sequence[ConfusionCell]) -> tuple[ClassFigures, ...]:
    """Precision, recall and F1 of each class that occurs, the most frequent first.

    F1 is 2J/(1+J) of the share J of hits among all that are or were called this class, so its interval is J's.
    """
    by_name: dict[str, _ClassSums] = {}
    for cell in cells:
        if cell.truth == cell.predicted:
            by_name.setdefault(cell.truth, _ClassSums()).hit.append(cell)
        else:
            by_name.setdefault(cell.truth, _ClassSums()).missed.append(cell)
            by_name.setdefault(cell.predicted, _ClassSums()).answered.append(cell)
    total = sum(cell.w for cell in cells)
    found = [
        ClassFigures(
            name,
            sum(cell.w for cell in sums.hit + sums.missed) / total,
            share_figure(_share(sums.hit, sums.answered)),
            share_figure(_share(sums.hit, sums.missed)),
            _f1(share_figure(_share(sums.hit, sums.answered + sums.missed))),
        )
        for name, sums in by_name.items()
        if name != OTHER
    ]
    return tuple(sorted(found, key=lambda one: (-one.share, one.name)))


def confusions(cells: Sequence[ConfusionCell]) -> tuple[Confusion, ...]:
    """The largest first, at most MAX_CONFUSIONS."""
    total = sum(cell.w for cell in cells)
    found = [Confusion(cell.truth, cell.predicted, cell.rows, cell.w / total) for cell in cells]
    return tuple(sorted(found, key=lambda one: (-one.share, one.truth, one.predicted))[:MAX_CONFUSIONS])


def class_shares(cells: Iterable[ConfusionCell]) -> dict[str, float]:
    """Of the labels, weighted."""
    shares: dict[str, float] = {}
    for cell in cells:
        shares[cell.truth] = shares.get(cell.truth, 0.0) + cell.w
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()} if total else {}


def dummies(shares: Mapping[str, float]) -> tuple[float | None, float | None, float | None]:
    """Accuracy, log loss and Brier score of who always answers the shares of the classes."""
    if not shares:
        return None, None, None
    log_loss = -sum(share * math.log(share) for share in shares.values() if share > 0)
    return max(shares.values()), log_loss, sum(share * (1 - share) for share in shares.values())


def calibration(cells: Sequence[BinCell]) -> Calibration | None:
    """None where no answer had probabilities. Source of ECE: Naeini, Cooper, Hauskrecht (2015)."""
    cells = [cell for cell in cells if cell.wrong.rows]
    if not cells:
        return None
    total = sum(cell.wrong.w for cell in cells)
    ece = chance = 0.0
    bins: list[ReliabilityBin] = []
    for cell in sorted(cells, key=lambda one: one.bin):
        right = _right(cell.wrong)
        share, confidence = cell.wrong.w / total, cell.wc / cell.wrong.w
        figure = share_figure(right)
        if figure is None:
            continue
        ece += share * abs(right.mean - confidence)
        chance += share * math.sqrt(2 / math.pi * max(cell.w2v, 0.0)) / cell.wrong.w
        bins.append(ReliabilityBin(cell.bin / BINS, (cell.bin + 1) / BINS, share, confidence, figure))
    return Calibration(ece, chance, tuple(bins))


def accuracy_of(wrong: Sums, dummy: float | None = None) -> Figure | None:
    """`wrong` sums errors, 0 or 1."""
    return share_figure(_right(wrong), dummy)


def _right(wrong: Sums) -> Sums:
    return Sums.of_share(wrong.rows, wrong.w, wrong.w2, wrong.w - wrong.wx, wrong.w2 - wrong.w2x, wrong.largest)


def _share(hits: Sequence[ConfusionCell], others: Sequence[ConfusionCell]) -> Sums:
    """The weighted share of hits among both."""
    every = [*hits, *others]
    return Sums.of_share(
        sum(cell.rows for cell in every),
        sum(cell.w for cell in every),
        sum(cell.w2 for cell in every),
        sum(cell.w for cell in hits),
        sum(cell.w2 for cell in hits),
        max((cell.largest for cell in every), default=0.0),
    )


def _f1(jaccard: Figure | None) -> Figure | None:
    if jaccard is None:
        return None
    value, low, high = (None if j is None else 2 * j / (1 + j) for j in (jaccard.value, jaccard.low, jaccard.high))
    return Figure(value or 0.0, jaccard.rows, jaccard.effective, low, high)
