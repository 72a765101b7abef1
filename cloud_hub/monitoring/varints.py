"""Packed counts (`modules.windows.pack_counts`) of many windows at once: inflated one by one, decoded as arrays. Pure.

What one window sends takes no more memory than its reference allows, whatever its bytes say. Used by `merging`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np

from cloud_hub.store.bulk import in_slices

IntArray = np.ndarray[Any, np.dtype[np.int64]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
AnyInts = np.ndarray[Any, np.dtype[np.integer[Any]]]  # as narrow as they came: one byte each, mostly

MAX_BYTES: Final = 9  # of a number below 2^63
AT_ONCE: Final = 256  # that are inflated before it is looked at what they hold
SMALL: Final = 128 * 1024  # deflated bytes that inflate to 128 MiB at most, whoever wrote them
_NOTHING: Final = b"\x80"  # a number that does not end


def unpack_many(packed: Sequence[bytes], cells: int) -> tuple[AnyInts, BoolArray]:
    """(len(packed), cells) counts below 2^63, and which rows hold exactly `cells` of them; the other rows are zeros."""
    raws = [raw for some in in_slices(packed, AT_ONCE) for raw in _inflated(some, cells * MAX_BYTES)]
    sizes = np.fromiter(map(len, raws), np.int64, len(raws))
    data = np.frombuffer(b"".join(raws), np.uint8)
    if not cells:
        return np.zeros((len(raws), 0), np.int64), sizes == 0
    if (sizes == cells).all() and (not len(data) or data.max() < 0x80):
        return data.reshape(len(raws), cells), np.ones(len(raws), np.bool_)
    fits = _whole(data, sizes, cells)
    if not fits.all():
        counts = np.zeros((len(raws), cells), np.int64)
        counts[fits] = _decoded(data[np.repeat(fits, sizes)], cells)
        return counts, fits
    return _decoded(data, cells), fits


def signed(counts: AnyInts) -> IntArray:
    """The numbers that `modules.windows.pack_signed` packed as these counts."""
    wide = counts.astype(np.int64)
    return np.where(wide & 1, -((wide >> 1) + 1), wide >> 1)


def _inflated(packed: Sequence[bytes], most: int) -> list[bytes]:
    """Quickly where all are small and as they should be, which is how it mostly is."""
    if sum(map(len, packed)) <= SMALL:
        with suppress(zlib.error):
            raws = list(map(zlib.decompress, packed))
            if max(map(len, raws)) <= most:
                return raws
    return [_inflate(data, most) for data in packed]


def _inflate(data: bytes, most: int) -> bytes:
    """What was deflated; one byte that is no whole number when it was not, or is more than `most` bytes."""
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data, most + 1)
    except zlib.error:
        return _NOTHING
    return raw if inflater.eof and len(raw) <= most else _NOTHING


def _whole(data: np.ndarray[Any, np.dtype[np.uint8]], sizes: IntArray, cells: int) -> BoolArray:
    """Which stretches of `sizes` bytes hold `cells` numbers, none cut short and none too long."""
    ends = np.cumsum(sizes)
    last = data < 0x80
    before = np.concatenate([[0], np.cumsum(last)])
    fits = (before[ends] - before[ends - sizes] == cells) & (sizes > 0)
    fits &= last[np.maximum(ends, 1) - 1] if len(data) else False
    # A run of bytes that go on, as long as a number may be: the number is longer.
    going = np.concatenate([[0], np.cumsum(~last)])
    long = np.flatnonzero(going[MAX_BYTES:] - going[:-MAX_BYTES] == MAX_BYTES)
    fits[np.searchsorted(ends, long, side="right").clip(max=len(sizes) - 1)] = False
    return np.asarray(fits)


def _decoded(data: np.ndarray[Any, np.dtype[np.uint8]], cells: int) -> IntArray:
    """LEB128: seven bits a byte, the lowest first, all but the last with the high bit."""
    ends = np.flatnonzero(data < 0x80)
    lengths = np.diff(ends, prepend=-1)
    numbers = data[ends].astype(np.int64)
    for place in range(1, int(lengths.max(initial=1))):
        longer = np.flatnonzero(lengths > place)
        numbers[longer] = (numbers[longer] << 7) | (data[ends[longer] - place] & 0x7F)
    return numbers.reshape(-1, cells)
