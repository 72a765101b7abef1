"""Checks an exported folder as a device would: both repositories from their roots, every manifest, every file.

Blocking. With pinned roots it proves that the hub gave what was signed; without, only that the folder is whole and
agrees with itself. Called by `operator.offline` on what it has just written.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.ngclient import FetcherInterface, Updater

from cloud_hub.operator.errors import VerificationFailed
from cloud_hub.operator.trusted import PublishedImage, read_image
from cloud_hub.operator.verify import FIRST_ROOT, read_manifest
from modules.bundle import FileEntry
from modules.offline import BLOBS_FOLDER, DIRECTOR_FOLDER, IMAGE_FOLDER, ROOTS_FOLDER, parts_of
from modules.targets import DEVICE_ID_FIELD, TargetPath

READ_BYTES = 1024 * 1024
Fetch = Callable[[str], bytes | None]


@dataclass(frozen=True)
class Checked:
    """How many modules, and when the first signature ends (seconds since the epoch)."""

    modules: int
    valid_until: float


def check(folder: Path, devices: Sequence[str], roots: Mapping[str, bytes]) -> Checked:
    """`roots` are pinned ones, by `image` and `director`. Raises VerificationFailed, OSError."""
    fetch = _reader(folder / IMAGE_FOLDER)
    pinned = roots.get("image") or fetch(FIRST_ROOT)
    if pinned is None:
        raise VerificationFailed("metadata-incomplete", f"{folder}: no {FIRST_ROOT} of the image repository")
    image = read_image(fetch, pinned, time.time())
    ends = [image.root.signed.expires, image.targets.signed.expires, image.snapshot.expires]
    ends += [publisher.signed.expires for publisher in image.publishers.values()]
    ends.append(Metadata.from_file(str(folder / IMAGE_FOLDER / "timestamp.json")).signed.expires)
    seen: set[str] = set()
    for device in devices:
        targets = _director(folder, device, roots.get("director"))
        names = ("timestamp.json", "snapshot.json", "targets.json")
        ends += [Metadata.from_file(str(folder / DIRECTOR_FOLDER / device / name)).signed.expires for name in names]
        for path, target in targets.targets.items():
            _check_target(folder, image, path, target, seen)
    return Checked(len(seen), min(end.timestamp() for end in ends))


def _director(folder: Path, device: str, pinned: bytes | None) -> Targets:
    """The device's targets, by a stock TUF client."""
    own, shared = _reader(folder / DIRECTOR_FOLDER / device), _reader(folder / ROOTS_FOLDER)
    root = pinned or shared(FIRST_ROOT)
    with tempfile.TemporaryDirectory(prefix="mooring-check-") as scratch:
        fetcher = _Fetcher(lambda name: shared(name) if name.endswith(".root.json") else own(name))
        try:
            Updater(scratch, "tuf://director/", fetcher=fetcher, bootstrap=root).refresh()
        except RepositoryError as error:
            raise VerificationFailed("signatures-invalid", f"director of {device}: {error}") from error
        signed = Metadata[Targets].from_file(str(Path(scratch) / "targets.json")).signed
    if signed.unrecognized_fields.get(DEVICE_ID_FIELD) != device:
        raise VerificationFailed("signatures-invalid", f"director of {device}: it is for another device")
    return signed


def _check_target(folder: Path, image: PublishedImage, path: str, target: TargetFile, seen: set[str]) -> None:
    place = TargetPath.parse(path)
    publisher = image.publishers.get(place.publisher)
    listed = publisher.signed.targets.get(path) if publisher else None
    if listed is None or (listed.length, listed.hashes) != (target.length, target.hashes):
        raise VerificationFailed("not-signed", f"{path}: director and image repository do not name the same manifest")
    digest = target.hashes["sha256"]
    if digest in seen:
        return
    seen.add(digest)
    body = (folder / BLOBS_FOLDER / digest).read_bytes()
    for entry in read_manifest(place, target, body).files:
        _check_file(folder, entry)


def _check_file(folder: Path, entry: FileEntry) -> None:
    digest = hashlib.sha256()
    for name, _, _ in parts_of(entry.sha256, entry.size):
        with (folder / BLOBS_FOLDER / name).open("rb") as part:
            while block := part.read(READ_BYTES):
                digest.update(block)
    if digest.hexdigest() != entry.sha256:
        raise VerificationFailed("file-differs", f"{entry.path}: what was written is not what is signed; export again")


def _reader(folder: Path) -> Fetch:
    def read(name: str) -> bytes | None:
        path = folder / Path(name).name
        return path.read_bytes() if path.is_file() else None

    return read


class _Fetcher(FetcherInterface):
    def __init__(self, read: Fetch) -> None:
        self._read = read

    def _fetch(self, url: str) -> Iterator[bytes]:
        body = self._read(url.rpartition("/")[2])
        if body is None:
            raise DownloadHTTPError(f"no {url}", 404)
        return iter([body])
