"""Profiles rows against the reference: one append per prediction, and a count of all features when a block is full.

Arrays are kept until a block of rows is full and are then counted together. Joint features take every row of a block
that took its time, and every STRIDE-th of one that filled at once, so that they cost little where rows are many.
Called by `agent.watching.periods`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from agent.backends import Array
from agent.watching.columns import CategoricalColumn, NumericColumns
from modules.errors import WindowError
from modules.joint import JointMap
from modules.manifest import Manifest
from modules.taking import Taker
from modules.tensors import ITEM_SIZE, TensorSpec
from modules.windows import Categorical, Feature, Numeric, ReferenceProfile, pack_joint

BLOCK_ROWS = 1024
BLOCK_BYTES = 4 * 1024 * 1024  # wide rows (images) are counted sooner, so that they do not fill the memory
STRIDE = 64  # of the rows that joint features take where a block fills within STRIDE_S
STRIDE_S = 0.01

Arrays = Mapping[str, Array]


class Counted(msgspec.Struct, frozen=True):
    """What a window holds of its rows; the fields are as in `modules.windows.Window`."""

    cells: list[int] = []
    moments: bytes = b""
    joint: bytes = b""
    still: bytes = b""


class Profiler:
    """Counts of one period. `add` is cheap; `close` returns what was counted and starts anew.

    Raises WindowError when the reference speaks of tensors that the manifest does not have.
    """

    def __init__(self, reference: ReferenceProfile, manifest: Manifest) -> None:
        specs = {spec.name: spec for spec in manifest.inputs + manifest.outputs}
        inputs = {spec.name for spec in manifest.inputs}
        self._features = reference.features
        for feature in self._features:
            _check(feature, specs)
        joint = () if reference.joint is None else reference.joint.inputs
        names = dict.fromkeys(feature.tensor for feature in self._features)
        self._tensors = [_Tensor(specs[name], name in inputs, self._features, joint) for name in names]
        self._joint = None if reference.joint is None else _JointSums(reference)
        self._pending: list[tuple[Arrays, Arrays]] = []
        self._room = self._block_rows = _block_rows(manifest)
        self._began = 0.0

    def add(self, rows: int, inputs: Arrays, outputs: Arrays) -> None:
        """The arrays must not be written to afterwards."""
        self._pending.append((inputs, outputs))
        self._room -= rows
        if self._room <= 0:
            self.flush()

    def flush(self) -> None:
        """Counts what is pending. What cannot be counted is lost, and raises; the next block is not touched by it."""
        pending, self._pending = self._pending, []
        self._room = self._block_rows
        began, self._began = self._began, time.perf_counter()
        if not pending:
            return
        stride = STRIDE if self._began - began < STRIDE_S else 1
        if self._joint is not None:
            self._joint.begin(stride)
        for tensor in self._tensors:
            tensor.count(pending, self._joint)
        if self._joint is not None:
            self._joint.end()

    def close(self) -> Counted:
        """All cells in the reference's order, and the moments as float32, little-endian. Starts a new window."""
        try:
            self.flush()
        finally:
            counted = self._take()
        return counted

    def _take(self) -> Counted:
        cells: dict[int, list[int]] = {}
        moments: dict[int, tuple[float, float]] = {}
        still: dict[int, bool] = {}
        for tensor in self._tensors:
            tensor.take(cells, moments, still)
        numeric = [moments[place] for place in sorted(moments)]
        with np.errstate(over="ignore"):
            packed = np.array(numeric, "<f4").tobytes()
        bits = [still[place] for place in sorted(still)]
        return Counted(
            [count for place in sorted(cells) for count in cells[place]],
            packed,
            self._joint.take() if self._joint is not None else b"",
            np.packbits(bits, bitorder="little").tobytes() if any(bits) else b"",
        )


class _Tensor:
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

    def count(self, pending: Sequence[tuple[Arrays, Arrays]], joint: _JointSums | None) -> None:
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

    def _add(self, block: Array, joint: _JointSums | None) -> None:
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

    def _add_plain(self, block: Array, joint: _JointSums | None) -> None:
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

    def put(self, values: Array, joint: _JointSums) -> None:
        """`values` are (features, rows), not sorted yet."""
        if self._joins:
            joint.put(self._joint_places, values[self._rows, :: joint.stride].copy())


class _JointSums:
    """Sums of the joint features of one period. A block whose inputs do not come in rows, all of them, is left out.

    What blocks give is gathered until it is worth the work.
    """

    def __init__(self, reference: ReferenceProfile) -> None:
        self._map = JointMap(reference)
        self._rows, self._total = 0, np.zeros(self._map.dimensions)
        self._found: list[tuple[list[int], Array]] = []
        self._in_order = list(range(len(self._map.inputs)))
        self._gathered: list[Array] = []
        self._waiting = 0  # rows
        self.stride = 1

    def begin(self, stride: int) -> None:
        self._found, self.stride = [], stride

    def put(self, places: list[int], values: Array) -> None:
        """(inputs, rows)."""
        self._found.append((places, values))

    def end(self) -> None:
        found, self._found = self._found, []
        sizes = {values.shape[1] for _, values in found}
        if len(sizes) != 1 or sum(len(places) for places, _ in found) != len(self._in_order):
            return
        size = sizes.pop()
        if found[0][0] == self._in_order:
            rows = found[0][1]
        else:
            rows = np.empty((len(self._in_order), size))
            for places, values in found:
                rows[places] = values
        self._gathered.append(rows)
        self._waiting += size
        if self._waiting >= BLOCK_ROWS:
            self._add_up()

    def _add_up(self) -> None:
        gathered, self._gathered, self._waiting = self._gathered, [], 0
        if gathered:
            count, total = self._map.sums(np.concatenate(gathered, axis=1).T)
            self._rows += count
            self._total += total

    def take(self) -> bytes:
        """Begins anew."""
        self._add_up()
        rows, self._rows = self._rows, 0
        white = self._map.whitened(rows, self._total)
        self._total[:] = 0.0
        return pack_joint(rows, white) if rows else b""


def _check(feature: Feature, specs: Mapping[str, TensorSpec]) -> None:
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


def _block_rows(manifest: Manifest) -> int:
    """Rows that fit in a block; rows of no fixed length are counted at once."""
    sizes = [math.prod(map(abs, spec.shape)) * ITEM_SIZE.get(spec.datatype, 64) for spec in manifest.inputs]
    if any(-1 in spec.shape[1:] for spec in manifest.inputs):
        return 1
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, sum(sizes))))


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
