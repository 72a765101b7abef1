"""Profiles rows against the reference: one append per prediction, and a count of all features when a block is full.

Arrays are kept until a block of rows is full and are then counted together. Joint features take every row of a block
that took its time, and every STRIDE-th of one that filled at once, so that they cost little where rows are many.
Called by `agent.watching.periods`.
"""

from __future__ import annotations

import math
import time

import msgspec
import numpy as np

from agent.watching.joint_sums import JointSums
from agent.watching.tensors import Arrays, TensorFeatures, check_feature
from modules.manifest import Manifest
from modules.tensors import ITEM_SIZE
from modules.windows import ReferenceProfile

BLOCK_ROWS = 1024
BLOCK_BYTES = 4 * 1024 * 1024  # wide rows (images) are counted sooner, so that they do not fill the memory
STRIDE = 64  # of the rows that joint features take where a block fills within STRIDE_S
STRIDE_S = 0.01


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
            check_feature(feature, specs)
        joint = () if reference.joint is None else reference.joint.inputs
        names = dict.fromkeys(feature.tensor for feature in self._features)
        self._tensors = [TensorFeatures(specs[name], name in inputs, self._features, joint) for name in names]
        self._joint = None if reference.joint is None else JointSums(reference)
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


def _block_rows(manifest: Manifest) -> int:
    """Rows that fit in a block; rows of no fixed length are counted at once."""
    sizes = [math.prod(map(abs, spec.shape)) * ITEM_SIZE.get(spec.datatype, 64) for spec in manifest.inputs]
    if any(-1 in spec.shape[1:] for spec in manifest.inputs):
        return 1
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, sum(sizes))))
