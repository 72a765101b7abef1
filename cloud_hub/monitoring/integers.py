"""Arrays of whole numbers as bytes of a column: in the narrowest form that holds them, most of a look being small.

Before 0.2 each took 8 bytes; both forms are read. Used by `looks` and `tallies`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

IntArray = np.ndarray[Any, np.dtype[np.int64]]
_FORMS: Final = (("<i1", 1), ("<i2", 2), ("<i4", 4), ("<i8", 8))
_HEAD: Final = struct.Struct("<BI")  # bytes of each, and how many


def pack(values: np.ndarray[Any, np.dtype[np.integer[Any]]]) -> bytes:
    """The form that `unpack` reads. Its length is never a multiple of 8, as that of the old form always is."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    form, width = next(
        (form, width) for form, width in _FORMS if -(1 << (8 * width - 1)) <= low and high < 1 << (8 * width - 1)
    )
    data = _HEAD.pack(width, values.size) + values.astype(form).tobytes()
    return data if len(data) % 8 else data + b"\0"


def unpack(data: bytes | None) -> IntArray:
    """The numbers again; none of None."""
    if not data:
        return np.zeros(0, np.int64)
    if len(data) % 8 == 0:
        return np.frombuffer(data, "<i8").astype(np.int64)
    width, size = _HEAD.unpack_from(data)
    return np.frombuffer(data, f"<i{width}", size, _HEAD.size).astype(np.int64)


def unpack_rows(packed: Sequence[bytes | None], width: int = 0) -> IntArray:
    """A row for each, of `width` numbers or as many as the longest has; zeros where there are none."""
    if packed and all(packed) and len({(len(data), data[: _HEAD.size]) for data in packed if data}) == 1:
        part = _alike([data for data in packed if data])
        if part.shape[1] == (width or part.shape[1]):
            return part.astype(np.int64)
    alike: dict[tuple[int, bytes], list[int]] = {}
    for place, data in enumerate(packed):
        if data:
            alike.setdefault((len(data), data[: _HEAD.size] if len(data) % 8 else b""), []).append(place)
    parts = [(places, _alike([packed[place] or b"" for place in places])) for places in alike.values()]
    width = width or max((part.shape[1] for _, part in parts), default=0)
    matrix = np.zeros((len(packed), width), np.int64)
    for places, part in parts:
        matrix[places, : part.shape[1]] = part
    return matrix


def _alike(packed: Sequence[bytes]) -> np.ndarray[Any, np.dtype[np.integer[Any]]]:
    """Those of one length and head, read at once."""
    data = np.frombuffer(b"".join(packed), np.uint8).reshape(len(packed), -1)
    if data.shape[1] % 8 == 0:
        return data.view("<i8")
    width, size = _HEAD.unpack_from(packed[0])
    return np.ascontiguousarray(data[:, _HEAD.size : _HEAD.size + width * size]).view(f"<i{width}")
