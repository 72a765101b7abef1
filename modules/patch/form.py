"""The patch format's numbers: magic, kinds, and the bounds that keep a decoder within its memory.

Decoder (modules.patch) and encoder (cloud_hub.patches) share them; docs/understand/patches.md explains each.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

MAGIC: Final = b"MPT\x01"

# What one block may hold besides references to the base; what a decoder must hold several times over.
MAX_BLOCK: Final = 1 << 20
# Segments of a block, once decoded.
MAX_CONTROL: Final = 1 << 16
# Bytes of the base that one compressed section may refer to.
MAX_PREFIX: Final = 4 << 20
# All prefixes of a patch together, for each byte of the target and besides: reading them is work without output.
PREFIX_PER_BYTE: Final = 64
PREFIX_BESIDES: Final = 64 << 20
# Zstandard's window: a decoder holds as much, and the prefix.
MAX_WINDOW_LOG: Final = 23
# LZMA's dictionary, which is not written in its raw form.
LZMA_DICT: Final = 1 << 20
# Streams of one block: their numbers are five bits of a segment's head, and 0 is the reference to the base.
MAX_STREAMS: Final = 31
STREAM_BITS: Final = 5


class Op(IntEnum):
    """What the next record of a patch is."""

    BLOCK = 1
    FRAME = 2


class Codec(IntEnum):
    """How the bytes of one section are compressed. Up to LZMA the standard library does without more."""

    ZERO = 0
    RAW = 1
    DEFLATE = 2
    LZMA = 3
    ZSTD = 4
    ZSTD_PREFIX = 5
    SPARSE = 6


class Mode(IntEnum):
    """How a stream's numbers make the target's elements."""

    BYTES = 0
    XOR = 1
    INTEGER = 2
    FLOAT = 3
    NEW_FLOAT = 4
    NEW_INTEGER = 5


# These need the base's elements.
DIFFERENCES: Final = frozenset({Mode.XOR, Mode.INTEGER, Mode.FLOAT})
# Says that a stream has one shift, not one for each magnitude of the base.
NO_CONTEXT: Final = 0xFF
