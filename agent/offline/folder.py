"""Reads a folder that somebody brought: regular files at known names only, no link followed, bounded, opened anew for
every read, so that a stick can be pulled out at any moment and put back.

Nothing in it is believed; what is read is checked by `agent.trust` and `agent.transfer` like what a hub sends.
Blocking. Used by `agent.offline.source` in its thread, and by the command for first answers.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from agent.errors import AgentError
from modules.errors import ModuleError
from modules.messages import Repository
from modules.offline import (
    BLOBS_FOLDER,
    DIRECTOR_FOLDER,
    IMAGE_FOLDER,
    MAX_NOTE_BYTES,
    NOTE_FILE,
    PART_BYTES,
    ROOTS_FOLDER,
    Note,
    part_name,
    read_note,
)

MAX_METADATA_BYTES = 8 * 1024 * 1024
MAX_PARTS = 1024
_NAME = re.compile(r"[A-Za-z0-9%][A-Za-z0-9%._-]{0,199}")
_GONE = frozenset({errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOMEDIUM, errno.ESHUTDOWN})


class FolderError(AgentError):
    """A folder cannot be installed from.

    Keys: folder-gone (not there, or a stick that was pulled out), folder-unreadable, folder-no-export,
    folder-incomplete, folder-other-device, folder-expired, file-missing, not-regular, bad-name, too-large.
    """

    key = "folder-unreadable"


class Folder:
    """One exported folder. Every method may raise FolderError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self) -> Note:
        """What the folder says of itself. Key folder-no-export when it says nothing."""
        try:
            data = self._read((NOTE_FILE,), 0, MAX_NOTE_BYTES)
        except FolderError as error:
            if error.key != "file-missing":
                raise
            text = f"{self.path}: expected a folder written by `mooring device export`, found no {NOTE_FILE} in it"
            raise FolderError(text, "folder-no-export") from error
        try:
            return read_note(data)
        except ModuleError as error:
            raise FolderError(f"{self.path}: {error}", "folder-no-export") from error

    def check(self, device: str) -> Note:
        """That it is whole and has something for this device."""
        note = self.note()
        if not note.complete:
            raise FolderError(f"{self.path}: the export was not finished; run it again", "folder-incomplete")
        if device not in note.devices:
            whom = ", ".join(note.devices)[:200]
            raise FolderError(
                f"{self.path}: expected an export for {device}, got one for {whom}", "folder-other-device"
            )
        return note

    def metadata(self, repository: Repository, device: str, name: str, offset: int, length: int) -> tuple[int, bytes]:
        """The file's size, and bytes [offset, offset+length) of it."""
        if not _NAME.fullmatch(name) or not _NAME.fullmatch(device):
            raise FolderError(f"{name[:80]!r}: expected a plain file name", "bad-name")
        if repository == "image":
            place: tuple[str, ...] = (IMAGE_FOLDER, name)
        elif name.endswith(".root.json"):
            place = (ROOTS_FOLDER, name)
        else:
            place = (DIRECTOR_FOLDER, device, name)
        size = self._size(place)
        if size > MAX_METADATA_BYTES:
            text = f"{self.path}/{'/'.join(place)}: expected at most {MAX_METADATA_BYTES} bytes, got {size}"
            raise FolderError(text, "too-large")
        return size, self._read(place, offset, length)

    def blob_size(self, sha256: str) -> int:
        """Bytes of all its parts."""
        total = 0
        for number in range(MAX_PARTS):
            size = self._size((BLOBS_FOLDER, part_name(sha256, number)))
            total += size
            if size != PART_BYTES or not self._has((BLOBS_FOLDER, part_name(sha256, number + 1))):
                return total
        raise FolderError(f"{sha256}: expected at most {MAX_PARTS} parts", "too-large")

    def blob(self, sha256: str, offset: int, length: int) -> bytes:
        """Bytes [offset, offset+length), fewer at the end."""
        data = b""
        while len(data) < length:
            number, at = divmod(offset + len(data), PART_BYTES)
            if number and not at and not self._has((BLOBS_FOLDER, part_name(sha256, number))):
                break
            want = min(length - len(data), PART_BYTES - at)
            piece = self._read((BLOBS_FOLDER, part_name(sha256, number)), at, want)
            data += piece
            if len(piece) < want:
                break
        return data

    def _has(self, place: Sequence[str]) -> bool:
        try:
            self._size(place)
        except FolderError as error:
            if error.key == "file-missing":
                return False
            raise
        return True

    def _size(self, place: Sequence[str]) -> int:
        with ExitStack() as files:
            try:
                return os.fstat(self._open(place, files)).st_size
            except OSError as error:
                raise self._failed(place, error) from error

    def _read(self, place: Sequence[str], offset: int, length: int) -> bytes:
        with ExitStack() as files:
            try:
                file, data = self._open(place, files), b""
                while len(data) < length and (piece := os.pread(file, length - len(data), offset + len(data))):
                    data += piece
                return data
            except (OSError, OverflowError) as error:
                raise self._failed(place, error) from error

    def _open(self, place: Sequence[str], files: ExitStack) -> int:
        """The path that was given may be a link; nothing below it may."""
        flags = os.O_RDONLY | os.O_CLOEXEC
        handle = os.open(self.path, flags | os.O_DIRECTORY)
        files.callback(os.close, handle)
        for name in place[:-1]:
            handle = os.open(name, flags | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
            files.callback(os.close, handle)
        handle = os.open(place[-1], flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handle)
        files.callback(os.close, handle)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise FolderError(f"{self.path}/{'/'.join(place)}: expected a regular file", "not-regular")
        return handle

    def _failed(self, place: Sequence[str], error: OSError | OverflowError) -> FolderError:
        name, code = f"{self.path}/{'/'.join(place)}", error.errno if isinstance(error, OSError) else errno.EINVAL
        if code in _GONE or not self.path.is_dir():
            return FolderError(self._gone_words(), "folder-gone")
        if code in {errno.ENOENT, errno.ENOTDIR} and self.path.is_dir():
            # An empty mount point is what a stick leaves behind when it is pulled out.
            if not (self.path / NOTE_FILE).exists() and place[-1] != NOTE_FILE:
                return FolderError(self._gone_words(), "folder-gone")
            return FolderError(f"{name}: is missing", "file-missing")
        if code == errno.ELOOP:
            return FolderError(f"{name}: expected a regular file, got a link", "not-regular")
        return FolderError(f"{name}: {error}", "folder-unreadable")

    def _gone_words(self) -> str:
        if self.path.exists() and not self.path.is_dir():
            return f"{self.path}: expected a folder, got a file"
        return f"{self.path}: is not there (a stick that was pulled out?)"
