"""NumPy's side: the only file that imports it, and itself imported only where arrays are given or asked for."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from mooring_client.errors import Refused
from mooring_client.tensors import Buffer, Spec, Tensor, pack_texts, unpack_texts

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
_CODES = {
    "BOOL": "?", "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "<i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_DTYPES = {datatype: np.dtype(code) for datatype, code in _CODES.items()}
_NAMES = {dtype: datatype for datatype, dtype in _DTYPES.items()}


def as_array(spec: Spec, value: object) -> Array:
    """Lists and numbers get the input's datatype; an array must have it, so that nothing is rounded unseen. Raises
    Refused(400).
    """
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.asarray(value, object if spec.datatype == "BYTES" else _DTYPES[spec.datatype])
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused(400, f"input {spec.name}: expected values of {spec.datatype}: {error}") from None


def datatype_of(array: Array) -> str:
    return "BYTES" if array.dtype.kind in "OSU" else _NAMES.get(array.dtype.newbyteorder("<"), str(array.dtype))


def as_tensor(array: Array) -> Tensor:
    """Its bytes, row-major. Raises Refused(400) for what is neither text nor bytes."""
    datatype = datatype_of(array)
    if datatype == "BYTES":
        try:
            return Tensor(datatype, array.shape, pack_texts(array.ravel().tolist()))
        except TypeError:
            raise Refused(400, "expected text or bytes in an array of objects") from None
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return Tensor(datatype, array.shape, np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)


def view(buffer: Buffer, datatype: str, shape: tuple[int, ...], offset: int = 0) -> Array:
    """Over the buffer's memory, without a copy; of numbers only."""
    count = int(np.prod(shape, dtype=np.int64))
    array: Array = np.frombuffer(buffer, _DTYPES[datatype], count, offset)
    return array.reshape(shape)


def texts(data: Buffer, shape: tuple[int, ...]) -> Array:
    items = unpack_texts(data, int(np.prod(shape, dtype=np.int64)))
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)
