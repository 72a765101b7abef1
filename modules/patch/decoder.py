"""The decoder: reads the patch once, the base anywhere, and writes the target from its first byte to its last.

What it holds at a time is bounded by modules.patch.form, whatever the size of the model. Every length is checked before
memory is taken for it, and every record makes at least one byte of the target, so the work is bounded by `size`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from modules.errors import PatchError
from modules.patch.codecs import Expanding
from modules.patch.form import (
    DIFFERENCES,
    MAGIC,
    MAX_BLOCK,
    MAX_CONTROL,
    MAX_STREAMS,
    STREAM_BITS,
    Codec,
    Mode,
    Op,
)
from modules.patch.reading import Base, Input, signed, uints

_LARGEST = (1 << 63) - 1
_PIECE = 1 << 18
_PLAIN = (Codec.RAW, Codec.DEFLATE, Codec.LZMA, Codec.ZSTD, Codec.ZSTD_PREFIX)

Write = Callable[[bytes], object]


def apply(base: BinaryIO, patch: BinaryIO, write: Write, size: int) -> None:
    """Writes the target of exactly `size` bytes. `base` can seek; `patch` is only read onwards.

    Raises PatchError for a patch that is damaged, hostile or for another base; what was written until then is void.
    The caller checks the result's digest: the patch is not trusted. OSError of the files goes through.
    """
    _Decoder(base, patch, write, size).run()


class _Segment(NamedTuple):
    stream: int
    length: int


class _Decoder:
    def __init__(self, base: BinaryIO, patch: BinaryIO, write: Write, size: int) -> None:
        self._patch = Input(patch)
        self._base = Base(base, base.seek(0, 2), size)
        self._write = write
        self._left = size
        self._cursor = 0  # the end of the latest reference to the base

    def run(self) -> None:
        if self._patch.exactly(len(MAGIC)) != MAGIC:
            raise PatchError("this is not a patch, or one of a later format")
        if self._patch.uint(_LARGEST, "the size of the base") != self._base.size:
            raise PatchError("the patch is for a base of another size")
        if self._patch.uint(_LARGEST, "the size of the target") != self._left:
            raise PatchError("the patch makes a target of another size")
        while self._left:
            op = self._patch.byte()
            if op == Op.BLOCK:
                self._block()
            elif op == Op.FRAME:
                self._frame()
            else:
                raise PatchError(f"record {op} is not one of this format")
        if not self._patch.at_end():
            raise PatchError("the patch has bytes after its end")

    def _frame(self) -> None:
        """One compressed stretch of any length, passed on as it comes."""
        length = self._patch.uint(self._left, "the length of a frame")
        codec = self._patch.byte()
        prefix = b""
        if not length or codec not in _PLAIN:
            raise PatchError("a frame of nothing, or of a codec that frames do not have")
        if codec == Codec.ZSTD_PREFIX:
            prefix = self._base.prefix(self._patch)
        coded = self._patch.uint(length + length // 64 + 1024, "the length of a compressed frame")
        self._left -= length
        if codec == Codec.RAW:
            return self._raw(length, coded)
        expanding = Expanding(codec, length, prefix)
        while coded:
            data = self._patch.exactly(min(coded, _PIECE))
            coded -= len(data)
            for piece in expanding.feed(data):
                self._write(piece)
        expanding.finish()

    def _raw(self, length: int, coded: int) -> None:
        if length != coded:
            raise PatchError("a plain frame of another length than its bytes")
        while length:
            data = self._patch.exactly(min(length, _PIECE))
            length -= len(data)
            self._write(data)

    def _block(self) -> None:
        """References to the base and up to MAX_STREAMS streams, woven by the block's segments."""
        from modules.patch.planes import read_section  # NumPy: a patch of frames alone does without

        control = read_section(self._patch, self._patch.uint(MAX_CONTROL, "the length of the segments"))
        count = self._patch.uint(MAX_STREAMS, "the number of streams")
        forms = [_form(self._patch.byte()) for _ in range(count)]
        segments, lengths, references = self._segments(uints(control), forms)
        made = [
            _Cut(self._stream(forms[number], lengths[number + 1], references[number + 1])) for number in range(count)
        ]
        copies = iter(references[0])
        for segment in segments:
            if segment.stream:
                self._write(made[segment.stream - 1].take(segment.length))
            else:
                self._copy(*next(copies))

    def _segments(
        self, numbers: list[int], forms: list[tuple[Mode, int]]
    ) -> tuple[list[_Segment], list[int], list[list[tuple[int, int]]]]:
        """The order, each stream's length, and each stream's references to the base (0: bytes taken as they are)."""
        lengths = [0] * (len(forms) + 1)
        references: list[list[tuple[int, int]]] = [[] for _ in lengths]
        segments = []
        following = iter(numbers)
        for head in following:
            segment = _Segment(head & MAX_STREAMS, head >> STREAM_BITS)
            if segment.stream > len(forms) or not 0 < segment.length <= self._left:
                raise PatchError("a segment of no length, of no stream, or behind the target's end")
            self._left -= segment.length
            mode, width = forms[segment.stream - 1] if segment.stream else (None, 1)
            if segment.length % width:
                raise PatchError("a segment of half an element")
            if mode is None or mode in DIFFERENCES:
                step = next(following, None)
                if step is None:
                    raise PatchError("a segment without its place in the base")
                offset = self._cursor + signed(step)
                self._base.check(offset, segment.length)
                self._cursor = offset + segment.length
                references[segment.stream].append((offset, segment.length))
            lengths[segment.stream] += segment.length
            segments.append(segment)
        if not segments or not all(lengths[1:]) or sum(lengths[1:]) > MAX_BLOCK:
            raise PatchError("a block of nothing, with an unused stream, or with too much in its streams")
        return segments, lengths, references

    def _stream(self, form: tuple[Mode, int], length: int, references: list[tuple[int, int]]) -> bytes:
        from modules.patch.streams import read_stream

        old = b"".join(self._base.read(*reference) for reference in references)
        return read_stream(self._patch, *form, length, old, self._base)

    def _copy(self, offset: int, length: int) -> None:
        while length:
            piece = self._base.read(offset, min(length, _PIECE))
            self._write(piece)
            offset += len(piece)
            length -= len(piece)


class _Cut:
    """Bytes that are given out from their start."""

    def __init__(self, whole: bytes) -> None:
        self._whole = whole
        self._at = 0

    def take(self, length: int) -> bytes:
        self._at += length
        return self._whole[self._at - length : self._at]


def _form(byte: int) -> tuple[Mode, int]:
    """A stream's mode and its elements' width in bytes."""
    if byte >> 6 or byte & 15 > max(Mode):
        raise PatchError(f"a stream of form {byte} is not one of this format")
    mode, width = Mode(byte & 15), 1 << (byte >> 4)
    if mode is Mode.BYTES and width != 1:
        raise PatchError("a stream of bytes wider than a byte")
    return mode, width
