"""A second decoder of patches, written from docs/understand/patches.md alone: one element at a time, no bounds.

It shows that the page is enough to write a decoder from, and it is what the real one is compared with.
"""

from __future__ import annotations

import lzma
import zlib

from modules.patch.codecs import zstandard


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, length: int) -> bytes:
        self.at += length
        return self.data[self.at - length : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def uint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def sint(self) -> int:
        value = self.uint()
        return -(value + 1) // 2 if value & 1 else value // 2


def decode(base: bytes, patch: bytes) -> bytes:
    """The target, of a patch that is good."""
    reader, target = _Reader(patch), b""
    assert reader.take(4) == b"MPT\x01"
    assert reader.uint() == len(base)
    size = reader.uint()
    cursor = 0
    while len(target) < size:
        if reader.byte() == 2:
            target += _frame(reader, base)
        else:
            made, cursor = _block(reader, base, cursor)
            target += made
    assert reader.at == len(patch)
    return target


def _frame(reader: _Reader, base: bytes) -> bytes:
    length, codec = reader.uint(), reader.byte()
    prefix = _prefix(reader, base) if codec == 5 else b""
    made = _expand(codec, reader.take(reader.uint()), prefix)
    assert len(made) == length
    return made


def _prefix(reader: _Reader, base: bytes) -> bytes:
    offset = reader.uint()
    return base[offset : offset + reader.uint()]


def _expand(codec: int, data: bytes, prefix: bytes) -> bytes:
    if codec == 1:
        return data
    if codec == 2:
        return zlib.decompress(data, -15)
    if codec == 3:
        return lzma.decompress(data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}])
    zstd = zstandard()
    made: bytes = zstd.decompress(data, zstd.ZstdDict(prefix, is_raw=True).as_prefix if codec == 5 else None)
    return made


def _section(reader: _Reader, length: int, base: bytes) -> bytes:
    codec = reader.byte()
    if codec == 0:
        return bytes(length)
    if codec == 1:
        return reader.take(length)
    if codec == 6:
        return _sparse(reader, length, base)
    prefix = _prefix(reader, base) if codec == 5 else b""
    made = _expand(codec, reader.take(reader.uint()), prefix)
    assert len(made) == length
    return made


def _sparse(reader: _Reader, length: int, base: bytes) -> bytes:
    count, gap_bytes = reader.uint(), reader.uint()
    gaps, values = _section(reader, gap_bytes, base), iter(_section(reader, count, base))
    made = bytearray()
    for gap in gaps:
        made += bytes(gap)
        if gap < 255:
            made.append(next(values) + 1)
    return bytes(made) + bytes(length - len(made))


def _block(reader: _Reader, base: bytes, cursor: int) -> tuple[bytes, int]:
    control = _Reader(_section(reader, reader.uint(), base))
    forms = reader.take(reader.uint())
    segments, olds, lengths = [], [b""] * 32, [0] * 32
    while control.at < len(control.data):
        head = control.uint()
        stream, length = head & 31, head >> 5
        old = b""
        if not stream or forms[stream - 1] & 15 in (1, 2, 3):
            offset = cursor + control.sint()
            cursor = offset + length
            old = base[offset:cursor]
        segments.append((stream, length, old))
        olds[stream] += old
        lengths[stream] += length
    streams = [_Reader(b"")]
    for number, form in enumerate(forms, 1):
        streams.append(_Reader(_stream(reader, form & 15, 1 << (form >> 4), lengths[number], olds[number], base)))
    return b"".join(streams[stream].take(length) if stream else old for stream, length, old in segments), cursor


def _stream(reader: _Reader, mode: int, width: int, length: int, old: bytes, base: bytes) -> bytes:
    if mode == 0:
        return _section(reader, length, base)
    bits, count = 8 * width, length // width
    before = [int.from_bytes(old[at : at + width], "little") for at in range(0, len(old), width)] or [0] * count
    zeros = reader.byte()
    shifts = _shifts(reader, before, bits)
    numbers = [0] * count
    low = _low_bits(reader, shifts, base)
    planes = [_section(reader, count, base) for _ in range(-(-(bits - zeros - min(shifts)) // 8))]
    for place in range(count):
        high = sum(plane[place] << (8 * number) for number, plane in enumerate(planes))
        numbers[place] = (high << shifts[place] | low[place]) % (1 << bits)
    made = (_element(mode, u, b, zeros, bits) for u, b in zip(numbers, before, strict=True))
    return b"".join((element % (1 << bits)).to_bytes(width, "little") for element in made)


def _shifts(reader: _Reader, before: list[int], bits: int) -> list[int]:
    place = reader.byte()
    if place == 255:
        return [reader.byte()] * len(before)
    first, more = reader.byte(), reader.byte()
    table = reader.take(more + 1)
    found = [min(510, (b % (1 << (bits - 1))) >> place) for b in before]
    return [table[min(max(magnitude - first, 0), more)] for magnitude in found]


def _low_bits(reader: _Reader, shifts: list[int], base: bytes) -> list[int]:
    """The low bits of each number: in groups of one shift, each filled up to a byte."""
    low = [0] * len(shifts)
    if not any(shifts):
        return low
    sizes = {shift: (shifts.count(shift) * shift + 7) // 8 for shift in sorted(set(shifts))}
    whole = _Reader(_section(reader, sum(sizes.values()), base))
    for shift, size in sizes.items():
        stream = int.from_bytes(whole.take(size), "little")
        for place, own in enumerate(shifts):
            if own == shift:
                low[place] = stream % (1 << shift)
                stream >>= shift
    return low


def _element(mode: int, u: int, b: int, zeros: int, bits: int) -> int:
    top = 1 << (bits - 1)
    if mode == 1:
        return b ^ (u << zeros)
    if mode == 4:
        return (u >> 1) << zeros | (top if u & 1 else 0)
    change = top if u == 1 else ((u >> 1) << zeros) * (-1 if u & 1 else 1)
    if mode == 3:
        ordered = (b ^ (2 * top - 1) if b & top else b | top) + change
        ordered %= 2 * top
        return ordered ^ top if ordered & top else ordered ^ (2 * top - 1)
    return b + change
