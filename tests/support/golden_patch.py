"""The golden patch: made once, of every codec, mode and width. What it is made of is what decoders read for ever."""

from __future__ import annotations

from pathlib import Path


def _base() -> bytes:
    """4,096 bytes that any language makes: x = (x * 75 + 74) mod 65537, from 1 on, its lowest byte."""
    made, x = bytearray(), 1
    for _ in range(4096):
        x = (x * 75 + 74) % 65537
        made.append(x & 0xFF)
    return bytes(made)


BASE = _base()
PATCH = (Path(__file__).parent.parent / "modules" / "golden" / "patch.mpt").read_bytes()
SIZE = 18_237
DIGEST = "a3acccf08f1c9104a785842c234ebcfa734cb7b4b15578eabde398343d9a5b8a"
