"""Sections of a patch: each the smallest of what the codecs that the device has make of it."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Collection
from typing import Final

import numpy as np
import numpy.typing as npt

from modules.patch.codecs import LZMA_FILTERS, zstandard
from modules.patch.form import Codec
from modules.patch.planes import SKIP

Bytes = npt.NDArray[np.uint8]
EVERY_CODEC: Final = frozenset(Codec)
WITHOUT_ZSTANDARD: Final = EVERY_CODEC - {Codec.ZSTD, Codec.ZSTD_PREFIX}

_WORTH_A_LOOK = 1 << 16
_NOTHING_FOUND = 0.995


def uint(value: int) -> bytes:
    """LEB128."""
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def sint(value: int) -> bytes:
    """Zig-zag and LEB128."""
    return uint(value << 1 if value >= 0 else (-value << 1) - 1)


def entropy(plane: Bytes) -> float:
    """Bytes that a perfect coder without memory needs for the plane."""
    counts = np.bincount(plane, minlength=256)
    counts = counts[counts > 0]
    return float((counts * (np.log2(plane.size) - np.log2(counts))).sum()) / 8


def plane_section(plane: Bytes, codecs: Collection[Codec]) -> bytes:
    """A byte plane: its values matter, not their order."""
    count = int(np.count_nonzero(plane))
    if not count:
        return bytes([Codec.ZERO])
    candidates = [bytes([Codec.RAW]) + plane.tobytes()]
    if entropy(plane) < 0.99 * plane.size:
        candidates.append(_plain(plane, codecs))
    if count * 3 < plane.size:
        candidates.append(_sparse(plane, count, codecs))
    return min(candidates, key=len)


def _sparse(plane: Bytes, count: int, codecs: Collection[Codec]) -> bytes:
    places = np.flatnonzero(plane)
    gaps = np.diff(places, prepend=-1) - 1
    skips = gaps // SKIP
    coded = np.full(count + int(skips.sum()), SKIP, np.uint8)
    coded[np.cumsum(skips + 1) - 1] = gaps - skips * SKIP
    values = plane[places] - np.uint8(1)
    head = bytes([Codec.SPARSE]) + uint(count) + uint(len(coded))
    return head + _plain(coded, codecs) + (_plain(values, codecs) if values.any() else bytes([Codec.ZERO]))


def _plain(plane: Bytes, codecs: Collection[Codec]) -> bytes:
    data = plane.tobytes()
    candidates = [bytes([Codec.RAW]) + data, _coded(Codec.DEFLATE, _deflate(data, zlib.Z_HUFFMAN_ONLY))]
    if Codec.ZSTD in codecs:
        candidates.append(_coded(Codec.ZSTD, zstandard().compress(data, 3)))
    return min(candidates, key=len)


def bytes_section(data: bytes, codecs: Collection[Codec], prefix: tuple[int, bytes] | None = None) -> bytes:
    """Bytes of any kind, with the stretch of the base (offset, bytes) that is most like them."""
    candidates = [
        bytes([Codec.RAW]) + data,
        _coded(Codec.DEFLATE, _deflate(data, zlib.Z_DEFAULT_STRATEGY)),
    ]
    if Codec.ZSTD_PREFIX not in codecs:
        prefix = None
    if _hopeless(data, candidates[1], prefix):
        return candidates[0]
    if Codec.ZSTD in codecs:
        candidates.append(_coded(Codec.ZSTD, zstandard().compress(data, 19)))
    else:
        candidates.append(_coded(Codec.LZMA, lzma.compress(data, lzma.FORMAT_RAW, filters=LZMA_FILTERS)))
    if prefix is not None:
        offset, old = prefix
        head = bytes([Codec.ZSTD_PREFIX]) + uint(offset) + uint(len(old))
        coded = _with_prefix(data, old, 19)
        candidates.append(head + uint(len(coded)) + coded)
    return min(candidates, key=len)


def _hopeless(data: bytes, deflated: bytes, prefix: tuple[int, bytes] | None) -> bool:
    """A cheap look says that high levels would find nothing either."""
    if len(data) < _WORTH_A_LOOK or len(deflated) < _NOTHING_FOUND * len(data):
        return False
    return prefix is None or len(_with_prefix(data, prefix[1], 3)) > _NOTHING_FOUND * len(data)


def _with_prefix(data: bytes, old: bytes, level: int) -> bytes:
    coded: bytes = zstandard().compress(data, level, zstd_dict=zstandard().ZstdDict(old, is_raw=True).as_prefix)
    return coded


def _coded(codec: Codec, data: bytes) -> bytes:
    return bytes([codec]) + uint(len(data)) + data


def _deflate(data: bytes, strategy: int) -> bytes:
    state = zlib.compressobj(9 if strategy == zlib.Z_DEFAULT_STRATEGY else 1, zlib.DEFLATED, -15, 9, strategy)
    return state.compress(data) + state.flush()
