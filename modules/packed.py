"""What a command brings, packed for the way: gzip (RFC 1952), the same bytes for the same content. Pure.

Packed by devices, unpacked by the hub within a bound, because a few bytes can say that they are many.
"""

from __future__ import annotations

import gzip
import zlib

from modules.errors import MessageError

_GZIP = 16 + zlib.MAX_WBITS


def pack(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=6, mtime=0)


def unpack(packed: bytes, most: int) -> bytes:
    """Raises MessageError for what is not whole, or larger than `most` bytes."""
    machine = zlib.decompressobj(_GZIP)
    try:
        data = machine.decompress(packed, most + 1)
    except zlib.error as error:
        raise MessageError(f"result of a command: {error}") from error
    if len(data) > most or not machine.eof or machine.unused_data:
        raise MessageError(f"result of a command: expected one whole gzip of at most {most} bytes")
    return data
