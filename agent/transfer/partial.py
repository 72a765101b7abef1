"""A file on its way: `<sha256>.part`, with `<sha256>.map` saying which pieces of its chunks are on the disk.

Pieces are written as they come; a chunk counts as present once all of it is there and has its digest. What the map says
is read and hashed again on resuming: a map may lie after a power cut, a digest may not. So an interruption costs what
was under way, also in the middle of a chunk. Blocking; called by `agent.transfer` in the thread that owns the disk.
"""

from __future__ import annotations

import hashlib
import os
import time
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.errors import FetchError
from agent.files import sync_folder
from agent.transfer.window import PIECE_BYTES
from modules.bundle import FileEntry, check_digest, sha256_hex

_READ_BYTES = 1024 * 1024
_HEAD_BYTES = 32
_SYNC_SHARE = 4  # a sync may take a fifth of the time: on slow flash more bytes go between two


@dataclass(frozen=True)
class Stretch:
    """Bytes of a file with a digest of their own; empty where only the whole file has one."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Plan:
    """What is to arrive: a file by its digest, in stretches of at most 16 pieces. `name` is for messages.

    `place` is its name in staging; the digest, where nothing else is said.
    """

    name: str
    sha256: str
    size: int
    stretches: Sequence[Stretch]
    place: str = ""

    @classmethod
    def of(cls, entry: FileEntry) -> Plan:
        """A module's file, by its signed chunks."""
        stretches = tuple(Stretch(chunk.sha256, chunk.size) for chunk in entry.chunks)
        return cls(entry.path, entry.sha256, entry.size, stretches)

    @classmethod
    def whole(cls, name: str, sha256: str, size: int, place: str) -> Plan:
        """A file of which only the digest and the size are known, such as a patch."""
        most = 16 * PIECE_BYTES
        sizes = [most] * (size // most) + ([size % most] if size % most else [])
        return cls(name, check_digest(sha256), size, tuple(Stretch("", one) for one in sizes), place)


@dataclass(frozen=True)
class Written:
    """What came of a write: the chunks that are complete now, the bytes that they add, and those that were wrong."""

    done: tuple[int, ...]
    count: int
    wrong: tuple[int, ...]


class Partial:
    """Opened by the constructor, which checks what is there already. Ends by `finish`, `discard` or `close`."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        """Raises OSError."""
        self.plan = plan
        self.path = folder / (plan.place or check_digest(plan.sha256))
        self._part, self._map = (self.path.with_name(f"{self.path.name}.{end}") for end in ("part", "map"))
        self._offsets = _offsets(plan.stretches)
        identity = "".join(f"{one.sha256}{one.size}," for one in plan.stretches)
        self._head = hashlib.sha256(identity.encode()).digest()
        self._have = array("H", bytes(2 * len(plan.stretches)))  # for each stretch its pieces, one bit each
        self._unsynced, self._sync_after = 0, 0.0
        self._files: list[int] = []
        self._data = self._marks = -1
        try:
            self._data = self._open(self._part)
            self._marks = self._open(self._map)
            self._read_map()
        except BaseException:
            self._close()
            raise

    @property
    def size(self) -> int:
        return self.plan.size

    @property
    def present_bytes(self) -> int:
        """Bytes of complete chunks."""
        return sum(one.size for index, one in enumerate(self.plan.stretches) if self.has(index))

    def has(self, index: int) -> bool:
        """Whether the chunk is complete and, where it has a digest, verified."""
        return self._have[index] == _full(self.plan.stretches[index].size)

    def missing(self) -> list[tuple[int, int]]:
        """Ranges (from, to) of bytes that are not here, in order, as long as they can be."""
        ranges: list[tuple[int, int]] = []
        for index, one in enumerate(self.plan.stretches):
            if self.has(index):
                continue
            at = self._offsets[index]
            for piece in range(_pieces(one.size)):
                if not self._have[index] >> piece & 1:
                    start = at + piece * PIECE_BYTES
                    stop = min(start + PIECE_BYTES, at + one.size)
                    if ranges and ranges[-1][1] == start:
                        ranges[-1] = (ranges[-1][0], stop)
                    else:
                        ranges.append((start, stop))
        return ranges

    def chunk(self, index: int) -> tuple[int, int]:
        """Where it lies: (from, to)."""
        return self._offsets[index], self._offsets[index] + self.plan.stretches[index].size

    def index(self, offset: int) -> int:
        """The chunk that has this byte."""
        return bisect_right(self._offsets, offset) - 1

    def cut(self, start: int, stop: int, most: int) -> int:
        """Where a block from `start` should end: at the last end of a chunk within `most` bytes, else inside of one."""
        end = min(stop, start + most)
        index = self.index(end) if end < self.size else len(self._offsets)
        at = self._offsets[index] if index < len(self._offsets) else self.size
        if at > start:
            return at
        return end if end == stop else start + max(1, (end - start) // PIECE_BYTES) * PIECE_BYTES

    def write(self, start: int, data: bytes, sync_every: int) -> Written:
        """Bytes as they came, from the beginning of a piece to the end of one. Raises OSError.

        What is wrong counts as missing. After `sync_every` bytes at most, what is here outlives a power cut, unless
        the disk is so slow that syncing would take more than a fifth of the time.
        """
        _write_all(self._data, memoryview(data), start)
        first, last = self.index(start), self.index(start + len(data) - 1)
        done: list[int] = []
        wrong: list[int] = []
        for index in range(first, last + 1):
            self._mark(index, start, start + len(data))
            if self.has(index):
                (done if self._right(index, start, data) else wrong).append(index)
        for index in wrong:
            self._have[index] = 0
        self._write_map(first, last)
        self._unsynced += len(data)
        if self._unsynced >= sync_every and time.monotonic() >= self._sync_after:
            self.sync()
        return Written(tuple(done), sum(self.plan.stretches[index].size for index in done), tuple(wrong))

    def read(self, index: int) -> bytes:
        """A complete chunk. Raises OSError."""
        start, stop = self.chunk(index)
        return os.pread(self._data, stop - start, start)

    def sync(self) -> None:
        """Data first, then the map. Raises OSError."""
        if not self._unsynced:
            return
        began = time.monotonic()
        os.fdatasync(self._data)
        os.fdatasync(self._marks)
        self._unsynced = 0
        self._sync_after = time.monotonic() + _SYNC_SHARE * (time.monotonic() - began)

    def finish(self) -> Path:
        """The whole file, verified and durable, under its digest. Raises FetchError (file-mismatch), OSError."""
        os.fsync(self._data)
        got = file_sha256(self._part)
        if got != self.plan.sha256 or self._part.stat().st_size != self.size:
            self.discard()
            text = f"{self.plan.name}: expected a file with sha256 {self.plan.sha256}, got {got}; it was removed"
            raise FetchError(text, "file-mismatch")
        self.close()
        os.replace(self._part, self.path)
        self._map.unlink(missing_ok=True)
        sync_folder(self.path.parent)
        return self.path

    def close(self, *, sync: bool = False) -> None:
        """Keeps what is there; with `sync`, also over a power cut. Idempotent. Raises OSError, closed all the same."""
        try:
            if sync and self._files:
                self.sync()
        finally:
            self._close()

    def _close(self) -> None:
        self._data = self._marks = -1  # a write that comes too late fails, and meets no other file
        while self._files:
            os.close(self._files.pop())

    def discard(self) -> None:
        """Gives the space back. Idempotent."""
        self.close()
        for path in (self._part, self._map):
            path.unlink(missing_ok=True)

    def _open(self, path: Path) -> int:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._files.append(file)
        return file

    def _read_map(self) -> None:
        """Takes what the map claims and the disk bears out; nothing from a map of other chunks."""
        said = os.pread(self._marks, _HEAD_BYTES + 2 * len(self._have) + 1, 0)
        if len(said) == _HEAD_BYTES + 2 * len(self._have) and said[:_HEAD_BYTES] == self._head:
            self._have = array("H", said[_HEAD_BYTES:])
        else:
            os.ftruncate(self._marks, 0)
            os.pwrite(self._marks, self._head + self._have.tobytes(), 0)
        for index, one in enumerate(self.plan.stretches):
            self._have[index] &= _full(one.size)
            if self.has(index) and not self._right(index, 0, b""):
                self._have[index] = 0

    def _write_map(self, first: int, last: int) -> None:
        os.pwrite(self._marks, self._have[first : last + 1].tobytes(), _HEAD_BYTES + 2 * first)

    def _mark(self, index: int, start: int, stop: int) -> None:
        at, end = self.chunk(index)
        piece, bits = max(start, at) - at, 0
        while at + piece < min(stop, end):
            bits |= 1 << piece // PIECE_BYTES
            piece += PIECE_BYTES
        self._have[index] |= bits

    def _right(self, index: int, start: int, data: bytes) -> bool:
        """Whether a complete chunk has its digest; read back where it did not come in one block."""
        expected = self.plan.stretches[index].sha256
        at, end = self.chunk(index)
        if not expected:
            return True
        if start <= at and end <= start + len(data):
            return sha256_hex(memoryview(data)[at - start : end - start]) == expected
        return sha256_hex(os.pread(self._data, end - at, at)) == expected


def file_sha256(path: Path) -> str:
    """Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _write_all(file: int, view: memoryview, at: int) -> None:
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written


def _pieces(size: int) -> int:
    return -(-size // PIECE_BYTES)


def _full(size: int) -> int:
    return (1 << _pieces(size)) - 1


def _offsets(stretches: Sequence[Stretch]) -> list[int]:
    offsets, at = [], 0
    for one in stretches:
        offsets.append(at)
        at += one.size
    return offsets
