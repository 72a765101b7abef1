"""Files by their SHA-256 digest: written once, never changed, the same bytes only once.

`Blobs` is what every room works with; here are those of one folder, `cloud_hub.bucket` has those of an S3-compatible
store. A blob is there whole or not at all: temporary file, fsync, rename, fsync of the folder. What blobs mean is known
to those who keep their digests (registry, packaging, image repository). Disk work runs in threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

from cloud_hub.errors import BadRequest, NotFound, TooLarge
from modules.bundle import check_digest
from modules.errors import ChunkError
from modules.messages import MAX_BLOCK_BYTES

COPY_BYTES: Final = 1024 * 1024
ANY: Final = "[0-9a-f][0-9a-f]"  # the folders of blobs
DIGEST_CHARS: Final = 64
_HEX: Final = frozenset("0123456789abcdef")
_TEMPORARY_PREFIX: Final = ".incoming-"


class Blobs(Protocol):
    """What a store of blobs does. Any of it may raise Unavailable `blob-store-unreachable`; nothing is half-done then.

    Every method that takes a digest raises BadRequest `digest-invalid` on what is none.
    """

    async def put(self, data: bytes) -> str:
        """The digest of `data`, which is stored when this returns."""

    async def put_file(self, source: Path) -> str:
        """As `put`, with a copy of a local file."""

    async def put_stream(self, pieces: AsyncIterator[bytes], limit: int) -> tuple[str, int]:
        """Digest and size. Raises TooLarge `upload-too-large` above `limit` bytes; then nothing is kept."""

    async def read(self, sha256: str, offset: int = 0, length: int | None = None) -> bytes:
        """At most `length` bytes from `offset` on, or all the rest. Raises NotFound `blob-not-found`."""

    def pages(self, sha256: str, start: int, end: int, piece: int) -> AsyncGenerator[bytes]:
        """Bytes [start, end) in order, at most `piece` at a time. Raises NotFound `blob-not-found` before the first."""

    async def size(self, sha256: str) -> int:
        """Bytes. Raises NotFound `blob-not-found`."""

    async def holds(self, sha256: str) -> bool:
        """Whether it is there."""

    def at_hand(self, *digests: str) -> AbstractAsyncContextManager[tuple[Path, ...]]:
        """Whole local files, in the order asked for, until the end of the block; not to be changed.

        Raises NotFound `blob-not-found`.
        """

    async def copy(self, sha256: str, target: Path) -> None:
        """To a new local file. Raises NotFound `blob-not-found`."""

    async def stored_before(self, moment: float) -> set[str]:
        """The digests of all blobs that were last stored before then (seconds since the epoch)."""

    async def remove(self, sha256: str, before: float) -> int | None:
        """The bytes that this gives back; None where it is gone, or was stored anew since `before`.

        The caller knows that nobody needs it.
        """

    async def total_bytes(self) -> int:
        """Of all blobs. Looks at each of them, so it is asked for rarely."""

    async def clean(self) -> None:
        """Removes what an interrupted process left half-written. Only while nothing is being stored."""

    async def close(self) -> None:
        """Ends what goes on in the background."""


class FolderBlobs:
    """The blobs below `folder`, as aa/<digest> where aa are the digest's first two digits."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffer = bytearray(MAX_BLOCK_BYTES)  # used on the loop only, and never across a wait
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def put(self, data: bytes) -> str:
        return await asyncio.to_thread(self._put, data)

    async def put_file(self, source: Path) -> str:
        return await asyncio.to_thread(self._put_file, source)

    async def put_stream(self, pieces: AsyncIterator[bytes], limit: int) -> tuple[str, int]:
        with await asyncio.to_thread(Incoming, self._folder) as incoming:
            size = await receive(pieces, limit, incoming)
            return await asyncio.to_thread(incoming.keep, self._place), size

    async def read(self, sha256: str, offset: int = 0, length: int | None = None) -> bytes:
        """At once where the kernel has the bytes in memory."""
        path = self.path(sha256)
        if length is not None and length <= len(self._buffer):
            data = read_cached(path, offset, max(0, min(length, self._size(sha256) - offset)), self._buffer)
            if data is not None:
                return data
        try:
            return await asyncio.to_thread(read_part, path, offset, length)
        except FileNotFoundError as error:
            raise not_found(sha256) from error

    async def pages(self, sha256: str, start: int, end: int, piece: int) -> AsyncGenerator[bytes]:
        try:
            file = self.path(sha256).open("rb")  # not in a thread: who is cancelled meanwhile could not close it
        except FileNotFoundError as error:
            raise not_found(sha256) from error
        with file:
            await asyncio.to_thread(file.seek, start)
            while start < end and (data := await asyncio.to_thread(file.read, min(piece, end - start))):
                yield data
                start += len(data)

    async def size(self, sha256: str) -> int:
        return self._size(sha256)

    async def holds(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    @asynccontextmanager
    async def at_hand(self, *digests: str) -> AsyncIterator[tuple[Path, ...]]:
        for sha256 in digests:
            self._size(sha256)
        yield tuple(self.path(sha256) for sha256 in digests)

    async def copy(self, sha256: str, target: Path) -> None:
        try:
            await asyncio.to_thread(shutil.copyfile, self.path(sha256), target)
        except FileNotFoundError as error:
            self._size(sha256)  # says so where it was the blob that is not there
            raise error

    def path(self, sha256: str) -> Path:
        """Where the blob lies, or would. Raises BadRequest `digest-invalid` on what is no digest."""
        require_digest(sha256)
        return self._place(sha256)

    async def clean(self) -> None:
        await asyncio.to_thread(remove_remains, self._folder)

    async def stored_before(self, moment: float) -> set[str]:
        return await asyncio.to_thread(self._stored_before, moment)

    async def remove(self, sha256: str, before: float) -> int | None:
        return await asyncio.to_thread(self._remove, self.path(sha256), before)

    async def total_bytes(self) -> int:
        return await asyncio.to_thread(self._total_bytes)

    async def close(self) -> None:
        """Nothing goes on in the background."""

    def _size(self, sha256: str) -> int:
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError as error:
            raise not_found(sha256) from error

    def _stored_before(self, moment: float) -> set[str]:
        found = (path for path in self._folder.glob(f"{ANY}/*") if path.stat().st_mtime < moment)
        return {path.name for path in found}

    def _total_bytes(self) -> int:
        total = 0
        for path in self._folder.glob(f"{ANY}/*"):
            with suppress(FileNotFoundError):  # it was removed meanwhile
                total += path.stat().st_size
        return total

    def _remove(self, path: Path, before: float) -> int | None:
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
        with Incoming(self._folder) as incoming:
            incoming.write(data)
            return incoming.keep(self._place)

    def _put_file(self, source: Path) -> str:
        with Incoming(self._folder) as incoming:
            incoming.write_file(source)
            return incoming.keep(self._place)


class Incoming:
    """A blob on its way into `folder`; its name is known only when all of it has come."""

    def __init__(self, folder: Path) -> None:
        handle, name = tempfile.mkstemp(dir=folder, prefix=_TEMPORARY_PREFIX)
        self._file = os.fdopen(handle, "wb")
        self.path = Path(name)
        self._digest = hashlib.sha256()

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    def write(self, piece: bytes | memoryview) -> None:
        self._file.write(piece)
        self._digest.update(piece)

    def write_file(self, source: Path) -> None:
        with source.open("rb") as file:
            while piece := file.read(COPY_BYTES):
                self.write(piece)

    def sha256(self) -> str:
        """Of all that has come."""
        return self._digest.hexdigest()

    def whole(self) -> Path:
        """The temporary file, with all that has come in it."""
        self._file.flush()
        return self.path

    def keep(self, place: Callable[[str], Path]) -> str:
        """Its digest; it lies where `place` says when this returns, also after a power cut."""
        sha256 = self.sha256()
        target = place(sha256)
        if target.is_file():
            os.utime(target)  # stored anew: `stored_before` must not take it for forgotten
            return sha256
        self._file.flush()
        os.fsync(self._file.fileno())
        if not target.parent.is_dir():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(target.parent.parent)
        self.path.replace(target)
        _sync_folder(target.parent)
        return sha256


async def receive(pieces: AsyncIterator[bytes], limit: int, incoming: Incoming) -> int:
    """How many bytes have come. Raises TooLarge `upload-too-large`."""
    size = 0
    async for piece in pieces:
        size += len(piece)
        if size > limit:
            text = f"upload: expected at most {limit} bytes; nothing was stored"
            raise TooLarge("upload-too-large", text, limit=limit)
        await asyncio.to_thread(incoming.write, piece)
    return size


def require_digest(sha256: str) -> None:
    """Raises BadRequest `digest-invalid`."""
    try:
        check_digest(sha256)
    except ChunkError as error:
        raise BadRequest("digest-invalid", str(error)) from error


def not_found(sha256: str) -> NotFound:
    return NotFound("blob-not-found", f"no blob {sha256} on this hub; upload the file first", sha256=sha256)


def is_place(name: str) -> bool:
    """Whether a blob's file or object may be called so, below its folder."""
    folder, _, sha256 = name.partition("/")
    return len(sha256) == DIGEST_CHARS and folder == sha256[:2] and not set(sha256) - _HEX


def remove_remains(folder: Path) -> None:
    """What was on its way in when a process ended. Only while nothing is."""
    for path in folder.glob(f"{_TEMPORARY_PREFIX}*"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_part(path: Path, offset: int, length: int | None) -> bytes:
    """Of a local file. Raises FileNotFoundError."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read() if length is None else file.read(length)


def read_cached(path: Path, offset: int, length: int, buffer: bytearray) -> bytes | None:
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
