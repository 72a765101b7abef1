"""A file on its way: `<sha256>.part`, with `<sha256>.map` saying which of its chunks are on the disk.

The data is synced before the map says so, and what the map says is read and hashed again on resuming: a map may lie
after a power cut, a digest may not. Blocking; called by `agent.transfer.fetch` in its thread.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from agent.errors import FetchError
from agent.files import sync_folder
from modules.bundle import FileEntry, check_digest, sha256_hex

_READ_BYTES = 1024 * 1024


class Partial:
    """Opened by the constructor, which checks what is there already. Ends by `finish`, `discard` or `close`."""

    def __init__(self, folder: Path, entry: FileEntry) -> None:
        """Raises OSError."""
        self.entry = entry
        self.path = folder / check_digest(entry.sha256)
        self._part, self._map = self.path.with_suffix(".part"), self.path.with_suffix(".map")
        self._offsets = _offsets(entry)
        self._plan = hashlib.sha256("".join(chunk.sha256 for chunk in entry.chunks).encode()).digest()
        self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._have = {index for index in self._said() if self._intact(index)}
        self._unsaid = 0

    @property
    def missing(self) -> list[int]:
        return [index for index in range(len(self.entry.chunks)) if index not in self._have]

    @property
    def present_bytes(self) -> int:
        return sum(self.entry.chunks[index].size for index in self._have)

    def offset(self, index: int) -> int:
        return self._offsets[index]

    def write(self, index: int, data: bytes, *, sync_every: int) -> None:
        """A verified chunk. Its loss is possible until the next sync, which comes after `sync_every` chunks at most."""
        view, at = memoryview(data), self._offsets[index]
        while view:
            written = os.pwrite(self._file, view, at)
            view, at = view[written:], at + written
        self._have.add(index)
        self._unsaid += 1
        if self._unsaid >= sync_every:
            self.sync()

    def sync(self) -> None:
        """Data first, then the map. The map itself is not synced: an old one costs a chunk again, nothing else."""
        os.fdatasync(self._file)
        bits = bytearray((len(self.entry.chunks) + 7) // 8)
        for index in self._have:
            bits[index // 8] |= 1 << index % 8
        fresh = self._map.with_suffix(".map.new")
        fresh.write_bytes(self._plan + bits)
        os.replace(fresh, self._map)
        self._unsaid = 0

    def finish(self) -> Path:
        """The whole file, verified and durable, under its digest. Raises FetchError (file-mismatch), OSError."""
        os.fsync(self._file)
        got = file_sha256(self._part)
        if got != self.entry.sha256 or self._part.stat().st_size != self.entry.size:
            self.discard()
            text = f"{self.entry.path}: expected a file with sha256 {self.entry.sha256}, got {got}; it was removed"
            raise FetchError(text, "file-mismatch")
        self.close()
        os.replace(self._part, self.path)
        self._map.unlink(missing_ok=True)
        sync_folder(self.path.parent)
        return self.path

    def close(self) -> None:
        """Keeps what is there. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def discard(self) -> None:
        """Gives the space back. Idempotent."""
        self.close()
        for path in (self._part, self._map, self._map.with_suffix(".map.new")):
            path.unlink(missing_ok=True)

    def _said(self) -> list[int]:
        """The chunks that the map claims; none when it is not a map of these chunks."""
        with suppress(OSError):
            data = self._map.read_bytes()
            count = len(self.entry.chunks)
            if data[:32] == self._plan and len(data) == 32 + (count + 7) // 8:
                return [index for index in range(count) if data[32 + index // 8] >> index % 8 & 1]
        return []

    def _intact(self, index: int) -> bool:
        chunk = self.entry.chunks[index]
        return sha256_hex(os.pread(self._file, chunk.size, self._offsets[index])) == chunk.sha256


def file_sha256(path: Path) -> str:
    """Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _offsets(entry: FileEntry) -> list[int]:
    offsets, at = [], 0
    for chunk in entry.chunks:
        offsets.append(at)
        at += chunk.size
    return offsets
