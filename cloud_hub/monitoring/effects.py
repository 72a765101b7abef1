"""How large a change is, from the same counts: numbers to look at, never to decide on alone. Pure.

A distance between two samples is above zero also when nothing changed, the more so the fewer rows: PSI has that
expectation taken off here. Cells that are empty in both samples do not count.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]

_HALF = 0.5  # added to each cell, so that a cell empty on one side stays finite


class Effect(msgspec.Struct, frozen=True):
    """PSI with its null bias removed (0 or more) and Jensen-Shannon distance (0 to 1).

    `ks` is the largest gap between the cumulative shares and `w1` their mean gap, 0 to 1 (how many ranks the average
    row has moved); both mean something only where cells have an order. `p` is the chance of a chi-square as large
    between these two samples without a change, had one looked at them only and once.
    """

    psi: float
    js: float
    ks: float
    w1: float = 0.0
    p: float = 1.0


NO_EFFECT = Effect(0.0, 0.0, 0.0)
LEAST_EXPECTED = 5.0  # rows in each sample's cell; sparser cells are taken together


def effect(current: IntArray, reference: IntArray) -> Effect:
    """Effect between the counts of one feature, cells in order of their values."""
    occupied = (current > 0) | (reference > 0)
    now, before = current[occupied], reference[occupied]
    if not now.sum() or not before.sum():
        return NO_EFFECT
    psi = float(unbiased_psi(now, before, np.zeros(1, np.int64))[0])
    gaps = np.abs(np.cumsum(now) / now.sum() - np.cumsum(before) / before.sum())
    ranks = before / before.sum()
    w1 = float((gaps * (ranks + np.append(ranks[1:], 0.0)) / 2).sum())
    return Effect(psi, _js(now / now.sum(), before / before.sum()), float(gaps.max()), w1, chance(now, before))


def chance(now: IntArray, before: IntArray) -> float:
    """P value of the chi-square test of two samples of counts; 1 where there is too little to test.

    Source: Pearson's statistic; its tail by Wilson and Hilferty's cube root (1931).
    """
    rows, was = int(now.sum()), int(before.sum())
    groups = _dense(now.tolist(), before.tolist(), min(rows, was) / (rows + was))
    freedom = len(groups) - 1
    if freedom < 1:
        return 1.0
    ratio = math.sqrt(rows / was)
    statistic = sum((ours / ratio - theirs * ratio) ** 2 / (ours + theirs) for ours, theirs in groups)
    if freedom == 1:
        return math.erfc(math.sqrt(statistic / 2))
    spread = 2 / (9 * freedom)
    return 0.5 * math.erfc((math.cbrt(statistic / freedom) - 1 + spread) / math.sqrt(2 * spread))


def _dense(now: list[int], before: list[int], share: float) -> list[tuple[int, int]]:
    """Counts of neighbouring cells taken together until enough rows are expected in the smaller sample's part."""
    groups: list[tuple[int, int]] = []
    ours = theirs = 0
    for count, was in zip(now, before, strict=True):
        ours, theirs = ours + count, theirs + was
        if (ours + theirs) * share >= LEAST_EXPECTED:
            groups.append((ours, theirs))
            ours = theirs = 0
    if groups and ours + theirs:
        groups[-1] = (groups[-1][0] + ours, groups[-1][1] + theirs)
    return groups


def unbiased_psi(current: IntArray, reference: IntArray, starts: IntArray) -> FloatArray:
    """PSI per feature, less the (K - 1)(1/n + 1/m) that is expected without a change; 0 without rows.

    `current` is (..., cells), the result (..., features); `starts` is the first cell of each feature.
    """
    occupied = (current > 0) | (reference > 0)
    cells = np.add.reduceat(occupied.astype(np.float64), starts, axis=-1)
    sizes = np.diff(np.append(starts, reference.size))
    now, now_rows = _shares(current, occupied, cells, starts, sizes)
    before, before_rows = _shares(np.broadcast_to(reference, current.shape), occupied, cells, starts, sizes)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(occupied, (now - before) * np.log(now / before), 0.0)
        bias = (cells - 1) * (1 / now_rows + 1 / before_rows)
        psi = np.add.reduceat(terms, starts, axis=-1) - bias
    return np.asarray(np.where((now_rows > 0) & (before_rows > 0), np.maximum(psi, 0.0), 0.0))


def _shares(
    counts: IntArray, occupied: np.ndarray[Any, Any], cells: FloatArray, starts: IntArray, sizes: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Each cell's share of its feature's rows, with half a row added to each occupied cell; and the rows."""
    rows = np.add.reduceat(counts, starts, axis=-1).astype(np.float64)
    whole = np.repeat(np.maximum(rows + _HALF * cells, _HALF), sizes, axis=-1)
    return np.asarray((counts + _HALF) / whole), rows


def _js(p: FloatArray, q: FloatArray) -> float:
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.where(p > 0, p * np.log2(p / middle), 0.0).sum()
        right = np.where(q > 0, q * np.log2(q / middle), 0.0).sum()
    return float(np.sqrt(max((left + right) / 2, 0.0)))
