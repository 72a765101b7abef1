"""Writes the folder of an offline installation, and checks what stands there as the devices will.

Safe to interrupt and to repeat: files that are whole stay, half ones are gone on with, and the note says `complete`
only at the end. Every file is synced, because a stick is pulled out soon after. Called by `mooring device export`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

from cloud_hub.offline import OfflineFile, OfflineRequest, OfflineSet
from cloud_hub.operator.errors import FileError, VerificationFailed
from cloud_hub.operator.offline_check import Checked, check
from modules.errors import ModuleError
from modules.offline import (
    BLOBS_FOLDER,
    DIRECTOR_FOLDER,
    FORMAT,
    IMAGE_FOLDER,
    MAX_NOTE_BYTES,
    NOTE_FILE,
    ROOTS_FOLDER,
    Note,
    parts_of,
    read_note,
    write_note,
)

READ_BYTES = 1024 * 1024
SPARE_BYTES = 16 * 1024 * 1024
Sign = Callable[[OfflineRequest], Awaitable[OfflineSet]]
Append = Callable[[str, BinaryIO, tuple[int, int], Callable[[int], None]], Awaitable[None]]
Begin = Callable[[int], Callable[[int], None]]  # gets how many bytes it will be in all, gives what counts them


class Exported(msgspec.Struct, frozen=True):
    """What the folder holds now. `valid_until` (seconds since the epoch) is when the first signature ends."""

    folder: str
    devices: tuple[str, ...]
    valid_until: float
    modules: int
    files: int
    bytes: int
    fetched_bytes: int


class Export:
    """One export. `sign` and `append` are the hub's, `begin` is told the size of it all and gives what counts bytes."""

    def __init__(self, folder: Path, sign: Sign, append: Append, begin: Begin) -> None:
        self._folder, self._sign, self._append, self._begin = folder, sign, append, begin
        self._fetched = 0

    async def run(self, request: OfflineRequest, roots: Mapping[str, bytes]) -> Exported:
        """`roots` are those pinned, by repository. Raises FileError, VerificationFailed, and what the hub says."""
        await asyncio.to_thread(_check_folder, self._folder)
        offline = await self._sign(request)
        note = Note(
            FORMAT,
            tuple(offline.director),
            offline.made_at,
            offline.valid_until,
            len(offline.files),
            sum(file.size for file in offline.files),
        )
        try:
            await asyncio.to_thread(self._prepare, note, offline)
            await self._files(offline.files)
            await asyncio.to_thread(self._metadata, offline)
            found = await asyncio.to_thread(check, self._folder, tuple(offline.director), roots)
            await asyncio.to_thread(self._finish, note, found)
        except OSError as error:
            text = f"{self._folder}: {error.strerror or error}; what is there stays, run the same command again"
            raise FileError("not-written", text) from error
        return Exported(
            str(self._folder), note.devices, found.valid_until, found.modules, note.files, note.bytes, self._fetched
        )

    def _prepare(self, note: Note, offline: OfflineSet) -> None:
        for name in (IMAGE_FOLDER, DIRECTOR_FOLDER, BLOBS_FOLDER, ROOTS_FOLDER):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        _write(self._folder / NOTE_FILE, write_note(note))
        wanted = {name for file in offline.files for name, _, _ in parts_of(file.sha256, file.size)}
        _remove(self._folder / BLOBS_FOLDER, wanted | {f"{name}.part" for name in wanted})
        here = sum(path.stat().st_size for path in (self._folder / BLOBS_FOLDER).iterdir())
        space = os.statvfs(self._folder)
        need, free = note.bytes - here + SPARE_BYTES, space.f_bavail * space.f_frsize
        if free < need:
            raise FileError("disk-full", f"{self._folder}: expected {need} bytes free, got {free}; nothing was fetched")

    async def _files(self, files: Iterable[OfflineFile]) -> None:
        count = self._begin(sum(file.size for file in files))
        for file in files:
            if not await asyncio.to_thread(self._whole, file):
                await self._fetch(file, count)
                if not await asyncio.to_thread(self._whole, file):
                    text = f"{file.sha256}: what the hub gave is another file; it was removed"
                    raise VerificationFailed("file-differs", text)
            else:
                count(file.size)

    async def _fetch(self, file: OfflineFile, count: Callable[[int], None]) -> None:
        for name, start, end in parts_of(file.sha256, file.size):
            path = self._folder / BLOBS_FOLDER / name
            if path.exists():
                count(end - start)
                continue
            half = path.with_name(f"{name}.part")
            with half.open("ab") as out:
                have = min(out.tell(), end - start)
                count(have)
                self._fetched += end - start - have
                if have < end - start:
                    await self._append(file.sha256, out, (start + have, end), count)
                await asyncio.to_thread(_sync, out)
            half.replace(path)

    def _whole(self, file: OfflineFile) -> bool:
        """Whether all parts are there with the digest; parts of another file are removed."""
        paths = [self._folder / BLOBS_FOLDER / name for name, _, _ in parts_of(file.sha256, file.size)]
        if not all(path.is_file() for path in paths):
            return False
        digest = hashlib.sha256()
        for path in paths:
            with path.open("rb") as part:
                while block := part.read(READ_BYTES):
                    digest.update(block)
        if digest.hexdigest() == file.sha256:
            return True
        for path in paths:
            path.unlink()
        return False

    def _metadata(self, offline: OfflineSet) -> None:
        places = {IMAGE_FOLDER: offline.image, ROOTS_FOLDER: offline.director_roots}
        places |= {f"{DIRECTOR_FOLDER}/{device}": files for device, files in offline.director.items()}
        for place, files in places.items():
            folder = self._folder / place
            folder.mkdir(exist_ok=True)
            for name, text in files.items():
                _write(folder / name, text.encode())
            _remove(folder, set(files))
        for path in (self._folder / DIRECTOR_FOLDER).iterdir():
            if path.name not in offline.director and path.is_dir():
                _remove(path, set())
                path.rmdir()

    def _finish(self, note: Note, found: Checked) -> None:
        whole = msgspec.structs.replace(note, valid_until=found.valid_until, complete=True)
        _write(self._folder / NOTE_FILE, write_note(whole))


def _check_folder(folder: Path) -> None:
    """Ours, empty, or not there yet: nothing of anybody else is overwritten."""
    try:
        if not folder.exists() or not any(folder.iterdir()):
            return
        with (folder / NOTE_FILE).open("rb") as file:
            read_note(file.read(MAX_NOTE_BYTES))
    except FileNotFoundError:
        text = f"{folder}: expected an empty folder or an earlier export, got something else; nothing was written"
        raise FileError("folder-not-empty", text) from None
    except (OSError, ModuleError) as error:
        raise FileError("folder-unusable", f"{folder}: {error}; nothing was written") from error


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("wb") as file:
        file.write(data)
        _sync(file)
    fresh.replace(path)
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _remove(folder: Path, but: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in but and path.is_file():
            path.unlink()
