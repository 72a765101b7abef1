"""Counts blocks of rows into the cells of features. The cells' meaning stands in `modules.windows`.

Numeric features of one block are counted together: each one's values are sorted and the edges are looked up among
them, which costs a third of looking up every row among the edges, gives the cumulative counts at once, and the least
and largest value, too. Called by `agent.watching.profiler`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agent.backends import Array
from modules.windows import STILL_ROWS, Categorical, Numeric


class NumericColumns:
    """Cells, moments and stillness of numeric features whose values come together, a row of values per feature."""

    def __init__(self, features: Sequence[Numeric]) -> None:
        self.features = tuple(features)
        self._bounds = {size: [_bounds(feature, size) for feature in features] for size in (4, 8)}
        self._ends = np.cumsum([len(bounds) for bounds in self._bounds[8]], dtype=np.int64)
        self._means = np.array([[feature.mean] for feature in features])
        self._below = np.zeros(self._ends[-1] if features else 0, np.int64)  # per feature and bound, so far
        self._rows = np.zeros(len(features), np.int64)
        self._sums, self._squares = np.zeros(len(features)), np.zeros(len(features))
        self._least, self._most = np.full(len(features), np.nan), np.full(len(features), np.nan)

    def add(self, values: Array) -> None:
        """(features, rows) of floats, which are sorted in place."""
        values.sort(axis=1)
        bounds = self._bounds[values.itemsize]
        found = [known.searchsorted(wanted) for known, wanted in zip(values, bounds, strict=True)]
        self._below += np.concatenate(found)
        self._rows += values.shape[1]
        self._least = np.fmin(self._least, values[:, 0])
        most = values[:, -1]
        with np.errstate(over="ignore", invalid="ignore"):
            centred = values - self._means
            sums, squares = centred.sum(axis=1), np.einsum("ij,ij->i", centred, centred)
            if math.isnan(sums.sum()):
                known = ~np.isnan(values)
                centred[~known] = 0.0
                sums, squares = centred.sum(axis=1), np.einsum("ij,ij->i", centred, centred)
                last = np.maximum(known.sum(axis=1) - 1, 0)
                most = values[np.arange(len(values)), last]
            self._most = np.fmax(self._most, most)
            self._sums += sums
            self._squares += squares

    def add_missing(self, place: int, rows: int) -> None:
        """Rows that end before this feature."""
        self._rows[place] += rows

    def take_cells(self) -> list[list[int]]:
        """Per feature; begins anew."""
        cells = []
        start = 0
        for rows, end in zip(self._rows.tolist(), self._ends.tolist(), strict=True):
            under, *rest = np.diff(self._below[start:end], prepend=0, append=rows).tolist()
            start = end
            *bins, over, missing = rest
            cells.append([*bins, under, over, missing])
        self._below[:] = 0
        self._rows[:] = 0
        return cells

    def take_moments(self) -> list[tuple[float, float]]:
        """Per feature; begins anew."""
        scales = [feature.scale for feature in self.features]
        pairs = zip(self._sums.tolist(), self._squares.tolist(), scales, strict=True)
        moments = [(total / scale, square / scale**2) for total, square, scale in pairs]
        self._sums[:] = 0.0
        self._squares[:] = 0.0
        return moments

    def take_still(self) -> list[bool]:
        """Per feature, before its cells are taken: enough rows that had a value, and all the same one."""
        known = self._below[self._ends - 1] >= STILL_ROWS if self.features else np.zeros(0, bool)
        still: list[bool] = (known & (self._least == self._most)).tolist()
        self._least[:] = np.nan
        self._most[:] = np.nan
        return still


class CategoricalColumn:
    """Cells of one categorical feature."""

    def __init__(self, feature: Categorical) -> None:
        self.feature = feature
        self.index = {text: i for i, text in enumerate(feature.categories)}
        self.unknown = len(feature.categories)
        self.cells = np.zeros(feature.cells, np.int64)

    def take_cells(self) -> list[int]:
        """Begins anew."""
        cells: list[int] = self.cells.tolist()
        self.cells[:] = 0
        return cells

    def add(self, block: Array) -> None:
        if self.feature.take == "argmax":
            self._add_largest(block)
        elif self.feature.index >= block.shape[1]:
            self.cells[-1] += len(block)
        else:
            self._add_texts(block[:, self.feature.index])

    def _add_texts(self, column: Array) -> None:
        values, counts = np.unique(column, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            missing = isinstance(value, float) and math.isnan(value)
            self.cells[-1 if missing else self.index.get(category_text(value), self.unknown)] += count

    def _add_largest(self, block: Array) -> None:
        missing = np.isnan(block).any(axis=1) if block.dtype.kind == "f" else np.zeros(len(block), bool)
        codes = np.minimum(block.argmax(axis=1), self.unknown)
        codes[missing] = self.unknown + 1
        self.cells += np.bincount(codes, minlength=len(self.cells))


def category_text(value: object) -> str:
    """How an element is written as a category: bytes as UTF-8, everything else as Python writes it."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _bounds(feature: Numeric, size: int) -> Array:
    """Rows below each of these are counted: the bins' edges, what closes the last bin, and NaN, which sorts last.

    For float32 each is the least one that is not below the edge, so that no value changes its side.
    """
    closing = math.nextafter(feature.edges[-1], math.inf)
    exact = np.array([*feature.edges[:-1], closing, math.nan])
    if size == 8:
        return exact
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
        return np.where(rounded < exact, np.nextafter(rounded, np.float32(np.inf)), rounded)
