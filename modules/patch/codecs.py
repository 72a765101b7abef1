"""Decompression of one section to a length known before, with bounded memory.

Zstandard comes from the standard library (3.14) or from `backports.zstd`; where there is neither, a section that
needs it is a PatchError and the rest works.
"""

from __future__ import annotations

import lzma
import sys
import zlib
from collections.abc import Iterator
from typing import Any

from modules.errors import PatchError
from modules.patch.form import LZMA_DICT, MAX_WINDOW_LOG, Codec

_PIECE = 1 << 18
LZMA_FILTERS = [{"id": lzma.FILTER_LZMA2, "dict_size": LZMA_DICT}]


def zstandard() -> Any:  # noqa: ANN401 (two modules with one interface, and maybe none of them)
    """The Zstandard module; PatchError where there is none."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise PatchError("the patch needs Zstandard, which is not installed here") from error
    return zstd


def unpack(codec: int, data: bytes, length: int, prefix: bytes = b"") -> bytes:
    """Exactly `length` bytes. PatchError if `data` is not what makes them."""
    pieces = Expanding(codec, length, prefix)
    whole = b"".join(pieces.feed(data))
    pieces.finish()
    return whole


class Expanding:
    """One compressed section, fed in pieces, that gives `length` bytes and not one more."""

    def __init__(self, codec: int, length: int, prefix: bytes = b"") -> None:
        self._left = length
        try:
            self._state = _decompressor(codec, prefix)
        except (ValueError, MemoryError) as error:
            raise PatchError("a compressed section cannot be opened") from error
        self._error: type[Exception] = lzma.LZMAError if codec == Codec.LZMA else zlib.error
        if codec in (Codec.ZSTD, Codec.ZSTD_PREFIX):
            self._error = zstandard().ZstdError

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What these bytes of the section make, in pieces."""
        while True:
            # One byte more than is due shows a section that makes too much.
            try:
                made, data = self._step(data, min(self._left + 1, _PIECE))
            except (self._error, EOFError, ValueError, MemoryError) as error:
                raise PatchError("a compressed section is damaged") from error
            if len(made) > self._left:
                raise PatchError("a compressed section makes more bytes than it says")
            self._left -= len(made)
            if made:
                yield made
            if self._state.eof or (not made and not data):
                break
        if data or self._state.unused_data:
            raise PatchError("a compressed section has bytes after its end")

    def finish(self) -> None:
        if self._left or not self._state.eof:
            raise PatchError("a compressed section ends too early")

    def _step(self, data: bytes, most: int) -> tuple[bytes, bytes]:
        made = self._state.decompress(data, most)
        # zlib hands back what it did not look at; the others keep it.
        return made, getattr(self._state, "unconsumed_tail", b"")


def _decompressor(codec: int, prefix: bytes) -> Any:  # noqa: ANN401 (three classes with one interface)
    if codec == Codec.DEFLATE:
        return zlib.decompressobj(-15)
    if codec == Codec.LZMA:
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=LZMA_FILTERS)
    if codec not in (Codec.ZSTD, Codec.ZSTD_PREFIX):
        raise PatchError(f"codec {codec} is not one of this format")
    zstd = zstandard()
    options = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}
    if codec == Codec.ZSTD_PREFIX:
        return zstd.ZstdDecompressor(zstd.ZstdDict(prefix, is_raw=True).as_prefix, options)
    return zstd.ZstdDecompressor(options=options)
