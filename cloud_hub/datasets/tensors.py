"""The tensors of many samples as the columns of a record batch. Pure; used by `rows`.

A tensor that is not there (redacted, sent as a blob, of another shape) leaves nulls. A number that is not a number
stays NaN: the sensor said so.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from cloud_hub.datasets.columns import TensorColumns
from cloud_hub.datasets.parquet import TYPES
from modules.tensors import NUMPY_CODES, Tensor

BASE64: Final = "base64:"  # before the elements of a BYTES tensor that are no text
Array = np.ndarray[Any, np.dtype[Any]]


def fits(column: TensorColumns, tensor: Tensor) -> bool:
    """Whether the tensor's elements can stand in the columns."""
    text = column.datatype == "BYTES"
    if text != (tensor.datatype == "BYTES"):
        return False
    return column.elements < 0 or int(np.prod(tensor.shape, dtype=np.int64)) == column.elements


def arrays_of(column: TensorColumns, tensors: Sequence[Tensor | None]) -> list[pa.Array]:
    """One array per field of the column, as `parquet.tensor_fields` lists them. Tensors `fits` has passed."""
    values = _texts(tensors) if column.datatype == "BYTES" else _numbers(column, tensors)
    if column.form == "list":
        found = [_lists(column, values)]
        if column.elements < 0:
            shapes = [None if tensor is None else list(tensor.shape[1:]) for tensor in tensors]
            found.append(pa.array(shapes, pa.list_(pa.int32())))
        return found
    return _text_columns(column, values) if column.datatype == "BYTES" else _number_columns(column, values)


def texts_in(tensor: Tensor) -> list[str]:
    """The elements of a BYTES tensor; those that are no text as base64 with a word before it."""
    found: list[str] = []
    place = 0
    while place + 4 <= len(tensor.data):
        size = int.from_bytes(tensor.data[place : place + 4], "little")
        element = tensor.data[place + 4 : place + 4 + size]
        try:
            found.append(element.decode())
        except UnicodeDecodeError:
            found.append(BASE64 + base64.b64encode(element).decode())
        place += 4 + size
    return found


Values = list[Any]  # per row: an array, a list of texts, or None


def _numbers(column: TensorColumns, tensors: Sequence[Tensor | None]) -> Values:
    kind = TYPES[column.datatype].to_pandas_dtype()
    return [
        None if tensor is None else np.frombuffer(tensor.data, NUMPY_CODES[tensor.datatype]).astype(kind, copy=False)
        for tensor in tensors
    ]


def _texts(tensors: Sequence[Tensor | None]) -> Values:
    return [None if tensor is None else texts_in(tensor) for tensor in tensors]


def _number_columns(column: TensorColumns, values: Values) -> list[pa.Array]:
    plain = TYPES[column.datatype]
    there = np.array([row is not None for row in values], bool)
    table = np.zeros((len(column.names), len(values)), plain.to_pandas_dtype())
    if there.any():
        table[:, there] = np.stack([row for row in values if row is not None], axis=1)
    return [pa.array(numbers, plain, mask=~there) for numbers in table]


def _text_columns(column: TensorColumns, values: Values) -> list[pa.Array]:
    """A tensor whose bytes do not add up has fewer texts than its shape says."""
    return [
        pa.array([None if row is None or index >= len(row) else row[index] for row in values], TYPES["BYTES"])
        for index in range(len(column.names))
    ]


def _lists(column: TensorColumns, values: Values) -> pa.Array:
    plain = TYPES[column.datatype]
    if column.datatype == "BYTES":
        return pa.array(values, pa.list_(plain))
    sizes = [0 if row is None else len(row) for row in values]
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32), pa.int32())
    parts = [row for row in values if row is not None]
    flat: Array = np.concatenate(parts) if parts else np.zeros(0, plain.to_pandas_dtype())
    mask = pa.array([row is None for row in values], pa.bool_())
    return pa.ListArray.from_arrays(offsets, pa.array(flat, plain), mask=mask)
