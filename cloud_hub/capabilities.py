"""Rights that are carried, not looked up: who shows one may read one file until it ends, and nothing else.

A capability is an HMAC-SHA-256 (RFC 2104) over its purpose, the file's digest and its end, made with a key that only
this hub holds. Nothing is kept about those given out. Made by `ways` for devices that may have the file; checked by
`api.blobs` (purpose url) and `serving` (purpose grant).

The key lies in `keys/capability.key` (0600, or sealed), made when there is none, and a new one is made each month; the
one before counts for a day longer than anything that it signed. A key that is sealed cannot be written over: then the
new one lives as long as this process, and devices ask once more after a restart. Replicas of a hub must take each
other's rights: theirs are made each month from a key that all of them hold, and written nowhere.
"""

from __future__ import annotations

import hmac
import math
import secrets
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from typing import Final, Literal

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloud_hub.clock import Clock
from cloud_hub.config import HubPaths
from cloud_hub.errors import Conflict
from cloud_hub.hardening import is_opened, opened
from cloud_hub.trust.keys import DIRECTOR_TIMESTAMP, key_folders, write_private

Purpose = Literal["url", "grant"]
ROTATE_S: Final = 30 * 86_400.0
MAX_LIFE_S: Final = 86_400.0
KEY_BYTES: Final = 32
MAX_TOKEN_CHARS: Final = 80
_KEPT: Final = 2
_ROOT: Final = f"{DIRECTOR_TIMESTAMP}.pem"


@dataclass(frozen=True)
class Secret:
    """One key, and when it was made (seconds since the epoch)."""

    made_at: float
    key: bytes

    def line(self) -> str:
        return f"{self.made_at:.0f} {self.key.hex()}\n"


class Capabilities:
    """Gives rights and checks them. The key is read, or made, at the first use: only a hub that serves needs it."""

    def __init__(self, paths: HubPaths, clock: Clock, shared: bool = False) -> None:
        self._paths = paths
        self._clock = clock
        self._shared = shared  # with other replicas
        self._secrets: list[Secret] = []

    def give(self, purpose: Purpose, sha256: str, expires: int) -> str:
        """The right to one file until `expires` (seconds since the epoch), as text for a URL or a message."""
        return f"{expires}.{_mac(self._current()[0].key, purpose, sha256, expires)}"

    def allows(self, purpose: Purpose, sha256: str, token: str) -> bool:
        """Whether this is a right to this file for this purpose, and has not ended. Takes as long for any wrong one."""
        end, _, mac = token.partition(".")
        if len(token) > MAX_TOKEN_CHARS or not token.isascii() or not end.isdigit():
            return False
        now, expires = self._clock(), int(end)
        newest, *older = self._current()
        keys = [newest, *(old for old in older if now < newest.made_at + MAX_LIFE_S)]
        matches = [hmac.compare_digest(_mac(one.key, purpose, sha256, expires), mac) for one in keys]
        return any(matches) and now < expires

    def end(self, life_s: float) -> int:
        """An end between half of `life_s` and all of it from now (seconds since the epoch).

        It is the same for all who ask within half of it, so that their URLs are the same too.
        """
        step = max(1, int(min(life_s, MAX_LIFE_S) / 2))
        return (math.floor(self._clock() / step) + 2) * step

    def _current(self) -> list[Secret]:
        """The newest first; a new one when that is old."""
        if self._shared:
            return self._derived()
        if not self._secrets:
            self._secrets = self._read()
        if not self._secrets or self._clock() - self._secrets[0].made_at > ROTATE_S:
            fresh = Secret(math.floor(self._clock()), secrets.token_bytes(KEY_BYTES))
            self._secrets = [fresh, *self._secrets][:_KEPT]
            if not is_opened(opened(self._paths.capability_key)):
                write_private(self._paths.capability_key, "".join(one.line() for one in self._secrets).encode())
        return self._secrets

    def _derived(self) -> list[Secret]:
        """This month's and the last one's."""
        month = math.floor(self._clock() / ROTATE_S)
        if not self._secrets or self._secrets[0].made_at != month * ROTATE_S:
            root = next(path for folder in key_folders(self._paths) if (path := folder / _ROOT).is_file()).read_bytes()
            self._secrets = [Secret(one * ROTATE_S, _derive(root, one)) for one in (month, month - 1)]
        return self._secrets

    def _read(self) -> list[Secret]:
        path = opened(self._paths.capability_key)
        if not path.is_file():
            return []
        mode = path.stat().st_mode & 0o777
        if mode & 0o077 and not is_opened(path):
            text = f"{path}: expected a file that only its owner can read (0600), got {mode:04o}; not used"
            raise Conflict("key-exposed", text)
        try:
            rows = [line.split() for line in path.read_text("ascii").splitlines()]
            found = [Secret(float(made_at), bytes.fromhex(key)) for made_at, key in rows]
        except ValueError as error:
            raise _unreadable(str(path)) from error
        if not found or any(len(one.key) != KEY_BYTES for one in found):
            raise _unreadable(str(path))
        return found[:_KEPT]


def _derive(root: bytes, month: int) -> bytes:
    """HKDF (RFC 5869): who has what is made tells nothing of `root`."""
    return HKDF(hashes.SHA256(), KEY_BYTES, None, f"mooring capability {month}".encode()).derive(root)


def _mac(key: bytes, purpose: Purpose, sha256: str, expires: int) -> str:
    digest = hmac.digest(key, f"mooring {purpose} 1\n{sha256}\n{expires}".encode(), "sha256")
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


def _unreadable(path: str) -> Conflict:
    return Conflict(
        "key-type", f"{path}: expected lines of a time and a key in hexadecimal; remove it, a new one is made"
    )
