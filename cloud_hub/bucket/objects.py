"""Objects below one place of a bucket: asked about, read, written, listed and removed, each within a deadline.

`obstore` is asked here, and its errors end here. Used by `cloud_hub.bucket.blobs`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloud_hub.bucket.client import open_store
from cloud_hub.bucket.settings import MIB, BucketSettings, Place
from cloud_hub.errors import Unavailable

if TYPE_CHECKING:
    from obstore import ObjectMeta

PART_BYTES: Final = 8 * MIB
PIECE_BYTES: Final = MIB
PARTS_AT_ONCE: Final = 2
PAGE: Final = 1000  # names in one answer, as the protocol has it
MAX_SAID: Final = 300


class MissingError(Exception):
    """There is no such object."""


@dataclass(frozen=True)
class About:
    """What the store says of an object. `stored_at` is seconds since the epoch, by the store's clock."""

    size: int
    stored_at: float


class Objects:
    """Names are below `place`. What fails raises Unavailable `blob-store-unreachable` that says what was being done."""

    def __init__(self, place: Place, settings: BucketSettings) -> None:
        """Raises Unavailable `s3-unavailable` where the library or the credentials are missing. Sends nothing."""
        self.place = place
        self._settings = settings
        self._store = open_store(
            place,
            settings.endpoint,
            settings.region,
            settings.load_credentials,
            settings.request_timeout_s,
            settings.transfer_timeout_s,
            settings.checksums,
        )

    async def about(self, name: str) -> About | None:
        """None where there is no such object."""
        from obstore import head_async

        with self._reaching(name):
            try:
                async with asyncio.timeout(self._settings.request_timeout_s):
                    return _about(await head_async(self._store, name))
            except FileNotFoundError:
                return None

    async def part(self, name: str, start: int, end: int) -> bytes | None:
        """Bytes [start, end), which lie inside it; None where there is no such object."""
        from obstore import get_range_async

        with self._reaching(name):
            try:
                async with asyncio.timeout(self._settings.request_timeout_s):
                    return bytes(await get_range_async(self._store, name, start=start, end=end))
            except FileNotFoundError:
                return None

    async def pieces(self, name: str) -> AsyncGenerator[bytes]:
        """All of it, in order. Raises MissingError."""
        from obstore import get_async

        with self._reaching(name):
            try:
                async with asyncio.timeout(self._settings.request_timeout_s):
                    pieces = aiter((await get_async(self._store, name)).stream(min_chunk_size=PIECE_BYTES))
            except FileNotFoundError as error:
                raise MissingError(name) from error
            while True:
                try:
                    async with asyncio.timeout(self._settings.request_timeout_s):
                        piece = bytes(await anext(pieces))
                except StopAsyncIteration:
                    return
                yield piece

    async def put(self, name: str, source: Path) -> None:
        """A local file, in parts where it is large. The object is there whole or not at all."""
        from obstore import put_async

        about = {"Content-Type": "application/octet-stream", "Cache-Control": "private, max-age=31536000, immutable"}
        with self._reaching(name):
            async with asyncio.timeout(self._settings.transfer_timeout_s):
                await put_async(
                    self._store, name, source, attributes=about, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
                )

    async def remove(self, name: str) -> None:
        """Also where there is none."""
        from obstore import delete_async

        with self._reaching(name):
            async with asyncio.timeout(self._settings.request_timeout_s):
                await delete_async(self._store, name)

    async def all(self) -> AsyncGenerator[tuple[str, About]]:
        """Every object, page by page; one that comes meanwhile may be among them or not."""
        import obstore

        with self._reaching(""):
            pages = aiter(obstore.list(self._store, chunk_size=PAGE))
            while True:
                try:
                    async with asyncio.timeout(self._settings.request_timeout_s):
                        page = await anext(pages)
                except StopAsyncIteration:
                    return
                for found in page:
                    yield found["path"], _about(found)

    @contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError, TimeoutError, ValueError) as error:
            what = f"{self.place}/{name}" if name else f"{self.place}"
            text = f"blobs: {what} at {self._settings.endpoint}: {said(error)}; try again later"
            raise Unavailable("blob-store-unreachable", text) from error


def _about(found: ObjectMeta) -> About:
    return About(int(found["size"]), found["last_modified"].timestamp())


def said(error: BaseException) -> str:
    """Bounded, one line; a store's answer may be long, and a timeout says nothing."""
    text = "".join(c if c.isprintable() else " " for c in f"{error}") or "no answer in time"
    return f"{type(error).__name__}: {text}"[:MAX_SAID]
