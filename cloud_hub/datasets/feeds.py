"""Rows of a data set as what a model takes: arrays by input name, and which rows have all of them. Pure.

The columns say by their metadata which tensor they are of. Used by the child of `retraining.judge`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from cloud_hub.datasets.tensors import BASE64
from modules.tensors import NUMPY_CODES, TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
_TENSOR: Final = b"mooring.tensor"
_SHAPE: Final = b"mooring.shape"


def feeds_of(table: pa.Table, inputs: Sequence[TensorSpec]) -> tuple[dict[str, Array], BoolArray]:
    """Arrays with one row for each of the table's that has every input whole, and which those are.

    Raises ValueError for an input that no column is of.
    """
    whole = np.ones(table.num_rows, bool)
    columns = {spec.name: _columns(table, spec) for spec in inputs}
    for spec in inputs:
        whole &= _is_whole(table, columns[spec.name], spec)
    kept = table.filter(pa.array(whole))
    return {spec.name: _array(kept, columns[spec.name], spec) for spec in inputs}, whole


def _columns(table: pa.Table, spec: TensorSpec) -> list[str]:
    found = [
        field.name
        for field in table.schema
        if field.name.startswith("input.") and (field.metadata or {}).get(_TENSOR) == spec.name.encode()
    ]
    if not found:
        raise ValueError(f"expected the input {spec.name} among the data set's columns, got {table.column_names[:40]}")
    return found


def _is_list(table: pa.Table, name: str) -> bool:
    return _SHAPE in (table.schema.field(name).metadata or {})


def _is_whole(table: pa.Table, names: list[str], spec: TensorSpec) -> BoolArray:
    there = np.ones(table.num_rows, bool)
    for name in names:
        there &= ~np.asarray(table[name].is_null())
    if _is_list(table, names[0]):
        sizes = pa.compute.list_value_length(table[names[0]]).fill_null(-1).to_numpy()
        shape = _row_shape(table, names[0], spec)
        there &= sizes == math.prod(shape)
    return there


def _array(table: pa.Table, names: list[str], spec: TensorSpec) -> Array:
    if spec.datatype == "BYTES":
        texts = [table[name].combine_chunks().to_pylist() for name in names]
        rows = texts[0] if _is_list(table, names[0]) else list(zip(*texts, strict=True))
        flat: Array = np.array([[_text(value) for value in row] for row in rows], object)
    elif _is_list(table, names[0]):
        flat = np.asarray(table[names[0]].combine_chunks().flatten())
    else:
        flat = np.stack([np.asarray(table[name]) for name in names], axis=-1)
    shape = _row_shape(table, names[0], spec) if _is_list(table, names[0]) else _fixed(spec, len(names))
    typed = flat if spec.datatype == "BYTES" else flat.astype(NUMPY_CODES[spec.datatype])
    return np.ascontiguousarray(typed.reshape(table.num_rows, *shape))


def _row_shape(table: pa.Table, name: str, spec: TensorSpec) -> tuple[int, ...]:
    """The model's, with what it leaves free as the data set has it; where both do, as the first row is."""
    if -1 not in spec.shape[1:]:
        return spec.shape[1:]
    said = (table.schema.field(name).metadata or {})[_SHAPE].decode()
    shape = tuple(int(size) for size in said.split(",")) if said else ()
    folded = f"{name}.shape"
    if -1 in shape and folded in table.column_names and table.num_rows:
        first = next((row for row in table[folded].to_pylist() if row is not None), None)
        shape = tuple(first) if first is not None else shape
    if len(shape) != len(spec.shape) - 1 or -1 in shape:
        raise ValueError(f"input {spec.name}: expected rows of shape {list(spec.shape[1:])}, got {list(shape)}")
    return shape


def _fixed(spec: TensorSpec, columns: int) -> tuple[int, ...]:
    shape = spec.shape[1:]
    free = [place for place, size in enumerate(shape) if size == -1]
    if free:
        known = math.prod(size for size in shape if size != -1)
        shape = tuple(columns // known if place == free[0] else 1 if size == -1 else size
                      for place, size in enumerate(shape))  # fmt: skip
    if math.prod(shape) != columns:
        raise ValueError(f"input {spec.name}: expected {math.prod(shape)} elements per row, got {columns}")
    return shape


def _text(value: str) -> str:
    if value.startswith(BASE64):
        raise ValueError("expected texts in the data set, got bytes; such a model cannot be judged from it")
    return value
