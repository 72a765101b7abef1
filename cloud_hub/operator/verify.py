"""Checks a module as a device would, without trusting the hub: TUF metadata from a pinned root down to each file.

Two sources: a hub over its API, or a folder that `export` wrote, with no network. Blocking, because TUF's client is:
run it in a thread. Called by the `module verify` and `module export` commands.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import msgspec
from tuf.api.exceptions import DownloadError, DownloadHTTPError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata
from tuf.ngclient import FetcherInterface, TargetFile, Updater

from cloud_hub.operator.errors import FileError, VerificationFailed
from modules.bundle import FileEntry, sha256_hex
from modules.errors import ModuleError
from modules.manifest import Manifest, decode_manifest
from modules.targets import TargetPath, image_custom
from modules.tensors import decode_golden
from modules.windows import decode_reference

FIRST_ROOT = "1.root.json"
_BASE = "tuf://image/"


@dataclass(frozen=True)
class Source:
    """Where bytes come from. `metadata` gives None for a name that is not there; `blob` raises when it is missing.

    Nothing that they give is believed.
    """

    metadata: Callable[[str], bytes | None]
    blob: Callable[[str], bytes]


class Verification(msgspec.Struct, frozen=True):
    """What was checked and found in order. `root` says where trust began."""

    target: str
    root: str
    manifest_sha256: str
    release_counter: int
    hardware_ids: tuple[str, ...]
    root_version: int
    timestamp_version: int
    files: int
    bytes: int
    golden_cases: int
    reference_features: int


def folder_source(folder: Path) -> Source:
    """A folder with `metadata/` by file name and `blobs/` by digest."""

    def metadata(name: str) -> bytes | None:
        path = folder / "metadata" / Path(name).name
        return path.read_bytes() if path.is_file() else None

    def blob(sha256: str) -> bytes:
        try:
            return (folder / "blobs" / sha256).read_bytes()
        except OSError as error:
            raise FileError("bundle-incomplete", f"{folder}: no file {sha256} ({error.strerror})") from error

    return Source(metadata, blob)


def publishers(source: Source) -> list[str]:
    """Who publishes, as the source says: a hint for building the target's path, which is then verified."""
    body = source.metadata("1.targets.json")
    try:
        roles = msgspec.json.decode(body or b"{}", type=_Signed).signed.delegations.roles
    except msgspec.DecodeError:
        return []
    return [role.name for role in roles]


def verify(path: TargetPath, source: Source, root: bytes, root_name: str) -> Verification:
    """Raises VerificationFailed with the first thing that does not hold: `root-invalid`, `signatures-invalid`,
    `metadata-expired`, `not-signed`, `manifest-differs` or `file-differs`.
    """
    with tempfile.TemporaryDirectory(prefix="mooring-verify-") as folder:
        updater = _updater(folder, source, root, root_name)
        target = _signed_target(updater, path)
        body = source.blob(target.hashes["sha256"])
        manifest = read_manifest(path, target, body)
        custom = image_custom(target.custom)
        if path.profile not in custom.hardware_ids:
            ids = ", ".join(custom.hardware_ids)
            raise VerificationFailed("hardware-differs", f"{path}: signed for {ids}, not for {path.profile}")
        cases, features = check_files(manifest, source)
        return Verification(
            target=str(path),
            root=root_name,
            manifest_sha256=sha256_hex(body),
            release_counter=custom.release_counter,
            hardware_ids=custom.hardware_ids,
            root_version=_version(folder, "root.json"),
            timestamp_version=_version(folder, "timestamp.json"),
            files=len(manifest.files),
            bytes=manifest.size,
            golden_cases=cases,
            reference_features=features,
        )


def export(path: TargetPath, source: Source, root: bytes, root_name: str, folder: Path) -> Verification:
    """Verifies from `source` and writes all that this took to `folder`, so that it can be done again from there."""
    for part in ("metadata", "blobs"):
        (folder / part).mkdir(parents=True, exist_ok=True)

    def metadata(name: str) -> bytes | None:
        body = source.metadata(name)
        if body is not None:
            (folder / "metadata" / Path(name).name).write_bytes(body)
        return body

    def blob(sha256: str) -> bytes:
        body = source.blob(sha256)
        (folder / "blobs" / sha256).write_bytes(body)
        return body

    try:
        (folder / "metadata" / FIRST_ROOT).write_bytes(root)
        return verify(path, Source(metadata, blob), root, root_name)
    except OSError as error:
        raise FileError("not-written", f"{folder}: {error.strerror}; the bundle is not complete") from error


class _Role(msgspec.Struct):
    name: str


class _Delegations(msgspec.Struct):
    roles: tuple[_Role, ...] = ()


class _Targets(msgspec.Struct):
    delegations: _Delegations = msgspec.field(default_factory=_Delegations)


class _Signed(msgspec.Struct):
    """As much of a targets file as names the delegated roles."""

    signed: _Targets = msgspec.field(default_factory=_Targets)


class _Fetcher(FetcherInterface):
    """Hands TUF's client the files of a source."""

    def __init__(self, metadata: Callable[[str], bytes | None]) -> None:
        self._metadata = metadata

    def _fetch(self, url: str) -> Iterator[bytes]:
        body = self._metadata(unquote(url.removeprefix(_BASE)))
        if body is None:
            raise DownloadHTTPError(f"no {url}", 404)
        return iter([body])


def _updater(folder: str, source: Source, root: bytes, root_name: str) -> Updater:
    try:
        return Updater(folder, _BASE, fetcher=_Fetcher(source.metadata), bootstrap=root)
    except RepositoryError as error:
        raise VerificationFailed("root-invalid", f"{root_name}: not a root: {error}; nothing was verified") from error


def _signed_target(updater: Updater, path: TargetPath) -> TargetFile:
    try:
        updater.refresh()
        target = updater.get_targetinfo(str(path))
    except ExpiredMetadataError as error:
        raise VerificationFailed(
            "metadata-expired", f"{error}; fetch it anew from the hub (a bundle: export it again)"
        ) from error
    except RepositoryError as error:
        raise VerificationFailed(
            "signatures-invalid", f"image repository: {error}; nothing in it is trusted"
        ) from error
    except DownloadError as error:
        raise VerificationFailed(
            "metadata-incomplete", f"image repository: {error.__cause__ or error}; nothing was verified"
        ) from error
    if target is None:
        raise VerificationFailed("not-signed", f"{path}: not in the image repository, so no device would take it")
    return target


def _version(folder: str, name: str) -> int:
    """The version of a role that the client trusts by now."""
    return int(Metadata.from_file(str(Path(folder) / name)).signed.version)


def read_manifest(path: TargetPath, target: TargetFile, body: bytes) -> Manifest:
    """The manifest of exactly this target. Raises VerificationFailed `manifest-differs`."""
    try:
        target.verify_length_and_hashes(body)
        manifest = decode_manifest(body)
    except (RepositoryError, ModuleError) as error:
        raise VerificationFailed("manifest-differs", f"{path}: {error}") from error
    if (manifest.name, manifest.version, manifest.profile) != (path.name, path.version, path.profile):
        said = f"{manifest.name}:{manifest.version}/{manifest.profile}"
        raise VerificationFailed("manifest-differs", f"{path}: the manifest is that of {said}")
    return manifest


def check_files(manifest: Manifest, source: Source) -> tuple[int, int]:
    """Every file, every chunk; then the golden set and the reference. How many cases and features those have."""
    cases = features = 0
    for entry in manifest.files:
        body = source.blob(entry.sha256)
        _check(entry, body)
        try:
            if entry.path == manifest.health.golden:
                cases = len(decode_golden(body).cases)
            if entry.path == manifest.reference:
                features = len(decode_reference(body).features)
        except ModuleError as error:
            raise VerificationFailed("file-unreadable", f"{entry.path}: {error}") from error
    return cases, features


def _check(entry: FileEntry, body: bytes) -> None:
    if len(body) != entry.size or sha256_hex(body) != entry.sha256:
        raise VerificationFailed(
            "file-differs",
            f"{entry.path}: expected {entry.size} bytes with SHA-256 {entry.sha256}, got {len(body)} bytes with "
            f"{sha256_hex(body)}",
        )
    at = 0
    for number, chunk in enumerate(entry.chunks):
        if sha256_hex(body[at : at + chunk.size]) != chunk.sha256:
            raise VerificationFailed("file-differs", f"{entry.path}: chunk {number} does not have the digest signed")
        at += chunk.size
