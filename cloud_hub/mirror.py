"""Copies of the files that devices need in a bucket of an S3-compatible store, and addresses there that end soon.

The hub uploads in the background, one file at a time, and looks before it does: after a restart nothing is sent twice.
Until a file is there, devices are offered the hub's own address. The bucket stays private; an address is a GET of one
object, signed by SigV4. Objects are named by their digests and never change; nothing is deleted here, which is what a
bucket's lifecycle rules are for. Run by `service` where `[transfer.s3]` is set; asked by `ways`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloud_hub.blobs import Blobs
from cloud_hub.bucket.client import open_store
from cloud_hub.bucket.settings import Place
from cloud_hub.clock import Clock
from cloud_hub.errors import HubError
from cloud_hub.transfer_settings import S3Settings

if TYPE_CHECKING:
    from obstore.store import S3Store

SCAN_S: Final = 30.0
FIRST_PAUSE_S, LAST_PAUSE_S = 2.0, 600.0
ASK_TIMEOUT_S: Final = 20.0
MAX_WAITING: Final = 10_000
MAX_HELD: Final = 100_000
PART_BYTES: Final = 8 * 1024 * 1024
PARTS_AT_ONCE: Final = 2
_log = logging.getLogger(__name__)


class Mirror:
    """`needed` gives the digests of all files of modules that are assigned to devices now."""

    def __init__(
        self, settings: S3Settings, blobs: Blobs, clock: Clock, needed: Callable[[], Awaitable[frozenset[str]]]
    ) -> None:
        self._settings = settings
        self._blobs = blobs
        self._clock = clock
        self._needed = needed
        self._store: S3Store | None = None
        self._held: OrderedDict[str, float] = OrderedDict()  # until when it counts as there
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._news = asyncio.Event()
        self._failures = 0

    def open(self) -> None:
        """Raises Unavailable `s3-unavailable` where the library or the credentials are missing. Sends nothing."""
        settings = self._settings
        self._store = open_store(
            Place(settings.bucket, settings.prefix),
            settings.endpoint,
            settings.region,
            settings.load_credentials,
            ASK_TIMEOUT_S,
            settings.upload_timeout_s,
        )

    async def url(self, sha256: str, expires: int) -> str:
        """The object's address until then (seconds since the epoch); empty while it is not there."""
        if self._store is None:
            return ""
        if time.monotonic() >= self._held.get(sha256, 0.0):
            self._want(sha256)
            return ""
        from obstore import sign_async

        life = timedelta(seconds=max(1, int(expires - self._clock())))
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                return await sign_async(self._store, "GET", _key(sha256), life)
        except Exception as error:
            _log.warning("no address of the store: why=%s", _said(error))
            return ""

    async def run(self) -> None:
        """Looks for what is needed and uploads it, until cancelled."""
        scanned_at = float("-inf")
        while True:
            try:
                if time.monotonic() - scanned_at >= SCAN_S:
                    scanned_at = time.monotonic()
                    for sha256 in await self._needed():
                        if time.monotonic() >= self._held.get(sha256, 0.0):
                            self._want(sha256)
                await self._next(SCAN_S)
                self._failures = 0
            except Exception as error:
                # What a store or a database says is no reason to end: devices get the hub's own addresses meanwhile.
                self._failures += 1
                pause = min(LAST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)
                level = logging.WARNING if self._failures in (1, 10) else logging.DEBUG
                _log.log(level, "mirror: trying again in %.0f s: why=%s", pause, _said(error))
                await asyncio.sleep(pause)

    async def _next(self, patience_s: float) -> None:
        """One file, or a wait for one."""
        self._news.clear()
        if not self._waiting:
            try:
                async with asyncio.timeout(patience_s):
                    await self._news.wait()
            except TimeoutError:
                return
        sha256, _ = self._waiting.popitem(last=False)
        try:
            await self._bring(sha256)
        except HubError:
            return  # it is not here any more: nobody needs it
        except BaseException:
            self._waiting[sha256] = None  # behind the others
            raise
        self._held[sha256] = time.monotonic() + self._settings.look_again_s
        self._held.move_to_end(sha256)
        while len(self._held) > MAX_HELD:
            self._held.popitem(last=False)

    async def _bring(self, sha256: str) -> None:
        size = await self._blobs.size(sha256)
        if await self._size(sha256) != size:
            async with self._blobs.at_hand(sha256) as (path,):
                await self._upload(sha256, path)
            _log.info("mirrored: file=%s bytes=%s", sha256, size)

    async def _size(self, sha256: str) -> int:
        """Of the object; -1 where there is none."""
        from obstore import head_async

        assert self._store is not None  # noqa: S101 - `open` comes first
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                return int((await head_async(self._store, _key(sha256)))["size"])
        except FileNotFoundError:
            return -1

    async def _upload(self, sha256: str, path: Path) -> None:
        from obstore import put_async

        assert self._store is not None  # noqa: S101 - `open` comes first
        about = {"Content-Type": "application/octet-stream", "Cache-Control": "private, max-age=31536000, immutable"}
        async with asyncio.timeout(self._settings.upload_timeout_s):
            await put_async(
                self._store, _key(sha256), path, attributes=about, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
            )

    def _want(self, sha256: str) -> None:
        if len(self._waiting) < MAX_WAITING:
            self._waiting[sha256] = None
            self._news.set()


def _key(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256}"


def _said(error: Exception) -> str:
    """Bounded, one line; a store's answer may be long."""
    return "".join(c if c.isprintable() else " " for c in f"{type(error).__name__}: {error}")[:300]
