"""Large tensors of samples: pieces are kept as they come, put together when all are there, checked by their digest.

Pieces are written in the transaction that takes their batch (`monitoring.committing`), so each counts once. Putting
together is a second step that can be done again at any time: a hub that ends in between finds the pieces where they
were. The bytes lie in a folder of their own, so that nothing here can touch a file of a module.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import AsyncIterator, Sequence
from typing import Final

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.errors import HubError
from cloud_hub.events import Events
from cloud_hub.store.bulk import in_slices, upsert
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import blob_pieces, sample_blobs
from modules.pieces import BlobPiece

ROUND_S: Final = 2.0
SWEEP_ROUNDS: Final = 1800  # rounds between two looks at what is old
INCOMPLETE_S: Final = 8 * 86_400.0  # longer than a device keeps a blob
RESENT_S: Final = 3600.0  # a device does not send a blob again that it sent within this
MAX_ROUND: Final = 100
SLICE: Final = 500
MAX_INCOMPLETE_BYTES: Final = 256 * 1024 * 1024  # of one device

_log = logging.getLogger(__name__)


async def keep_pieces(connection: AsyncConnection, items: Sequence[tuple[str, BlobPiece]], now: float) -> None:
    """Each with the device that sent it. Pieces of a blob that is there already only say that it is still of use."""
    if not items:
        return
    digests = sorted({piece.sha256 for _, piece in items})
    there: set[str] = set()
    for some in in_slices(digests):
        query = select(sample_blobs.c.sha256).where(sample_blobs.c.sha256.in_(some))
        there.update((await connection.execute(query)).scalars())
    for some in in_slices(sorted(there)):
        await connection.execute(update(sample_blobs).where(sample_blobs.c.sha256.in_(some)).values(received_at=now))
    full = await _full(connection, {device for device, _ in items})
    rows = {
        (device, piece.sha256, piece.offset): {
            "device": device,
            "sha256": piece.sha256,
            "offset": piece.offset,
            "size": piece.size,
            "length": len(piece.data),
            "received_at": now,
            "data": piece.data,
        }
        for device, piece in items
        if piece.sha256 not in there and device not in full
    }
    await upsert(connection, blob_pieces, list(rows.values()))


async def _full(connection: AsyncConnection, devices: set[str]) -> set[str]:
    """Devices whose incomplete blobs take all the room that there is for them: their pieces are left out."""
    found: set[str] = set()
    for some in in_slices(sorted(devices)):
        total = func.sum(blob_pieces.c.length)
        query = select(blob_pieces.c.device).where(blob_pieces.c.device.in_(some)).group_by(blob_pieces.c.device)
        found.update((await connection.execute(query.having(total > MAX_INCOMPLETE_BYTES))).scalars())
    return found


class SampleBlobs:
    """Whole blobs, by digest. `keep_s` is how long samples are kept."""

    def __init__(self, store: Store, blobs: Blobs, events: Events, clock: Clock, keep_s: float) -> None:
        self._store, self._blobs, self._events, self._clock, self._keep_s = store, blobs, events, clock, keep_s

    async def run(self) -> None:
        """Puts together and removes, until cancelled."""
        rounds = 0
        while True:
            try:
                while await self.assemble():
                    pass
                if rounds % SWEEP_ROUNDS == 0:
                    await self.sweep()
            except Exception:
                _log.exception("blobs of samples could not be seen to; trying again in %s s", ROUND_S)
            rounds += 1
            await asyncio.sleep(ROUND_S)

    async def assemble(self) -> int:
        """Put together what is complete, at most MAX_ROUND blobs; how many of them there were."""
        size, length = func.max(blob_pieces.c.size), func.sum(blob_pieces.c.length)
        keys = (blob_pieces.c.device, blob_pieces.c.sha256)
        query = select(*keys).group_by(*keys).having(length >= size).limit(MAX_ROUND)
        async with self._store.read() as connection:
            complete = (await connection.execute(query)).all()
        for device, sha256 in complete:
            await self._assemble_one(device, sha256)
        return len(complete)

    async def sweep(self) -> tuple[int, int]:
        """Remove blobs that no sample can name any more, and pieces of those that never became whole. How many."""
        now = self._clock()
        old = await self._remove_old(now - self._keep_s - RESENT_S)
        async with self._store.write() as connection:
            late = delete(blob_pieces).where(blob_pieces.c.received_at < now - INCOMPLETE_S)
            return old, (await connection.execute(late)).rowcount

    async def pages(self, sha256: str, piece: int) -> AsyncIterator[bytes]:
        """The bytes, so many at a time. Raises NotFound `blob-not-found` before the first."""
        async for page in self._blobs.pages(sha256, 0, await self._blobs.size(sha256), piece):
            yield page

    async def size(self, sha256: str) -> int:
        """Raises NotFound `blob-not-found` while it is still on its way."""
        return await self._blobs.size(sha256)

    async def here(self, sha256: str) -> bool:
        return await self._blobs.holds(sha256)

    async def read(self, sha256: str) -> bytes:
        """Raises NotFound `blob-not-found`."""
        return await self._blobs.read(sha256)

    async def _assemble_one(self, device: str, sha256: str) -> None:
        mine = (blob_pieces.c.device == device, blob_pieces.c.sha256 == sha256)
        query = select(blob_pieces.c.data).where(*mine).order_by(blob_pieces.c.offset)
        async with self._store.read() as connection:
            data = b"".join((await connection.execute(query)).scalars())
        sound = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest()) == sha256
        if sound:
            await self._blobs.put(data)
        async with self._store.write() as connection:
            await connection.execute(delete(blob_pieces).where(*mine))
            if not sound:
                text = "the bytes of a blob do not have its digest; they were removed"
                await self._events.record(
                    connection, "blob.refused", f"device:{device}", device, key="digest", text=text, sha256=sha256
                )
                return
            known = select(sample_blobs.c.sha256).where(sample_blobs.c.sha256 == sha256)
            if (await connection.execute(known)).one_or_none() is None:
                row = {"sha256": sha256, "size": len(data), "received_at": self._clock()}
                await connection.execute(insert(sample_blobs).values(row))

    async def _remove_old(self, before: float) -> int:
        count = 0
        while True:
            async with self._store.write() as connection:
                query = select(sample_blobs.c.sha256).where(sample_blobs.c.received_at < before).limit(SLICE)
                old = list((await connection.execute(query)).scalars())
                if old:
                    await connection.execute(delete(sample_blobs).where(sample_blobs.c.sha256.in_(old)))
                    for sha256 in old:
                        await self._remove(sha256)
            count += len(old)
            if len(old) < SLICE:
                return count

    async def _remove(self, sha256: str) -> None:
        try:
            await self._blobs.remove(sha256, math.inf)
        except (HubError, OSError) as error:
            _log.warning("a blob of a sample could not be removed", extra={"sha256": sha256, "why": str(error)})
