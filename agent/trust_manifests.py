"""Manifests by digest: from a small cache, or from the hub, never more than the signed length, always checked.

Called by `agent.trust`. A manifest is the TUF target; the files it lists are the business of `agent.transfer.fetch`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Protocol

from agent.errors import LinkError, TrustError
from agent.trust_checks import Assigned
from modules.bundle import check_digest, sha256_hex
from modules.messages import MAX_BLOCK_BYTES, Answer, Repository


class Get(Protocol):
    """Asks the hub for bytes, as `Link.get`, but blocking. Raises Refused, LinkDown, LinkTimeout."""

    def __call__(
        self, repository: Repository, name: str, offset: int, length: int, held: bytes | None = None, /
    ) -> Answer: ...


class ManifestCache:
    """A folder of verified manifests, so that a warm refresh costs two small requests."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def bytes_of(self, assigned: Assigned, get: Get) -> bytes:
        """Exactly the bytes that were signed. Raises TrustError (unreachable, oversized, length-or-hash)."""
        cached = self._folder / check_digest(assigned.sha256)
        with suppress(OSError):
            data = cached.read_bytes()
            if _is_signed(data, assigned):
                return data
        data = _download(assigned, get)
        if not _is_signed(data, assigned):
            got = f"{len(data)} bytes with {sha256_hex(data)}"
            text = f"{assigned.path}: expected {assigned.length} bytes with {assigned.sha256}, got {got}"
            raise TrustError(text, "length-or-hash")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        cached.write_bytes(data)  # read back against the digest, so neither atomic nor durable
        return data

    def keep_only(self, digests: set[str]) -> None:
        for file in self._folder.iterdir() if self._folder.is_dir() else ():
            if file.name not in digests:
                file.unlink(missing_ok=True)


def _is_signed(data: bytes, assigned: Assigned) -> bool:
    return len(data) == assigned.length and sha256_hex(data) == assigned.sha256


def _download(assigned: Assigned, get: Get) -> bytes:
    """Raises TrustError (unreachable, oversized, length-or-hash)."""
    data = bytearray()
    while len(data) < assigned.length:
        try:
            answer = get("blob", assigned.sha256, len(data), min(MAX_BLOCK_BYTES, assigned.length - len(data)))
        except LinkError as error:
            raise TrustError(f"{assigned.path}: {error}", "unreachable") from error
        if answer.total != assigned.length or not answer.data:
            text = f"{assigned.path}: expected a file of {assigned.length} bytes, got one of {answer.total}"
            raise TrustError(text, "oversized" if answer.total > assigned.length else "length-or-hash")
        data += answer.data
    return bytes(data)
