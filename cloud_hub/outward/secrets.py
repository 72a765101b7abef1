"""Secrets of webhooks: made, sealed for the database, and used to sign what is sent.

Signatures follow the Standard Webhooks specification (standardwebhooks.com): `v1,` and the base64 of HMAC-SHA-256 over
`id.timestamp.body`, under the key that stands in base64 after `whsec_`.

HMAC needs the secret itself, so it cannot be kept as a hash. It lies in the database sealed with AES-256-GCM under
`keys/outward.key` (0600, or sealed to the machine), bound to its webhook: whoever reads the database or a copy of it
can neither forge a delivery nor put one webhook's secret in another's place. Whoever reads the hub's folder can.
Called by `webhooks` (makes) and `sending` (signs).
"""

from __future__ import annotations

import binascii
import hmac
import secrets
from base64 import b64decode, b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloud_hub.errors import BadRequest, Conflict
from cloud_hub.hardening import is_opened, opened
from cloud_hub.trust.keys import write_private

PREFIX: Final = "whsec_"
SECRET_BYTES: Final = (24, 64)
_MADE_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32


def new_secret() -> str:
    return PREFIX + b64encode(secrets.token_bytes(_MADE_BYTES)).decode()


def key_of(secret: str) -> bytes:
    """The bytes under the signature. Raises BadRequest `secret-invalid`, which does not repeat the secret."""
    text = secret.strip()
    try:
        key = b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    least, most = SECRET_BYTES
    if not text.startswith(PREFIX) or not least <= len(key) <= most:
        raise BadRequest("secret-invalid", f"secret: expected {PREFIX} and {least} to {most} bytes in base64")
    return key


def signature(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: one signature per key, newest first, with blanks between."""
    content = f"{message_id}.{timestamp}.".encode() + body
    return " ".join(f"v1,{b64encode(hmac.digest(key, content, 'sha256')).decode()}" for key in keys)


class Vault:
    """Seals and opens secrets. The key is read, or made, at the first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cipher: AESGCM | None = None

    def seal(self, key: bytes, webhook: str) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._open().encrypt(nonce, key, webhook.encode())

    def unseal(self, kept: bytes, webhook: str) -> bytes:
        """Raises Conflict `secret-lost` for what another key has sealed, or for another webhook."""
        try:
            return self._open().decrypt(kept[:_NONCE_BYTES], kept[_NONCE_BYTES:], webhook.encode())
        except InvalidTag as error:
            raise Conflict(
                "secret-lost",
                f"webhook {webhook}: its secret was sealed with another key than {self._path}; restore that file, or "
                f"give it a new one: mooring webhooks rotate {webhook}",
            ) from error

    def _open(self) -> AESGCM:
        if self._cipher is None:
            self._cipher = AESGCM(self._key())
        return self._cipher

    def _key(self) -> bytes:
        path = opened(self._path)
        if not path.is_file():
            write_private(self._path, secrets.token_bytes(_KEY_BYTES).hex().encode() + b"\n")
            path = self._path
        if path.stat().st_mode & 0o077 and not is_opened(path):
            raise Conflict("key-exposed", f"{path}: expected a file that only its owner can read (0600); not used")
        try:
            key = bytes.fromhex(path.read_text("ascii").strip())
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            raise Conflict("key-type", f"{path}: expected {_KEY_BYTES} bytes in hexadecimal; restore it from a backup")
        return key
