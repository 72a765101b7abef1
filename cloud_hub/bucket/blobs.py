"""Blobs in a bucket, which all replicas of a hub share, behind a cache of whole files in the hub's own folder.

What is stored is first whole on this machine with its digest known, then sent, and only then named to anybody. What is
read comes from the cache; what is not there is fetched once for all who wait, and is checked against its digest before
it counts. Of a large file parts are read from the bucket until it has come. Built by `opening`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

from cloud_hub.blobs import (
    Incoming,
    is_place,
    not_found,
    read_cached,
    read_part,
    receive,
    remove_remains,
    require_digest,
)
from cloud_hub.bucket.cache import Cache
from cloud_hub.bucket.objects import MissingError, Objects
from cloud_hub.bucket.settings import MIB
from cloud_hub.errors import HubError, NotFound, Unavailable
from modules.messages import MAX_BLOCK_BYTES

WHOLE_BYTES: Final = 4 * MIB  # a file of that size comes whole before anybody reads of it
STRIDE_BYTES: Final = MIB  # what is asked of the bucket at a time where a file is not here
FETCHES: Final = 4
PARTS: Final = 32
KNOWN_S: Final = 60.0
MAX_KNOWN: Final = 100_000
CLOSE_S: Final = 5.0
_log = logging.getLogger(__name__)


class BucketBlobs:
    """`refresh_s`: what was stored longer ago is sent again when it is stored anew, so that it counts as new.

    Objects are named aa/<digest> as files in a folder are.
    """

    def __init__(self, objects: Objects, cache: Cache, refresh_s: float) -> None:
        self._objects = objects
        self._cache = cache
        self._refresh_s = refresh_s
        self._buffer = bytearray(MAX_BLOCK_BYTES)  # used on the loop only, and never across a wait
        self._known: OrderedDict[str, tuple[int, float]] = OrderedDict()  # size, and until when that counts
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(FETCHES)
        self._part_turns = asyncio.Semaphore(PARTS)

    async def put(self, data: bytes) -> str:
        with await asyncio.to_thread(Incoming, self._cache.folder) as incoming:
            await asyncio.to_thread(incoming.write, data)
            return await self._store(incoming)

    async def put_file(self, source: Path) -> str:
        with await asyncio.to_thread(Incoming, self._cache.folder) as incoming:
            await asyncio.to_thread(incoming.write_file, source)
            return await self._store(incoming)

    async def put_stream(self, pieces: AsyncIterator[bytes], limit: int) -> tuple[str, int]:
        with await asyncio.to_thread(Incoming, self._cache.folder) as incoming:
            size = await receive(pieces, limit, incoming)
            return await self._store(incoming), size

    async def read(self, sha256: str, offset: int = 0, length: int | None = None) -> bytes:
        require_digest(sha256)
        with self._cache.pinned(sha256):
            data = await self._local(sha256, offset, length)
            if data is not None:
                return data
            size = await self.size(sha256)
            end = size if length is None else min(size, offset + length)
            if end <= offset:
                return b""
            if await self._comes_at_once(sha256, size, whole=length is None):
                data = await self._local(sha256, offset, length)
                if data is not None:
                    return data
        async with self._part_turns:
            part = await self._objects.part(_name(sha256), offset, end)
        if part is None:
            raise self._gone(sha256)
        return part

    async def pages(self, sha256: str, start: int, end: int, piece: int) -> AsyncGenerator[bytes]:
        for at in range(start, end, STRIDE_BYTES):
            stride = await self.read(sha256, at, min(STRIDE_BYTES, end - at))
            for begin in range(0, len(stride), piece):
                yield stride[begin : begin + piece]

    async def size(self, sha256: str) -> int:
        require_digest(sha256)
        size, until = self._known.get(sha256, (0, -math.inf))
        if time.monotonic() < until:
            return size
        try:
            about = await self._objects.about(_name(sha256))
        except Unavailable:
            # What was there does not change: devices go on with what is here while the store is away.
            if (here := self._cache.size(sha256)) is None:
                raise
            self._note(sha256, here)
            return here
        if about is None:
            raise self._gone(sha256)
        self._note(sha256, about.size)
        return about.size

    async def holds(self, sha256: str) -> bool:
        try:
            await self.size(sha256)
        except NotFound:
            return False
        return True

    @asynccontextmanager
    async def at_hand(self, *digests: str) -> AsyncIterator[tuple[Path, ...]]:
        with ExitStack() as pins:
            for sha256 in digests:
                require_digest(sha256)
                pins.enter_context(self._cache.pinned(sha256))
            paths = [await self._fetched(sha256) for sha256 in digests]
            yield tuple(paths)

    async def copy(self, sha256: str, target: Path) -> None:
        async with self.at_hand(sha256) as (path,):
            await asyncio.to_thread(shutil.copyfile, path, target)

    async def stored_before(self, moment: float) -> set[str]:
        found = set()
        async with aclosing(self._objects.all()) as objects:
            async for name, about in objects:
                if is_place(name) and about.stored_at < moment:
                    found.add(name.rpartition("/")[2])
        return found

    async def remove(self, sha256: str, before: float) -> int | None:
        require_digest(sha256)
        about = await self._objects.about(_name(sha256))
        if about is None or about.stored_at >= before:
            return None
        self._known.pop(sha256, None)
        await self._objects.remove(_name(sha256))
        await self._cache.remove(sha256)
        return about.size

    async def total_bytes(self) -> int:
        async with aclosing(self._objects.all()) as objects:
            return sum([about.size async for name, about in objects if is_place(name)])

    async def clean(self) -> None:
        """Of this machine. Parts of a file that never became one are the store's to remove, by a rule of the bucket."""
        await asyncio.to_thread(remove_remains, self._cache.folder)

    async def close(self) -> None:
        tasks = list(self._fetches.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)

    async def _store(self, incoming: Incoming) -> str:
        """Sends what has come, unless it is there since not long ago."""
        sha256, path = incoming.sha256(), await asyncio.to_thread(incoming.whole)
        size = path.stat().st_size
        about = await self._objects.about(_name(sha256))
        if about is None or about.size != size or about.stored_at < time.time() - self._refresh_s:
            await self._objects.put(_name(sha256), path)
            about = await self._objects.about(_name(sha256))
            if about is None or about.size != size:
                text = f"blobs: {self._objects.place} does not have {sha256} with {size} bytes after it took them"
                raise Unavailable("blob-store-unreachable", f"{text}; try again later")
        self._note(sha256, size)
        if size <= self._cache.limit:
            await self._cache.keep(incoming)
        return sha256

    async def _comes_at_once(self, sha256: str, size: int, whole: bool) -> bool:
        """Whether it is here now; a large file is on its way then."""
        if whole or size <= min(WHOLE_BYTES, self._cache.limit):
            await self._fetched(sha256)
            return True
        if size <= self._cache.limit:
            self._fetch(sha256)
        return False

    async def _local(self, sha256: str, offset: int, length: int | None) -> bytes | None:
        """None where it is not here, or somebody has removed the file."""
        path, size = self._cache.path(sha256), self._cache.size(sha256)
        if path is None or size is None:
            return None
        if length is not None and length <= len(self._buffer):
            data = read_cached(path, offset, max(0, min(length, size - offset)), self._buffer)
            if data is not None:
                return data
        try:
            return await asyncio.to_thread(read_part, path, offset, length)
        except FileNotFoundError:
            self._cache.forget(sha256)
            return None

    async def _fetched(self, sha256: str) -> Path:
        """Where it lies. Whoever waits may be cancelled; the others get it all the same. The caller has pinned it."""
        path = self._cache.path(sha256)
        if path is not None and path.is_file():
            return path
        self._cache.forget(sha256)
        await asyncio.shield(self._fetch(sha256))
        return self._cache.place(sha256)

    def _fetch(self, sha256: str) -> asyncio.Task[None]:
        """One for all who want it."""
        task = self._fetches.get(sha256)
        if task is None:
            task = self._fetches[sha256] = asyncio.create_task(self._bring(sha256), name=f"blob-{sha256[:8]}")
            task.add_done_callback(lambda done: self._brought(sha256, done))
        return task

    def _brought(self, sha256: str, task: asyncio.Task[None]) -> None:
        del self._fetches[sha256]
        if not task.cancelled() and (error := task.exception()) is not None:
            level = logging.DEBUG if isinstance(error, HubError) else logging.WARNING
            _log.log(level, "a blob was not fetched: sha256=%s why=%s", sha256, error)

    async def _bring(self, sha256: str) -> None:
        async with self._turns, aclosing(self._objects.pieces(_name(sha256))) as pieces:
            with self._cache.pinned(sha256), await asyncio.to_thread(Incoming, self._cache.folder) as incoming:
                try:
                    async for piece in pieces:
                        await asyncio.to_thread(incoming.write, piece)
                except MissingError as error:
                    raise self._gone(sha256) from error
                if incoming.sha256() != sha256:
                    text = f"blobs: what {self._objects.place} has as {sha256} has another digest; restore a backup"
                    raise Unavailable("blob-damaged", text)
                await self._cache.keep(incoming)

    def _note(self, sha256: str, size: int) -> None:
        self._known[sha256] = size, time.monotonic() + KNOWN_S
        self._known.move_to_end(sha256)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def _gone(self, sha256: str) -> NotFound:
        self._known.pop(sha256, None)
        return not_found(sha256)


def _name(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256}"
