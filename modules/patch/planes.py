"""Sections and byte planes: from the patch's bytes to NumPy arrays of unsigned integers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from modules.errors import PatchError
from modules.patch.codecs import unpack
from modules.patch.form import Codec
from modules.patch.reading import Base, Input

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.unsignedinteger]
UNSIGNED: dict[int, np.dtype[np.unsignedinteger]] = {
    1: np.dtype("u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}
# A gap of this many elements without one that is set; the next gap byte goes on.
SKIP = 255


def read_section(patch: Input, length: int, base: Base | None = None) -> bytes:
    """One section of `length` bytes (at most MAX_BLOCK). `base` where a section may refer to it."""
    codec = patch.byte()
    if codec == Codec.ZERO:
        return bytes(length)
    if codec == Codec.RAW:
        return patch.exactly(length)
    if codec == Codec.SPARSE:
        return _read_sparse(patch, length).tobytes()
    prefix = b""
    if codec == Codec.ZSTD_PREFIX:
        if base is None:
            raise PatchError("a section refers to the base where it must not")
        prefix = base.prefix(patch)
    coded = patch.uint(length + 1024, "the length of a compressed section")
    return unpack(codec, patch.exactly(coded), length, prefix)


def _read_sparse(patch: Input, length: int) -> Bytes:
    """Few bytes that are not zero: the gaps between them, and their values less one."""
    count = patch.uint(length, "the number of set bytes")
    gap_bytes = patch.uint(count + length // SKIP, "the number of gaps")
    gaps = np.frombuffer(_read_plain(patch, gap_bytes), np.uint8)
    values = np.frombuffer(_read_plain(patch, count), np.uint8)
    ends = gaps != SKIP
    if np.count_nonzero(ends) != count:
        raise PatchError("the gaps do not match the number of set bytes")
    places = np.cumsum(gaps, dtype=np.uint32)[ends] + np.arange(count, dtype=np.uint32)
    if count and places[-1] >= length:
        raise PatchError("a set byte lies behind the end of its plane")
    plane = np.zeros(length, np.uint8)
    plane[places] = values + np.uint8(1)
    return plane


def _read_plain(patch: Input, length: int) -> bytes:
    codec = patch.byte()
    if codec == Codec.ZERO:
        return bytes(length)
    if codec == Codec.RAW:
        return patch.exactly(length)
    if codec in (Codec.SPARSE, Codec.ZSTD_PREFIX):
        raise PatchError("a sparse plane within a sparse plane")
    return unpack(codec, patch.exactly(patch.uint(length + 1024, "the length of a compressed section")), length)


def join_planes(patch: Input, count: int, width: int, planes: int) -> Numbers:
    """Numbers of `width` bytes from their lowest `planes` byte planes, lowest first."""
    columns = np.zeros((count, width), np.uint8)
    for place in range(planes):
        columns[:, place] = np.frombuffer(read_section(patch, count), np.uint8)
    return columns.view(UNSIGNED[width]).reshape(count)


def unpack_bits(packed: Bytes, count: int, bits: int, width: int) -> Numbers:
    """`count` numbers of `bits` bits each, lowest bit first, as numbers of `width` bytes."""
    # Eight numbers fill whole bytes: each of the eight begins at the same bit in every row.
    rows = np.zeros((-(-count // 8), bits), np.uint8)
    rows.reshape(-1)[: packed.size] = packed
    kind = UNSIGNED[width]
    numbers = np.zeros((len(rows), 8), kind)
    for place in range(8):
        first, inside = divmod(place * bits, 8)
        for step in range(-(-(inside + bits) // 8)):
            part, move = rows[:, first + step].astype(kind), 8 * step - inside
            numbers[:, place] |= part << kind.type(move) if move >= 0 else part >> kind.type(-move)
    whole: Numbers = numbers.reshape(-1)[:count] & kind.type((1 << bits) - 1)
    return whole


def packed_size(count: int, bits: int) -> int:
    return (count * bits + 7) // 8
