"""A hub's own key for what is carried to another hub, and the seal that it sets: Ed25519 (RFC 8032).

The key is made at its first use and stays in the hub's directory. It vouches for packs and receipts and for nothing
that devices take. Used by `packing`, `merging` and `receipts`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from cloud_hub.errors import BadRequest, Unprocessable
from cloud_hub.trust.keys import write_private

MAX_KEY_CHARS: Final = 1000


class Seal:
    """The key in `path`. Two processes that make it at once: the second finds the first's."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def sign(self, digest: bytes) -> bytes:
        return self._key().sign(digest)

    @property
    def public_key(self) -> str:
        """PEM, for `mooring site add` at the other hub."""
        raw = self._key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return raw.decode()

    def _key(self) -> Ed25519PrivateKey:
        if not self._path.is_file():
            new = Ed25519PrivateKey.generate()
            write_private(self._path, new.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key = load_pem_private_key(self._path.read_bytes(), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise Unprocessable("site-key-invalid", f"{self._path}: expected an Ed25519 key")
        return key


def parse_key(text: str) -> Ed25519PublicKey:
    """Raises BadRequest `site-key-invalid`."""
    try:
        key = load_pem_public_key(text[:MAX_KEY_CHARS].encode())
    except ValueError as error:
        raise BadRequest("site-key-invalid", "expected what `mooring site key` prints at the other hub") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BadRequest("site-key-invalid", "expected an Ed25519 key, as `mooring site key` prints it")
    return key


def fingerprint(text: str) -> str:
    """SHA-256 (hex) of the key, to read out over the telephone."""
    raw = parse_key(text).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(raw).hexdigest()


def holds(public_key: str, digest: bytes, signature: bytes) -> bool:
    try:
        parse_key(public_key).verify(signature, digest)
    except InvalidSignature:
        return False
    return True
