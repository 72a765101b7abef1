"""Counts blocks of one tensor's rows into all features that are read from it. Called by `agent.watching.profiler`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from agent.backends import Array
from agent.watching.columns import CategoricalColumn, NumericColumns
from agent.watching.joint_sums import JointSums
from modules.errors import WindowError
from modules.taking import Taker
from modules.tensors import TensorSpec
from modules.windows import Categorical, Feature, Numeric

Arrays = Mapping[str, Array]


class TensorFeatures:
    """The features that are read from one tensor; places are those in the reference's features."""

    def __init__(self, spec: TensorSpec, is_input: bool, features: Sequence[Feature], joint: Sequence[int]) -> None:
        self._name, self._spec = spec.name, spec
        self._side = 0 if is_input else 1
        mine = [(place, feature) for place, feature in enumerate(features) if feature.tensor == spec.name]
        numeric = [(place, feature) for place, feature in mine if isinstance(feature, Numeric)]
        plain = [(place, feature) for place, feature in numeric if feature.take == "column"]
        taken = [(place, feature) for place, feature in numeric if feature.take != "column"]
        self._plain = _Group(plain, joint)
        self._indices = [feature.index for _, feature in plain]
        self._longest = max(self._indices, default=-1)
        self._in_order = self._indices == list(range(len(plain)))
        self._taken = _Group(taken, joint)
        self._in_rows = _in_rows(spec)
        self._block_wise = self._in_rows and -1 not in spec.shape[1:]
        rank = len(spec.shape) - self._in_rows
        self._takers = [Taker(feature, rank) for _, feature in taken]
        self._others = [
            (place, CategoricalColumn(feature)) for place, feature in mine if isinstance(feature, Categorical)
        ]

    def count(self, pending: Sequence[tuple[Arrays, Arrays]], joint: JointSums | None) -> None:
        """Raises what the last array that could not be counted did, after all others were."""
        arrays = [pair[self._side].get(self._name) for pair in pending]
        if self._block_wise and (block := _joined(arrays)) is not None:
            self._add(block, joint)
            return
        failure: Exception | None = None
        for array in arrays:  # no batch size, rows of different length, or not what the model promised
            try:
                if array is not None:
                    self._add(array if self._in_rows and array.ndim else array[np.newaxis], None)
            except Exception as error:
                failure = error
        if failure is not None:
            raise failure

    def _add(self, block: Array, joint: JointSums | None) -> None:
        shape, block = block.shape[1:], block.reshape(len(block), -1)
        if not len(block):
            return
        if self._indices:
            self._add_plain(block, joint)
        if self._takers:
            values = np.array([taker.take(block, shape) for taker in self._takers], np.float64)
            if joint is not None:
                self._taken.put(values, joint)
            self._taken.columns.add(values)
        for _, other in self._others:
            other.add(block)

    def _add_plain(self, block: Array, joint: JointSums | None) -> None:
        width = block.shape[1]
        if self._longest >= width:
            self._add_short(block, width)
            return
        whole = self._in_order and width == len(self._indices)
        values = _sortable(block if whole else block[:, self._indices])
        if joint is not None:
            self._plain.put(values, joint)
        self._plain.columns.add(values)

    def _add_short(self, block: Array, width: int) -> None:
        """Rows that end before some features: those are missing."""
        values = np.full((len(self._indices), len(block)), np.nan)
        for row, index in zip(values, self._indices, strict=True):
            if index < width:
                row[:] = block[:, index]
        self._plain.columns.add(values)

    def take(
        self, cells: dict[int, list[int]], moments: dict[int, tuple[float, float]], still: dict[int, bool]
    ) -> None:
        for group in (self._plain, self._taken):
            still |= zip(group.places, group.columns.take_still(), strict=True)
            cells |= zip(group.places, group.columns.take_cells(), strict=True)
            moments |= zip(group.places, group.columns.take_moments(), strict=True)
        cells |= {place: other.take_cells() for place, other in self._others}


class _Group:
    """Numeric features that are counted together, and which of them take part in the joint ones."""

    def __init__(self, features: Sequence[tuple[int, Numeric]], joint: Sequence[int]) -> None:
        self.places = [place for place, _ in features]
        self.columns = NumericColumns([feature for _, feature in features])
        own = [(row, joint.index(place)) for row, place in enumerate(self.places) if place in joint]
        rows, self._joint_places = [row for row, _ in own], [place for _, place in own]
        self._rows = slice(None) if rows == list(range(len(self.places))) else rows
        self._joins = bool(rows)

    def put(self, values: Array, joint: JointSums) -> None:
        """`values` are (features, rows), not sorted yet."""
        if self._joins:
            joint.put(self._joint_places, values[self._rows, :: joint.stride].copy())


def check_feature(feature: Feature, specs: Mapping[str, TensorSpec]) -> None:
    """Raises WindowError."""
    spec = specs.get(feature.tensor)
    if spec is None:
        raise WindowError(f"feature {feature.name}: expected one of {', '.join(specs)}, got tensor {feature.tensor}")
    of_text = isinstance(feature, Numeric) and feature.take == "length"
    of_any = isinstance(feature, Categorical) and feature.take == "column"
    if spec.datatype == "BYTES" and not (of_text or of_any):
        raise WindowError(f"feature {feature.name}: expected a tensor of numbers, got {feature.tensor} of BYTES")
    if spec.datatype != "BYTES" and of_text:
        raise WindowError(
            f"feature {feature.name}: expected a tensor of BYTES, got {feature.tensor} of {spec.datatype}"
        )


def _in_rows(spec: TensorSpec) -> bool:
    """Whether arrays can be put one below the other: a first size that is free, or 1."""
    return bool(spec.shape) and spec.shape[0] in (-1, 1)


def _joined(arrays: Sequence[Array | None]) -> Array | None:
    """One below the other; None where they are not alike."""
    if len(arrays) == 1:
        return arrays[0] if arrays[0] is not None and arrays[0].ndim else None
    try:
        return np.concatenate(arrays)  # type: ignore[arg-type]  # None among them raises, too
    except (ValueError, TypeError):
        return None


def _sortable(block: Array) -> Array:
    """A copy with a row per feature, as floats that hold what the block holds."""
    single = block.dtype.kind == "f" and block.itemsize <= 4
    return np.array(block.T, np.float32 if single else np.float64, order="C")
