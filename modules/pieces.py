"""Tensors that do not travel inside their sample: what stands in their place, and the pieces that the bytes come in.

A large tensor is named by the SHA-256 of its bytes; they follow in the blob stream, after everything else, once for
each digest. Pure.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from modules.bundle import check_digest
from modules.errors import MALFORMED, ChunkError, MessageError

PIECE_BYTES = 128 * 1024
MAX_BLOB_BYTES = 16 * 1024 * 1024


class Withheld(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor whose bytes are not in the sample: dropped by the policy, or on their way as a blob of `size` bytes."""

    name: str
    side: Literal["input", "output"]
    datatype: str
    shape: tuple[int, ...]
    why: Literal["drop", "blob"]
    sha256: str = ""
    size: int = 0


class BlobPiece(msgspec.Struct, frozen=True):
    """Item of the blob stream: the bytes from `offset` on, of a tensor's `size`."""

    sha256: str
    size: int
    offset: int
    data: bytes

    def __post_init__(self) -> None:
        end = self.offset + len(self.data)
        if not (0 < self.size <= MAX_BLOB_BYTES and 0 <= self.offset < end <= self.size):
            raise ValueError(f"expected bytes within {self.size}, which are at most {MAX_BLOB_BYTES}, got up to {end}")
        if self.offset % PIECE_BYTES or (len(self.data) != PIECE_BYTES and end != self.size):
            raise ValueError(f"expected whole pieces of {PIECE_BYTES} bytes, got {len(self.data)} from {self.offset}")


_piece: msgspec.msgpack.Decoder[BlobPiece] = msgspec.msgpack.Decoder(BlobPiece)


def cut(sha256: str, data: bytes) -> list[bytes]:
    """The encoded pieces of a blob, in order."""
    starts = range(0, len(data), PIECE_BYTES)
    pieces = (BlobPiece(sha256, len(data), at, data[at : at + PIECE_BYTES]) for at in starts)
    return [msgspec.msgpack.encode(piece) for piece in pieces]


def decode_piece(body: bytes) -> BlobPiece:
    """Raises MessageError."""
    try:
        piece = _piece.decode(body)
        check_digest(piece.sha256)
    except (*MALFORMED, ValueError, ChunkError) as error:
        raise MessageError(f"piece of a blob: {error}") from error
    return piece
