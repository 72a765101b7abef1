"""Which columns the tensors of a module become. Pure; used by `parquet` and by whoever says what a file holds.

A tensor with one element per row is a column of its own. One whose last dimension has names (labels) is a column per
name, called as its features are in drift: input.x[temperature]. Any other is a column of lists, row-major; where its
size may differ from row to row, a second column with `.shape` says how it was folded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from cloud_hub.errors import Unprocessable
from modules.manifest import Manifest
from modules.tensors import ITEM_SIZE, TensorSpec

Side = Literal["input", "output"]
Form = Literal["scalar", "features", "list"]
MAX_FEATURES: Final = 512  # columns of one tensor; with more names it is a list
MIXED: Final = "FP64"  # what numbers of several datatypes become


class TensorColumns(msgspec.Struct, frozen=True):
    """One tensor of a sample as columns. `shape` is that of one row, -1 where it may differ."""

    side: Side
    name: str
    datatype: str
    shape: tuple[int, ...]
    form: Form
    features: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.side}.{self.name}"

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns with values, in order."""
        return tuple(f"{self.title}[{name}]" for name in self.features) or (self.title,)

    @property
    def elements(self) -> int:
        """Of one row; -1 where that differs from row to row."""
        return -1 if -1 in self.shape else math.prod(self.shape)


def columns_of(manifests: Iterable[Manifest]) -> tuple[TensorColumns, ...]:
    """The columns that hold the samples of all these builds, inputs first.

    Raises Unprocessable `schema-mixed` where a tensor is text in one build and numbers in another.
    """
    found: dict[tuple[Side, str], TensorColumns] = {}
    for manifest in manifests:
        sides: tuple[tuple[Side, tuple[TensorSpec, ...]], ...] = (
            ("input", manifest.inputs),
            ("output", manifest.outputs),
        )
        for side, specs in sides:
            for spec in specs:
                one = _columns(side, spec)
                before = found.get((side, spec.name), one)
                found[side, spec.name] = one if before == one else _joined(before, one)
    return tuple(sorted(found.values(), key=lambda column: column.side))


def _columns(side: Side, spec: TensorSpec) -> TensorColumns:
    shape = spec.shape[1:]  # samples are single rows
    features = spec.labels if len(shape) == 1 and shape[0] == len(spec.labels) else ()
    if -1 not in shape and math.prod(shape) == 1:
        return TensorColumns(side, spec.name, spec.datatype, shape, "scalar")
    if features and len(set(features)) == len(features) <= MAX_FEATURES:
        return TensorColumns(side, spec.name, spec.datatype, shape, "features", features)
    return TensorColumns(side, spec.name, spec.datatype, shape, "list")


def _joined(one: TensorColumns, other: TensorColumns) -> TensorColumns:
    """Of a tensor that two builds describe differently."""
    datatype = one.datatype if one.datatype == other.datatype else MIXED
    if datatype == MIXED and not {one.datatype, other.datatype} <= ITEM_SIZE.keys():
        raise Unprocessable(
            "schema-mixed",
            f"{one.title}: {one.datatype} in one build and {other.datatype} in another; name one version of the module",
        )
    shape = one.shape if one.shape == other.shape else (-1,)
    if (one.form, one.features, shape) == (other.form, other.features, one.shape):
        return TensorColumns(one.side, one.name, datatype, shape, one.form, one.features)
    if one.elements == other.elements == 1:
        return TensorColumns(one.side, one.name, datatype, (), "scalar")
    return TensorColumns(one.side, one.name, datatype, shape, "list")
