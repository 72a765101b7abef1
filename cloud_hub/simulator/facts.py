"""What many simulated devices read and one look is enough for: metadata by its digest, manifests, references.

The bytes of each device's own files still come over its own connection; only the reading of what is the same for all is
shared. Bounded. Called by `walk` and `windows`.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import TypeVar

import msgspec

from modules.bundle import sha256_hex
from modules.errors import MALFORMED

MAX_KEPT = 64
_Read = TypeVar("_Read")


class Untrusted(Exception):
    """What the hub gave is not what it must be; `key` as an agent would report it."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class Facts:
    """Parsed values by the digest of their bytes and by who parsed them; the oldest go."""

    def __init__(self) -> None:
        self._kept: dict[tuple[bytes, str], object] = {}

    def read(self, data: bytes, how: Callable[[bytes], _Read]) -> _Read:
        """`how(data)`, once for the same bytes. Raises what `how` raises."""
        key = (sha256(data).digest(), how.__qualname__)
        if key not in self._kept:
            if len(self._kept) >= MAX_KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = how(data)
        return self._kept[key]  # type: ignore[return-value]  # by this very reader


class _Meta(msgspec.Struct, frozen=True):
    version: int


class _Signed(msgspec.Struct, frozen=True):
    version: int
    meta: dict[str, _Meta] = {}


class _File(msgspec.Struct, frozen=True):
    signed: _Signed


_file = msgspec.json.Decoder(_File)


def versions(data: bytes) -> dict[str, int]:
    """Of a timestamp or a snapshot: its own version under "", and of each file that it names. Raises Untrusted."""
    try:
        signed = _file.decode(data).signed
    except MALFORMED as error:
        raise Untrusted("bad-metadata", f"metadata: {error}") from error
    return {"": signed.version} | {name: meta.version for name, meta in signed.meta.items()}


def check_bytes(data: bytes, expected: str, what: str) -> None:
    """Raises Untrusted `length-or-hash`."""
    if (got := sha256_hex(data)) != expected:
        raise Untrusted("length-or-hash", f"{what}: expected {expected}, got {got}")
