"""Bounded reading for the decoder: varints and exact lengths from the patch, byte ranges from the base."""

from __future__ import annotations

from typing import BinaryIO

from modules.errors import PatchError
from modules.patch.form import MAX_PREFIX, PREFIX_BESIDES, PREFIX_PER_BYTE

_U64_BYTES = 10
_PIECE = 1 << 18


class Input:
    """The patch, read once from its start to its end."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def exactly(self, length: int) -> bytes:
        """`length` must have been checked against a bound before."""
        parts = []
        while length > 0:
            part = self._source.read(min(length, _PIECE))
            if not part:
                raise PatchError(f"the patch ends {length} bytes too early")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def byte(self) -> int:
        return self.exactly(1)[0]

    def uint(self, most: int, what: str) -> int:
        """An unsigned LEB128 number of at most `most`."""
        value = 0
        for place in range(_U64_BYTES):
            byte = self.byte()
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                if value > most:
                    raise PatchError(f"{what} is {value}, more than the {most} allowed here")
                return value
        raise PatchError(f"{what} is a number without an end")

    def at_end(self) -> bool:
        return not self._source.read(1)


class Base:
    """The file the device has, read anywhere within its length."""

    def __init__(self, source: BinaryIO, size: int, target_size: int) -> None:
        self._source = source
        self.size = size
        self._prefixes_left = PREFIX_PER_BYTE * target_size + PREFIX_BESIDES

    def check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise PatchError(f"a reference to bytes {offset} to {offset + length} of a base of {self.size} bytes")

    def prefix(self, patch: Input) -> bytes:
        """The stretch that the patch says next, for a compressed section to refer to."""
        offset = patch.uint(self.size, "the start of a prefix")
        length = patch.uint(min(MAX_PREFIX, self._prefixes_left), "the length of a prefix")
        self._prefixes_left -= length
        return self.read(offset, length)

    def read(self, offset: int, length: int) -> bytes:
        """At most MAX_PREFIX bytes, all of them or PatchError."""
        self.check(offset, length)
        if length > MAX_PREFIX:
            raise PatchError(f"{length} bytes of the base at once are more than {MAX_PREFIX}")
        self._source.seek(offset)
        parts = []
        while length > 0:
            part = self._source.read(length)
            if not part:
                raise PatchError("the base ends before its size")
            parts.append(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def uints(data: bytes) -> list[int]:
    """All LEB128 numbers of `data`, each below 2**70."""
    found = []
    value = place = 0
    for byte in data:
        value |= (byte & 0x7F) << place
        if byte < 0x80:
            found.append(value)
            value = place = 0
        elif (place := place + 7) >= 7 * _U64_BYTES:
            raise PatchError("a number without an end among the segments")
    if place:
        raise PatchError("the segments end within a number")
    return found


def signed(value: int) -> int:
    """Zig-zag: 0, -1, 1, -2, ..."""
    return (value >> 1) ^ -(value & 1)
