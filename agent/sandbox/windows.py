"""Counts rows into the cells of the reference profile, in the worker. The cells' meaning stands in `modules.windows`.

A prediction costs one append; arrays are kept until a block of rows is full and are then counted together. Per
numeric feature the block's column is sorted and the edges are looked up in it, which costs a third of looking up
every row among the edges, and gives the cumulative counts at once. Called by `agent.sandbox.watch`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from agent.backends import Array
from modules.errors import WindowError
from modules.manifest import Manifest
from modules.tensors import ITEM_SIZE, TensorSpec
from modules.windows import Categorical, Feature, Numeric, ReferenceProfile

BLOCK_ROWS = 1024
BLOCK_BYTES = 4 * 1024 * 1024  # wide rows (images) are counted sooner, so that they do not fill the memory
Counter = Callable[[Array], None]


class Profiler:
    """Counts of the current window. `add` is cheap; `close` returns cells and moments and starts anew.

    Raises WindowError when the reference speaks of tensors that the manifest does not have.
    """

    def __init__(self, reference: ReferenceProfile, manifest: Manifest) -> None:
        specs = {spec.name: spec for spec in manifest.inputs + manifest.outputs}
        self._columns = [_column(feature, specs) for feature in reference.features]
        names = dict.fromkeys(feature.tensor for feature in reference.features)
        self._tensors = [
            (name, name in {s.name for s in manifest.inputs}, specs[name], _group(self._columns, name))
            for name in names
        ]
        self._pending: list[tuple[Mapping[str, Array], Mapping[str, Array]]] = []
        self._room = self._block_rows = _block_rows(manifest)

    def add(self, rows: int, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """The arrays must not be written to afterwards."""
        self._pending.append((inputs, outputs))
        self._room -= rows
        if self._room <= 0:
            self.flush()

    def flush(self) -> None:
        """Counts what is pending."""
        pending, self._pending = self._pending, []
        self._room = self._block_rows
        if not pending:
            return
        for name, is_input, spec, count in self._tensors:
            side = 0 if is_input else 1
            arrays = [pair[side][name] for pair in pending]
            if spec.shape and spec.shape[0] == -1 and -1 not in spec.shape[1:]:
                block = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
                count(block.reshape(len(block), -1))
            else:  # no batch size, or rows of different length
                for array in arrays:
                    count(_rows_of(array, spec))

    def close(self) -> tuple[list[int], bytes]:
        """All cells in the reference's order, and the moments as float32, little-endian. Starts a new window."""
        self.flush()
        cells: list[int] = []
        moments: list[float] = []
        for column in self._columns:
            cells += column.take_cells()
            moments += column.take_moments()
        with np.errstate(over="ignore"):
            return cells, np.array(moments, "<f4").tobytes()


class _NumericColumn:
    """Cells and moments of one numeric feature."""

    def __init__(self, feature: Numeric) -> None:
        self.feature = feature
        # Rows below each of these are counted: the bins' edges, what closes the last bin, and NaN, which sorts last.
        closing = math.nextafter(feature.edges[-1], math.inf)
        self.bounds = np.array([*feature.edges[:-1], closing, math.nan])
        self.below = np.zeros(len(self.bounds) + 2, np.int64)  # 0, then the cumulative counts, then all rows
        self.sum = self.squares = 0.0

    def take_cells(self) -> list[int]:
        under, *rest = np.diff(self.below).tolist()
        *bins, over, missing = rest
        self.below[:] = 0
        return [*bins, under, over, missing]

    def take_moments(self) -> list[float]:
        moments = [self.sum / self.feature.scale, self.squares / self.feature.scale**2]
        self.sum = self.squares = 0.0
        return moments


class _CategoricalColumn:
    """Cells of one categorical feature."""

    def __init__(self, feature: Categorical) -> None:
        self.feature = feature
        self.index = {text: i for i, text in enumerate(feature.categories)}
        self.unknown = len(feature.categories)
        self.cells = np.zeros(feature.cells, np.int64)

    def take_cells(self) -> list[int]:
        cells: list[int] = self.cells.tolist()
        self.cells[:] = 0
        return cells

    def take_moments(self) -> list[float]:
        return []

    def add(self, block: Array) -> None:
        if self.feature.take == "argmax":
            self._add_largest(block)
        elif self.feature.index >= block.shape[1]:
            self.cells[-1] += len(block)
        else:
            values, counts = _tally(block[:, self.feature.index])
            for value, count in zip(values, counts, strict=True):
                missing = isinstance(value, float) and math.isnan(value)
                self.cells[-1 if missing else self.index.get(category_text(value), self.unknown)] += count

    def _add_largest(self, block: Array) -> None:
        missing = np.isnan(block).any(axis=1) if block.dtype.kind == "f" else np.zeros(len(block), bool)
        codes = np.minimum(block.argmax(axis=1), self.unknown)
        codes[missing] = self.unknown + 1
        self.cells += np.bincount(codes, minlength=len(self.cells))


_Column = _NumericColumn | _CategoricalColumn


def category_text(value: object) -> str:
    """How an element is written as a category: bytes as UTF-8, everything else as Python writes it."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _column(feature: Feature, specs: Mapping[str, TensorSpec]) -> _Column:
    spec = specs.get(feature.tensor)
    if spec is None:
        raise WindowError(f"feature {feature.name}: expected one of {', '.join(specs)}, got tensor {feature.tensor}")
    if spec.datatype == "BYTES" and (isinstance(feature, Numeric) or feature.take == "argmax"):
        raise WindowError(f"feature {feature.name}: expected a tensor of numbers, got {feature.tensor} of BYTES")
    return _NumericColumn(feature) if isinstance(feature, Numeric) else _CategoricalColumn(feature)


def _group(columns: Sequence[_Column], tensor: str) -> Counter:
    """What counts a block of one tensor's rows into all features read from it."""
    numeric = [c for c in columns if isinstance(c, _NumericColumn) and c.feature.tensor == tensor]
    plain = [c for c in numeric if c.feature.take == "column"]
    largest = [c for c in numeric if c.feature.take == "max"]
    others = [c for c in columns if isinstance(c, _CategoricalColumn) and c.feature.tensor == tensor]
    counter = _ColumnCounter(plain)

    def count(block: Array) -> None:
        counter.add(block)
        if largest:
            values = block.max(axis=1)[np.newaxis]
            for column in largest:
                _count_numeric([column], values, np.array([column.feature.mean]))
        for other in others:
            other.add(block)

    return count


class _ColumnCounter:
    """Numeric features that are single elements of the same tensor's rows, counted together."""

    def __init__(self, columns: list[_NumericColumn]) -> None:
        self._columns = columns
        self._indices = [column.feature.index for column in columns]
        self._in_order = self._indices == list(range(len(columns)))
        self._means = np.array([column.feature.mean for column in columns])

    def add(self, block: Array) -> None:
        if not self._columns:
            return
        width = block.shape[1]
        if max(self._indices) >= width:
            self._add_short(block, width)
        elif self._in_order and width == len(self._indices):
            _count_numeric(self._columns, block.T.copy(), self._means)
        else:
            _count_numeric(self._columns, block[:, self._indices].T.copy(), self._means)

    def _add_short(self, block: Array, width: int) -> None:
        """Rows that end before some features: those are missing."""
        for column in self._columns:
            if column.feature.index < width:
                _count_numeric([column], block[:, column.feature.index][np.newaxis], np.array([column.feature.mean]))
            else:
                column.below[-1] += len(block)


def _count_numeric(columns: Sequence[_NumericColumn], values: Array, means: Array) -> None:
    """`values` holds one row per column, and is sorted here."""
    rows = values.shape[1]
    values = np.sort(values, axis=1).astype(np.float64, copy=False)
    for column, ordered in zip(columns, values, strict=True):
        column.below[1:-1] += ordered.searchsorted(column.bounds)
        column.below[-1] += rows
    with np.errstate(over="ignore", invalid="ignore"):
        centred = values - means[:, np.newaxis]
        sums, squares = centred.sum(axis=1), np.einsum("ij,ij->i", centred, centred)
        if np.isnan(sums).any():
            centred[np.isnan(values)] = 0.0
            sums, squares = centred.sum(axis=1), np.einsum("ij,ij->i", centred, centred)
    for column, total, square in zip(columns, sums.tolist(), squares.tolist(), strict=True):
        column.sum += total
        column.squares += square


def _block_rows(manifest: Manifest) -> int:
    """Rows that fit in a block; rows of no fixed length are counted at once."""
    sizes = [math.prod(map(abs, spec.shape)) * ITEM_SIZE.get(spec.datatype, 64) for spec in manifest.inputs]
    if any(-1 in spec.shape[1:] for spec in manifest.inputs):
        return 1
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, sum(sizes))))


def _rows_of(array: Array, spec: TensorSpec) -> Array:
    """One row per prediction, flat. Without a free first size the whole tensor is one row."""
    rows = array.shape[0] if array.ndim and spec.shape and spec.shape[0] == -1 else 1
    return array.reshape(rows, -1)


def _tally(column: Array) -> tuple[list[object], list[int]]:
    values, counts = np.unique(column, return_counts=True)
    return values.tolist(), counts.tolist()
