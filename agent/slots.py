"""Slots: one read-only folder per installed module, `slots/<first 32 hex of the manifest's digest>/`.

A slot appears whole (every file and folder synced, then one rename) or not at all, and is never changed, only
removed. Blocking: the update engine calls this in its thread. What is wanted or runs is not known here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.errors import AgentError
from agent.files import sync_folder, write_durably
from modules.bundle import FileEntry
from modules.errors import ManifestError
from modules.manifest import Manifest, decode_manifest, manifest_digest

MANIFEST_FILE = "manifest.json"
_NEW = ".new-"
Stop = Callable[[], bool]  # asked between two steps of what takes long
_READ_BYTES = 1024 * 1024


class SlotError(AgentError):
    """Files are not what the manifest says.

    Keys: not-regular, link-count, length-or-hash, io, slot-damaged, disk, cancelled.
    """


def never() -> bool:
    return False


@dataclass(frozen=True)
class Slot:
    """A whole module on disk."""

    path: Path
    manifest: Manifest
    manifest_bytes: bytes
    manifest_sha256: str


class Slots:
    """The folder of slots. One writer: the update engine. `staging` is where a file may still have its first name."""

    def __init__(self, root: Path, staging: Path | None = None) -> None:
        self._root = root
        self._staging = staging or root.parent / "staging"

    def path(self, manifest_sha256: str) -> Path:
        return self._root / manifest_sha256[:32]

    def open(self, manifest_sha256: str) -> Slot:
        """The slot, its manifest checked against the digest and its files against their sizes; content is left to
        the golden inputs. Raises SlotError.
        """
        path = self.path(manifest_sha256)
        try:
            data = (path / MANIFEST_FILE).read_bytes()
            if manifest_digest(data) != manifest_sha256:
                raise SlotError(f"slot {path.name}: its manifest is not the one that was installed", "slot-damaged")
            manifest = decode_manifest(data)
            for entry in manifest.files:
                self._check_kept(path, entry)
        except (OSError, ManifestError) as error:
            raise SlotError(f"slot {path.name}: {error}", "slot-damaged") from error
        return Slot(path, manifest, data, manifest_sha256)

    def _check_kept(self, slot: Path, entry: FileEntry) -> None:
        """A file in a slot: plain, of its size, and under no name that others could write to. Raises SlotError."""
        status = (slot / entry.path).lstat()
        where = f"slot {slot.name}: {entry.path}"
        if not stat.S_ISREG(status.st_mode):
            raise SlotError(f"{where}: expected a plain file, got mode {status.st_mode:o}", "slot-damaged")
        if status.st_size != entry.size:
            raise SlotError(f"{where}: expected {entry.size} bytes, got {status.st_size}", "slot-damaged")
        if status.st_nlink != 1 and not (status.st_nlink == 2 and self._is_staged(status, entry)):
            raise SlotError(f"{where}: expected one name, got {status.st_nlink}", "slot-damaged")

    def _is_staged(self, status: os.stat_result, entry: FileEntry) -> bool:
        try:
            return os.path.samestat(status, (self._staging / entry.sha256).lstat())
        except OSError:
            return False

    def has(self, manifest_sha256: str) -> bool:
        try:
            self.open(manifest_sha256)
        except SlotError:
            return False
        return True

    def recheck(self, manifest_sha256: str) -> str:
        """Reads every file of a slot back, and removes a slot that is damaged: what was wrong, or nothing."""
        try:
            slot = self.open(manifest_sha256)
            for entry in slot.manifest.files:
                verify_file(slot.path / entry.path, entry, names=2)  # until an update is committed, staging has one
        except SlotError as error:
            _remove(self.path(manifest_sha256))
            return str(error)
        return ""

    def make(
        self, manifest_bytes: bytes, manifest: Manifest, source: Callable[[FileEntry], Path], stop: Stop = never
    ) -> Slot:
        """A fresh slot from verified files, which stay where they are. Raises SlotError, with nothing left behind."""
        digest = manifest_digest(manifest_bytes)
        final = self.path(digest)
        fresh = self._root / f"{_NEW}{final.name}"
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            _remove(fresh)
            fresh.mkdir()
            for entry in manifest.files:
                _go_on(stop)
                self._place(source(entry), fresh / entry.path)
            write_durably(fresh / MANIFEST_FILE, manifest_bytes, 0o444)
            _seal(fresh)
            _remove(final)
            os.replace(fresh, final)
            sync_folder(self._root)
        except OSError as error:
            _remove(fresh)
            raise SlotError(f"slot {final.name}: {error}; it was removed", "disk") from error
        except SlotError:
            _remove(fresh)
            raise
        return self.open(digest)

    def clean(self) -> None:
        """Removes half-made slots: their links to staged files go with them."""
        for path in self._root.glob(f"{_NEW}*"):
            _remove(path)

    def prune(self, keep: Collection[str]) -> None:
        """Removes every slot whose manifest's digest is not in `keep`."""
        names = {self.path(digest).name for digest in keep}
        if self._root.is_dir():
            for path in self._root.iterdir():
                if path.name not in names:
                    _remove(path)

    def find(self, sha256: str) -> Path | None:
        """A file that some slot holds under this digest, unverified: what need not be downloaded again."""
        return next((path for path, entry in self.files() if entry.sha256 == sha256), None)

    def files(self) -> Iterator[tuple[Path, FileEntry]]:
        """Every file of every slot, unverified, the newest slot first: what new files can be made from."""
        for path in sorted(self._root.glob(f"*/{MANIFEST_FILE}"), key=_made_at, reverse=True):
            try:
                manifest = decode_manifest(path.read_bytes())
            except (OSError, ManifestError):
                continue
            for entry in manifest.files:
                yield path.parent / entry.path, entry

    def _place(self, source: Path, target: Path) -> None:
        """A second name for a staged file; a copy of another slot's, of what has two already, and where the file system
        has no links.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        if not source.is_relative_to(self._root) and source.lstat().st_nlink == 1:
            try:
                os.link(source, target, follow_symlinks=False)
            except OSError:
                pass
            else:
                return
        shutil.copyfile(source, target, follow_symlinks=False)


def _made_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def verify_file(path: Path, entry: FileEntry, stop: Stop = never, names: int = 1) -> None:
    """That `path` is a plain file, with no more than `names`, of exactly the signed bytes. Raises SlotError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SlotError(f"{entry.path}: cannot be opened as a plain file: {error.strerror}", "not-regular") from error
    try:
        _check_status(os.fstat(handle), entry, names)
        digest = hashlib.sha256()
        while block := os.read(handle, _READ_BYTES):
            digest.update(block)
            _go_on(stop)
    except OSError as error:
        raise SlotError(f"{entry.path}: cannot be read back: {error.strerror}", "io") from error
    finally:
        os.close(handle)
    if digest.hexdigest() != entry.sha256:
        raise SlotError(f"{entry.path}: expected SHA-256 {entry.sha256}, got {digest.hexdigest()}", "length-or-hash")


def _go_on(stop: Stop) -> None:
    if stop():
        raise SlotError("it is not wanted any more", "cancelled")


def _check_status(status: os.stat_result, entry: FileEntry, names: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SlotError(f"{entry.path}: expected a plain file, got mode {status.st_mode:o}", "not-regular")
    if status.st_nlink > names:
        raise SlotError(f"{entry.path}: expected one name, got {status.st_nlink}", "link-count")
    if status.st_size != entry.size:
        raise SlotError(f"{entry.path}: expected {entry.size} bytes, got {status.st_size}", "length-or-hash")


def _seal(folder: Path) -> None:
    """Syncs every file and folder and takes away every right to write. Workers of other users may read."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            handle = os.open(Path(root) / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fchmod(handle, 0o444)
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(root))
        Path(root).chmod(0o555)


def _remove(path: Path) -> None:
    """Removes a folder that may be read-only; a folder that is not there is fine."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for root, folders, _ in os.walk(path):
        for name in (".", *folders):
            (Path(root) / name).chmod(0o755)
    shutil.rmtree(path)
