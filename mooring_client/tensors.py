"""Tensors without NumPy: what a module takes and gives, and values as bytes.

Datatypes are the Open Inference Protocol's; data is little-endian, row-major, unpadded. BYTES is a 4-byte length and
the element, one after the other.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

from mooring_client.errors import ClientError, Refused

ITEM_SIZE = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
    "FP16": 2, "FP32": 4, "FP64": 8,
}  # fmt: skip
_LENGTH = struct.Struct("<I")
Buffer: TypeAlias = bytes | bytearray | memoryview


class Spec(NamedTuple):
    """One input or output of a module; -1 in `shape` is a free size. `labels` names the classes of an output."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()


class Tensor(NamedTuple):
    """A value as bytes, for applications without NumPy. Given as an input it brings outputs of the same kind."""

    datatype: str
    shape: tuple[int, ...]
    data: Buffer

    @property
    def dtype(self) -> str:
        return self.datatype


def read_specs(found: Iterable[dict[str, Any]]) -> tuple[Spec, ...]:
    """From the JSON of metadata or a welcome. Raises ClientError."""
    try:
        return tuple(_spec(one) for one in found)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ClientError(f"the worker's description of its tensors cannot be read: {error!r}") from error


def _spec(one: dict[str, Any]) -> Spec:
    labels = one.get("labels") or (one.get("parameters") or {}).get("labels") or ()
    return Spec(str(one["name"]), str(one["datatype"]), tuple(map(int, one["shape"])), tuple(map(str, labels)))


def check(spec: Spec, datatype: str, shape: tuple[int, ...], size: int) -> None:
    """Raises Refused(400)."""
    if datatype != spec.datatype:
        raise Refused(400, f"input {spec.name}: expected {spec.datatype}, got {datatype}")
    fits = len(shape) == len(spec.shape) and all(
        have > 0 and want in (-1, have) for want, have in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise Refused(400, f"input {spec.name}: expected shape {list(spec.shape)}, got {list(shape)}")
    expected = math.prod(shape) * ITEM_SIZE.get(datatype, 0)
    if datatype in ITEM_SIZE and size != expected:
        raise Refused(400, f"input {spec.name}: expected {expected} bytes, got {size}")


def check_names(specs: Iterable[Spec], names: Iterable[str]) -> None:
    """Raises Refused(400)."""
    expected, got = [spec.name for spec in specs], list(names)
    if sorted(expected) != sorted(got):
        raise Refused(400, f"inputs: expected {', '.join(expected)}, got {', '.join(map(str, got)) or 'none'}")


def pack_texts(items: Iterable[str | bytes]) -> bytes:
    """Elements of BYTES."""
    parts = []
    for item in items:
        data = item.encode() if isinstance(item, str) else bytes(item)
        parts += [_LENGTH.pack(len(data)), data]
    return b"".join(parts)


def unpack_texts(data: Buffer, count: int) -> list[bytes]:
    """Raises ClientError when the bytes are not `count` elements."""
    items, at = [], 0
    try:
        for _ in range(count):
            (size,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size + size
            items.append(bytes(data[at - size : at]))
    except struct.error as error:
        raise ClientError(f"expected {count} elements of text, got bytes that end early ({error})") from None
    if at != len(data):
        raise ClientError(f"expected {at} bytes of text, got {len(data)}")
    return items
