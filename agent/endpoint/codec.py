"""Arrays to bytes and back, as the Open Inference Protocol lays them out. Used by the endpoint and the self-test.

Little-endian, row-major, unpadded; BOOL is one byte; BYTES is a 4-byte length and the element, and an object array of
`bytes` here. Numbers in JSON are flat or nested as the shape.
"""

from __future__ import annotations

import functools
import math
import struct
from typing import Any

import msgspec
import numpy as np

from agent.backends import Array
from modules.errors import MALFORMED, TensorError
from modules.tensors import ITEM_SIZE, NUMPY_CODES, Tensor

DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(code) for name, code in NUMPY_CODES.items()} | {
    "BYTES": np.dtype(object)
}
FLOATS = frozenset({"FP16", "FP32", "FP64"})
_LENGTH = struct.Struct("<I")


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], data: bytes) -> Array:
    """Raises TensorError when the bytes do not fill the shape."""
    if datatype == "BYTES":
        return _split(name, data, math.prod(shape)).reshape(shape)
    expected = math.prod(shape) * ITEM_SIZE[datatype]
    if len(data) != expected:
        raise TensorError(f"{name}: expected {expected} bytes for {datatype} {list(shape)}, got {len(data)}")
    if datatype == "BOOL":
        flags: Array = np.frombuffer(data, np.uint8) != 0  # any byte is a valid one
        return flags.reshape(shape)
    array: Array = np.frombuffer(data, DTYPES[datatype])
    return array.reshape(shape)


def to_bytes(datatype: str, array: Array) -> bytes:
    if datatype != "BYTES":
        return array.astype(DTYPES[datatype], copy=False).tobytes()
    return b"".join(_LENGTH.pack(len(item)) + item for item in array.ravel())


def from_tensor(tensor: Tensor) -> Array:
    """Raises TensorError."""
    return from_bytes(tensor.name, tensor.datatype, tensor.shape, tensor.data)


def to_tensor(name: str, datatype: str, array: Array) -> Tensor:
    return Tensor(name=name, datatype=datatype, shape=array.shape, data=to_bytes(datatype, array))


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: bytes) -> Array:
    """An array from JSON text, flat or nested as `shape`; null is NaN in a float tensor. Raises TensorError."""
    depth = _depth(data)
    if depth not in (1, len(shape)):
        raise TensorError(f"{name}: expected a flat list or one nested {len(shape)} deep, got {depth}")
    try:
        values = _decoder(datatype, depth).decode(data)
        array = _filled(datatype, values)
    except (*MALFORMED, ValueError, OverflowError) as error:
        raise TensorError(f"{name}: expected {datatype} {list(shape)}, got data with: {error}") from error
    if array.size != math.prod(shape) or (depth > 1 and array.shape != shape):
        raise TensorError(f"{name}: expected {math.prod(shape)} elements for {list(shape)}, got {list(array.shape)}")
    return array.reshape(shape)


def to_json(datatype: str, array: Array) -> list[Any]:
    """Flat, row-major."""
    if datatype != "BYTES":
        return array.ravel().tolist()
    return [item.decode(errors="replace") for item in array.ravel()]


def _split(name: str, data: bytes, count: int) -> Array:
    items: list[bytes] = []
    at = 0
    while at < len(data) and len(items) < count:
        if at + _LENGTH.size > len(data):
            raise TensorError(f"{name}: expected a 4-byte length at byte {at}, got {len(data) - at} bytes")
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + size > len(data):
            raise TensorError(f"{name}: expected an element of {size} bytes at byte {at}, got {len(data) - at}")
        items.append(data[at : at + size])
        at += size
    if len(items) != count or at != len(data):
        raise TensorError(f"{name}: expected {count} elements, got {len(items)} and {len(data) - at} bytes after them")
    return _objects(items)


def _objects(items: list[bytes]) -> Array:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _depth(data: bytes) -> int:
    depth = 0
    for byte in data[:256]:
        if byte == ord("["):
            depth += 1
        elif byte not in b" \t\r\n":
            break
    return depth


@functools.cache
def _decoder(datatype: str, depth: int) -> msgspec.json.Decoder[Any]:
    """Strict: text is not a number, a fraction is not an integer."""
    item: Any = int
    if datatype in FLOATS:
        item = float | None
    elif datatype in ("BOOL", "BYTES"):
        item = bool if datatype == "BOOL" else str
    for _ in range(depth):
        item = list[item]
    return msgspec.json.Decoder(item)


def _filled(datatype: str, values: list[Any]) -> Array:
    if datatype == "BYTES":
        nested = np.array(values, dtype=object)
        if any(isinstance(item, list) for item in nested.ravel()):
            raise ValueError("lists of different lengths")
        return _objects([text.encode() for text in nested.ravel()]).reshape(nested.shape)
    with np.errstate(over="ignore"):
        return np.array(values, dtype=DTYPES[datatype])
