"""What a worker is told about the other version of its module. No NumPy: the parent writes it, workers read it."""

from __future__ import annotations

from typing import Literal

import msgspec

from modules.errors import MALFORMED

MAX_TERMS_BYTES = 4096

Way = Literal["shadow", "arm"]


class Terms(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of the other: its version and its manifest's digest; and which share of the predictions both are about.

    With a descriptor beside it, a new connection; without, new terms for the one that stands.
    """

    version: int
    manifest_sha256: str
    way: Way
    share: float
    salt: str = ""


_decoder = msgspec.msgpack.Decoder(Terms)


def encode_terms(terms: Terms) -> bytes:
    return msgspec.msgpack.encode(terms)


def decode_terms(data: bytes) -> Terms | None:
    """None where the bytes are none."""
    try:
        return _decoder.decode(data)
    except MALFORMED:
        return None
