"""What a gateway keeps on its disk of files that it fetches for neighbours: in units, bounded, the longest unused first
to go.

A file that is complete is hashed once, and kept over a restart as `<sha256>`; one that is not what its name says is
thrown away. What is on its way is `<sha256>.part`, and is gone after a restart. Blocking; called by `gateway_store` in
its one thread, but for the hashing, which has another.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from modules.bundle import check_digest
from modules.errors import ChunkError

UNIT_BYTES: Final = 16 * 1024
FOUND_S: Final = 5.0
MAX_FOUND: Final = 1024
_log = logging.getLogger(__name__)


class NoRoom(Exception):
    """The file is larger than the cache, or than the disk has room for."""


class Part:
    """A file on its way: which of its units are here. `users` requests are reading it now."""

    def __init__(self, path: Path, size: int) -> None:
        self.sha256, self.path, self.size = path.stem, path, size
        self.users, self.used_at = 0, time.monotonic()
        self._have = bytearray(-(-size // UNIT_BYTES))
        self._missing = len(self._have)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    @property
    def complete(self) -> bool:
        return self._missing == 0

    def missing(self, start: int, stop: int) -> Iterator[int]:
        """Indexes of the units of [start, stop) that are not here."""
        for index in range(start // UNIT_BYTES, -(-stop // UNIT_BYTES)):
            if not self._have[index]:
                yield index

    def write(self, start: int, data: bytes) -> None:
        """Whole units, from the beginning of one. Raises OSError."""
        view, at = memoryview(data), start
        while view:
            written = os.pwrite(self._file, view, at)
            view, at = view[written:], at + written
        for index in range(start // UNIT_BYTES, -(-(start + len(data)) // UNIT_BYTES)):
            self._missing -= not self._have[index]
            self._have[index] = 1

    def read(self, start: int, stop: int) -> bytes:
        return os.pread(self._file, stop - start, start)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Cache:
    """`find` looks up a file that the device has anyway, in a slot. `spare_bytes` of the disk are left free."""

    def __init__(self, folder: Path, most_bytes: int, spare_bytes: int, find: Callable[[str], Path | None]) -> None:
        self._folder, self._most, self._spare, self._find = folder, most_bytes, spare_bytes, find
        self._whole: dict[str, tuple[int, float]] = {}  # size, used at
        self._parts: dict[str, Part] = {}
        self._found: dict[str, tuple[Path | None, float]] = {}

    def open(self) -> None:
        """Keeps what is whole and throws the rest away. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            with suppress(ChunkError):
                self._whole[check_digest(path.name)] = (path.stat().st_size, time.monotonic())
                continue
            path.unlink(missing_ok=True)
        self._make_room(0)

    def whole(self, sha256: str) -> Path | None:
        """The complete file, in a slot or here."""
        found = self._in_a_slot(sha256)
        if found is not None:
            self._drop(sha256)  # twice on one disk is once too often
            return found
        if sha256 not in self._whole:
            return None
        self._whole[sha256] = (self._whole[sha256][0], time.monotonic())
        return self._folder / sha256

    def _in_a_slot(self, sha256: str) -> Path | None:
        """As `find`, which reads every manifest on the device, a moment ago."""
        found, until = self._found.get(sha256, (None, 0.0))
        if time.monotonic() >= until or (found is not None and not found.exists()):
            if len(self._found) >= MAX_FOUND:
                self._found.clear()
            found = self._find(sha256)
            self._found[sha256] = found, time.monotonic() + FOUND_S
        return found

    def look(self, sha256: str, size: int) -> Path | Part:
        """The complete file, or what is here of it, at first nothing. Raises NoRoom, OSError.

        In one step: a file that becomes whole in between must not be begun anew.
        """
        whole = self.whole(sha256)
        if whole is not None:
            return whole
        part = self._parts.get(sha256)
        if part is None or part.size != size:
            self._drop(sha256)
            self._make_room(size)
            part = self._parts[sha256] = Part(self._folder / f"{check_digest(sha256)}.part", size)
        part.used_at = time.monotonic()
        return part

    def finish(self, part: Part, digest: str) -> None:
        """Takes a complete file in, when its digest is what its name says; else throws it away."""
        if self._parts.get(part.sha256) is not part:
            return  # it was thrown away meanwhile
        if digest == part.sha256:
            os.replace(part.path, self._folder / part.sha256)
            self._whole[part.sha256] = (part.size, time.monotonic())
            self._forget(part)
        else:
            _log.warning("what came for neighbours is not the file, thrown away: file=%s", part.sha256)
            self._drop(part.sha256)

    def close(self) -> None:
        """Idempotent."""
        for part in list(self._parts.values()):
            self._drop(part.sha256)

    @property
    def used_bytes(self) -> int:
        return sum(size for size, _ in self._whole.values()) + sum(part.size for part in self._parts.values())

    def _make_room(self, size: int) -> None:
        if size > self._most:
            raise NoRoom(f"expected at most {self._most} bytes (gateway.cache_bytes), got a file of {size}")
        while self.used_bytes + size > self._most or (size and self._free() < size + self._spare):
            oldest = self._oldest()
            if oldest is None:
                raise NoRoom(f"no room on the disk for {size} bytes")
            self._drop(oldest)

    def _oldest(self) -> str | None:
        """What was not used for the longest; nothing that is being read."""
        idle = [(part.used_at, sha256) for sha256, part in self._parts.items() if not part.users]
        idle += [(used_at, sha256) for sha256, (_, used_at) in self._whole.items()]
        return min(idle)[1] if idle else None

    def _free(self) -> int:
        space = os.statvfs(self._folder)
        return space.f_bavail * space.f_frsize

    def _drop(self, sha256: str) -> None:
        part = self._parts.get(sha256)
        if part is not None:
            self._forget(part)
            part.path.unlink(missing_ok=True)
        if self._whole.pop(sha256, None) is not None:
            (self._folder / sha256).unlink(missing_ok=True)

    def _forget(self, part: Part) -> None:
        self._parts.pop(part.sha256, None)
        part.close()
