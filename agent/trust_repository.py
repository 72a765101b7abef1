"""One TUF repository as this device sees it: python-tuf's client over the link, on a folder that is kept or dropped.

python-tuf writes what it verified while it goes on. That is too early for the director: another device's metadata has
good signatures, perhaps with higher versions, and must leave no trace but new roots, which all devices share. So each
refresh works on a copy of the trusted folder, which takes its place only by `keep`. The image repository is one for all
devices: there each verified file stays, also when the next one is refused (TUF specification, 5.3 to 5.6).
Imports python-tuf, so `agent.trust` imports it only in its thread.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from agent.errors import LinkError, Refused, TrustError
from agent.files import write_durably
from agent.trust_floor import Versions
from agent.trust_manifests import Get
from modules.messages import MAX_BLOCK_BYTES, Answer, Repository

_Signed = TypeVar("_Signed", Root, Timestamp, Snapshot, Targets)
LIMITS = UpdaterConfig(
    max_root_rotations=64,
    max_delegations=32,
    root_max_length=512_000,
    timestamp_max_length=16_384,
    snapshot_max_length=2_000_000,
    targets_max_length=5_000_000,
)


class Unreachable(DownloadError):
    """The hub could not be asked, or answered with nothing of use."""


class LinkFetcher(FetcherInterface):
    """Metadata files by `Get`. `last` is the file asked for most recently, which tells what a failure was about.

    A TUF client first asks for the next root, which seldom exists, then for the timestamp, which seldom is new. The
    hub answers both at once when the question says which timestamp is `held`: so a poll is one small request. What
    comes that way is verified like any other timestamp; "the one you hold" is the oldest freeze there is, and expires.
    """

    def __init__(self, repository: Repository, get: Get, held: bytes = b"") -> None:
        self.last = ""
        self._repository, self._get, self._held = repository, get, held
        self._ahead: bytes | None = None  # the timestamp that came with the refusal of a root

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.last = url.rpartition("/")[2]
        if self.last == "timestamp.json" and self._ahead is not None:
            yield self._ahead
            return
        offset, total = 0, 1
        while offset < total:
            answer = self._piece(offset)
            if offset and answer.total != total:
                raise Unreachable(f"{self.last}: changed while it was read")
            total = answer.total
            if not answer.data and offset < total:
                raise Unreachable(f"{self.last}: expected bytes from {offset} of {total}, got none")
            offset += len(answer.data)
            yield answer.data

    def _piece(self, offset: int) -> Answer:
        digest = sha256(self._held).digest() if self._held else b""
        held = digest if self.last.endswith(".root.json") else None
        try:
            return self._get(self._repository, self.last, offset, MAX_BLOCK_BYTES, held)
        except Refused as error:
            if error.key == "not-found":
                if held is not None and error.timestamp is not None:
                    self._ahead = error.timestamp or self._held or None
                raise DownloadHTTPError(str(error), 404) from error
            raise Unreachable(f"{self.last}: {error}") from error
        except LinkError as error:
            raise Unreachable(f"{self.last}: {error}") from error


class Reading:
    """A refreshed repository, not yet trusted: `keep` makes it so, `drop` forgets it."""

    def __init__(self, name: Repository, trusted: Path, scratch: Path, bootstrap: bytes, get: Get) -> None:
        """Refreshes. Raises TrustError."""
        self._name, self._trusted, self._scratch = name, trusted, scratch
        _copy(trusted, scratch)
        self._fetcher = LinkFetcher(name, get, _timestamp(scratch))
        try:
            self._updater = Updater(str(scratch), f"{name}/", fetcher=self._fetcher, config=LIMITS, bootstrap=bootstrap)
            self._updater.refresh()
            self.root = _signed(scratch / "root.json", Root)
            self.targets = _signed(scratch / "targets.json", Targets)
            self.versions = self._read_versions()
        except (RepositoryError, DownloadError, OSError) as error:
            self._keep_what_may_stay()
            raise self._refusal(error) from error

    def target(self, path: str) -> TargetFile | None:
        """The target, also from delegated roles, which are asked for here. Raises TrustError."""
        try:
            return self._updater.get_targetinfo(path)
        except (RepositoryError, DownloadError, OSError) as error:
            self._keep_what_may_stay()
            raise self._refusal(error) from error

    def keep(self) -> None:
        """From now on the trusted folder. A power cut in between loses the folder, which costs a download."""
        shutil.rmtree(self._trusted, ignore_errors=True)
        self._scratch.rename(self._trusted)

    def drop(self) -> None:
        """Only verified roots stay: they revoke keys, whatever came after them."""
        _keep_roots(self._scratch, self._trusted)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _keep_what_may_stay(self) -> None:
        with suppress(OSError):
            if self._name == "image":
                self.keep()
        self.drop()

    def _read_versions(self) -> Versions:
        timestamp = _signed(self._scratch / "timestamp.json", Timestamp)
        snapshot = _signed(self._scratch / "snapshot.json", Snapshot)
        keys = tuple(sorted(self.root.roles[Timestamp.type].keyids))
        return Versions(self.root.version, timestamp.version, snapshot.version, self.targets.version, keys)

    def _refusal(self, error: Exception) -> TrustError:
        key = _key(error, self._fetcher.last)
        about = self._fetcher.last or "the root this device was given"
        return TrustError(f"{self._name} repository, {about}: {str(error) or type(error).__name__}", key)


def _key(error: Exception, last: str) -> str:
    """What a failure of python-tuf is. Most specific first; `last` is the file that was asked for."""
    match error:
        case DownloadLengthMismatchError():
            return "oversized"
        case DownloadError():
            return "unreachable"
        case UnsignedMetadataError():
            return "bad-signature"
        case ExpiredMetadataError():
            return "freeze"
        case LengthOrHashMismatchError():
            return "mix-and-match"
        case BadVersionNumberError():
            return "rollback" if _is_rollback(str(error), last) else "mix-and-match"
        case OSError():
            return "io"
    return "bad-metadata"


def _is_rollback(text: str, last: str) -> bool:
    """Lower than before, or merely another version than the file above it names? python-tuf says both by one class."""
    if last.endswith(("root.json", "timestamp.json")):
        return True
    return last.endswith("snapshot.json") and not text.startswith("Expected snapshot version")


def _signed(path: Path, kind: type[_Signed]) -> _Signed:
    """What python-tuf has just verified and written: its public way to read all of a role."""
    signed = Metadata[_Signed].from_bytes(path.read_bytes()).signed
    if not isinstance(signed, kind):
        raise RepositoryError(f"{path.name}: expected {kind.__name__}, got {type(signed).__name__}")
    return signed


def _keep_roots(scratch: Path, trusted: Path) -> None:
    """Copies what is new in python-tuf's history of roots, which it verifies again from the first one on."""
    with suppress(OSError):
        for file in sorted((scratch / "root_history").glob("*.root.json")):
            kept = trusted / "root_history" / file.name
            if not kept.exists():
                kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_durably(kept, file.read_bytes())


def _timestamp(folder: Path) -> bytes:
    """The one that was trusted last; nothing where there is none to read."""
    try:
        return (folder / "timestamp.json").read_bytes()
    except OSError:
        return b""


def _half_written(folder: str, names: list[str]) -> list[str]:
    """What a power cut may have left of python-tuf's temporary files."""
    return [name for name in names if name.startswith("tmp") and not name.endswith(".json")]


def _copy(trusted: Path, scratch: Path) -> None:
    """Copies what is there; what cannot be copied is damaged, and is fetched again."""
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        if trusted.is_dir():
            shutil.copytree(trusted, scratch, symlinks=True, ignore=_half_written)
    except (OSError, shutil.Error):
        shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
