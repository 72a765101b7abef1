"""How devices get files beside MQTT: the table `[transfer]` of `hub.toml`, with `[transfer.s3]`. Used by `config`."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

MIN_LIFE_S: Final = 60.0
MAX_LIFE_S: Final = 86_400.0
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")


class S3Credentials(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What signs requests to the store."""

    access_key_id: str
    secret_access_key: str

    def __repr__(self) -> str:
        return f"S3Credentials({self.access_key_id})"


class S3Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bucket of an S3-compatible store, to which the hub copies the files that devices need (extra `s3`).

    `endpoint` is the store's address (https), `bucket` and `region` as it names them, `prefix` a folder inside the
    bucket. The bucket stays private: devices get addresses that are signed for `transfer.url_life_s`. `credentials` is
    a file (0600) with the lines access_key_id = "..." and secret_access_key = "..."; without one they are taken from
    AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment. One upload has `upload_timeout_s` seconds. What the
    store is found to hold is looked up again after `look_again_s`.
    """

    endpoint: str = ""
    bucket: str = ""
    region: str = "us-east-1"
    prefix: str = ""
    credentials: str = ""
    upload_timeout_s: float = 3600.0
    look_again_s: float = 21_600.0

    def __post_init__(self) -> None:
        if not self.bucket:
            return
        check_address("transfer.s3.endpoint", self.endpoint)
        if self.prefix and not _PREFIX.fullmatch(self.prefix):
            raise ValueError(f"transfer.s3.prefix: expected plain names between slashes, got {self.prefix[:80]!r}")
        check_numbers("transfer.s3", {name: getattr(self, name) for name in ("upload_timeout_s", "look_again_s")})

    def load_credentials(self, environment: Mapping[str, str] = os.environ) -> S3Credentials:
        """Raises ValueError that names what is missing; never with a secret in it."""
        return read_credentials("transfer.s3.credentials", self.credentials, environment)


class TransferSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files over HTTPS, beside MQTT. With `https` devices are offered addresses on this hub's API.

    `public_url` is what stands before /api/v1 in these addresses where it is not the hub itself (a CDN in front of it:
    https://files.example.org). An address and a grant for a gateway hold between half of `url_life_s` and all of it.
    At most `transfers` files are sent at a time, `transfers_per_address` of them to one address; a reader that takes
    nothing for `write_s` seconds is let go.
    """

    https: bool = True
    public_url: str = ""
    url_life_s: float = 3600.0
    transfers: int = 128
    transfers_per_address: int = 32
    write_s: float = 30.0
    s3: S3Settings = S3Settings()

    def __post_init__(self) -> None:
        if self.public_url:
            check_address("transfer.public_url", self.public_url)
        if not MIN_LIFE_S <= self.url_life_s <= MAX_LIFE_S:
            raise ValueError(
                f"transfer.url_life_s: expected {MIN_LIFE_S:.0f} to {MAX_LIFE_S:.0f} seconds, got {self.url_life_s:g}"
            )
        names = ("transfers", "transfers_per_address", "write_s")
        check_numbers("transfer", {name: getattr(self, name) for name in names})


def read_credentials(setting: str, file: str, environment: Mapping[str, str]) -> S3Credentials:
    """From the file that `setting` names, or the environment. Raises ValueError, never with a secret in it."""
    if not file:
        try:
            return S3Credentials(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
        except KeyError as error:
            raise ValueError(f"{setting}: no file is named, and {error} is not set") from error
    path = Path(file)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise ValueError(f"{path}: expected a file that only its owner can read (0600), got {mode:04o}")
        return msgspec.convert(tomllib.loads(path.read_text()), S3Credentials)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{setting}: {path}: {error}") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ValueError(f"{path}: expected access_key_id and secret_access_key, one per line") from error


def check_numbers(table: str, amounts: Mapping[str, float]) -> None:
    """Raises ValueError unless each is above 0."""
    for name, amount in amounts.items():
        if not amount > 0:
            raise ValueError(f"{table}.{name}: expected a number above 0, got {amount}")


def check_address(name: str, url: str, plain: bool = False) -> None:
    """Raises ValueError unless it is https://HOST with a path at most; http to this machine only, or where `plain`."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    safe = parts.scheme == "https" or (parts.scheme == "http" and (plain or host in LOOPBACK))
    if not safe or not host or parts.query or parts.fragment or parts.username or "@" in parts.netloc:
        raise ValueError(f"{name}: expected https://HOST or https://HOST/PATH, got {url[:200]!r}")
