"""Files by their SHA-256 digest in a folder: written once, never changed, the same bytes only once.

A blob is there whole or not at all: temporary file, fsync, rename, fsync of the folder. What blobs mean is known to
those who keep their digests (registry, packaging, image repository). Disk work runs in threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Final

from cloud_hub.errors import BadRequest, NotFound, TooLarge
from modules.bundle import check_digest
from modules.errors import ChunkError
from modules.messages import MAX_BLOCK_BYTES

COPY_BYTES: Final = 1024 * 1024
_TEMPORARY_PREFIX: Final = ".incoming-"


class Blobs:
    """The blobs below `folder`, as aa/<digest> where aa are the digest's first two digits."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffer = bytearray(MAX_BLOCK_BYTES)  # used on the loop only, and never across a wait
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def put(self, data: bytes) -> str:
        """The digest of `data`, which is stored when this returns."""
        return await asyncio.to_thread(self._put, data)

    async def put_file(self, source: Path) -> str:
        """As `put`, with a copy of a local file."""
        return await asyncio.to_thread(self._put_file, source)

    async def put_stream(self, pieces: AsyncIterator[bytes], limit: int) -> tuple[str, int]:
        """Digest and size. Raises TooLarge `upload-too-large` above `limit` bytes; then nothing is kept."""
        size = 0
        with await asyncio.to_thread(_Incoming, self._folder) as incoming:
            async for piece in pieces:
                size += len(piece)
                if size > limit:
                    raise TooLarge(
                        "upload-too-large", f"upload: expected at most {limit} bytes; nothing was stored", limit=limit
                    )
                await asyncio.to_thread(incoming.write, piece)
            return await asyncio.to_thread(incoming.keep, self._place), size

    async def read(self, sha256: str, offset: int = 0, length: int | None = None) -> bytes:
        """At most `length` bytes from `offset` on, or all the rest. Raises NotFound `blob-not-found`."""
        size = self.size(sha256)
        if length is not None and length <= len(self._buffer):
            data = _read_cached(self.path(sha256), offset, max(0, min(length, size - offset)), self._buffer)
            if data is not None:
                return data
        return await asyncio.to_thread(_read, self.path(sha256), offset, length)

    def size(self, sha256: str) -> int:
        """Bytes. Raises NotFound `blob-not-found`."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError as error:
            raise NotFound(
                "blob-not-found", f"no blob {sha256} on this hub; upload the file first", sha256=sha256
            ) from error

    def path(self, sha256: str) -> Path:
        """Where the blob lies, or would. Raises BadRequest `digest-invalid` on what is no digest."""
        try:
            check_digest(sha256)
        except ChunkError as error:
            raise BadRequest("digest-invalid", str(error)) from error
        return self._place(sha256)

    def clean(self) -> None:
        """Removes what an interrupted process left half-written. Only while nothing is being stored."""
        for path in self._folder.glob(f"{_TEMPORARY_PREFIX}*"):
            path.unlink(missing_ok=True)

    def stored_before(self, moment: float) -> set[str]:
        """The digests of all blobs that were last stored before then (seconds since the epoch)."""
        found = (path for path in self._folder.glob("[0-9a-f][0-9a-f]/*") if path.stat().st_mtime < moment)
        return {path.name for path in found}

    def remove(self, sha256: str, before: float) -> int | None:
        """The bytes that this gives back; None where it is gone, or was stored anew since `before`.

        The caller knows that nobody needs it.
        """
        path = self.path(sha256)
        try:
            about = path.stat()
            if about.st_mtime >= before:
                return None
            path.unlink()
        except FileNotFoundError:
            return None
        return about.st_size

    def _place(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256

    def _put(self, data: bytes) -> str:
        with _Incoming(self._folder) as incoming:
            incoming.write(data)
            return incoming.keep(self._place)

    def _put_file(self, source: Path) -> str:
        with source.open("rb") as file, _Incoming(self._folder) as incoming:
            while piece := file.read(COPY_BYTES):
                incoming.write(piece)
            return incoming.keep(self._place)


class _Incoming:
    """A blob on its way in; its name is known only when all of it has come."""

    def __init__(self, folder: Path) -> None:
        handle, name = tempfile.mkstemp(dir=folder, prefix=_TEMPORARY_PREFIX)
        self._file = os.fdopen(handle, "wb")
        self._temporary = Path(name)
        self._digest = hashlib.sha256()

    def __enter__(self) -> _Incoming:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, piece: bytes) -> None:
        self._file.write(piece)
        self._digest.update(piece)

    def keep(self, place: Callable[[str], Path]) -> str:
        sha256 = self._digest.hexdigest()
        target = place(sha256)
        if target.is_file():
            os.utime(target)  # stored anew: `stored_before` must not take it for forgotten
            return sha256
        self._file.flush()
        os.fsync(self._file.fileno())
        if not target.parent.is_dir():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(target.parent.parent)
        self._temporary.replace(target)
        _sync_folder(target.parent)
        return sha256


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path, offset: int, length: int | None) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read() if length is None else file.read(length)


def _read_cached(path: Path, offset: int, length: int, buffer: bytearray) -> bytes | None:
    """What the kernel has in memory; None where it would have to wait for the disk, or cannot say (preadv2(2))."""
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    view = memoryview(buffer)[:length]
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            count = os.preadv(file, [view], offset, os.RWF_NOWAIT)
        finally:
            os.close(file)
    except OSError:
        return None
    return bytes(view) if count == length else None
