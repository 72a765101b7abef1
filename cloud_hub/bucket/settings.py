"""Where blobs lie when they do not lie in a folder: the setting `blobs` and the table `[bucket]`. Used by `config`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from cloud_hub.transfer_settings import S3Credentials, check_address, check_numbers, read_credentials

FOLDER: Final = "folder"
MIB: Final = 1024 * 1024
_PLACE: Final = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9_.-]+)*)/?")


@dataclass(frozen=True)
class Place:
    """A folder in a bucket; `prefix` is empty for all of it."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """s3://BUCKET/FOLDER. Raises ValueError."""
        match = _PLACE.fullmatch(text)
        if match is None or any(part in (".", "..") for part in match[2].split("/")):
            raise ValueError(f"blobs: expected {FOLDER} or s3://BUCKET/FOLDER, got {text[:200]!r}")
        return cls(match[1], match[2].strip("/"))

    def below(self, name: str) -> Place:
        """A folder in this one."""
        return Place(self.bucket, f"{self.prefix}/{name}" if self.prefix else name)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


class BucketSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The S3-compatible store of `blobs = "s3://BUCKET/FOLDER"` (extra `s3`), which all replicas of a hub share.

    `endpoint` is the store's address (https), `region` as it names it. Plain http to another machine is refused unless
    `plain_http` says that nobody else is in that network. `credentials` is as for `[transfer.s3]`. A question to the
    store has `request_timeout_s` seconds, tries again included, and so has each piece of a file; a whole file has
    `transfer_timeout_s`. What was read is kept in the hub's folder, at most `cache_mib`, which must be more than the
    largest file. With `checksums` the store checks the SHA-256 of each part that it gets; some old ones cannot.
    """

    endpoint: str = ""
    region: str = "us-east-1"
    credentials: str = ""
    plain_http: bool = False
    checksums: bool = True
    cache_mib: float = 4096.0
    request_timeout_s: float = 20.0
    transfer_timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        if self.endpoint:
            check_address("bucket.endpoint", self.endpoint, plain=self.plain_http)
        amounts = {name: getattr(self, name) for name in ("cache_mib", "request_timeout_s", "transfer_timeout_s")}
        check_numbers("bucket", amounts)

    def load_credentials(self, environment: Mapping[str, str] = os.environ) -> S3Credentials:
        """Raises ValueError that names what is missing; never with a secret in it."""
        return read_credentials("bucket.credentials", self.credentials, environment)


def check_blobs(blobs: str, settings: BucketSettings) -> None:
    """Raises ValueError on a setting `blobs` that these settings do not go with."""
    if blobs == FOLDER:
        return
    Place.parse(blobs)
    if not settings.endpoint:
        raise ValueError("bucket.endpoint: expected the address of the store that `blobs` names, got nothing")
