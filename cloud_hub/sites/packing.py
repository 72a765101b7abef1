"""On a site: what its devices have sent since the last receipt, as one sealed file. Called by `api.sites`.

Nothing is changed by packing: a pack that is lost on its way is made again, and carries the same and what came since.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.events import Events
from cloud_hub.sites import book
from cloud_hub.sites.form import MAGIC, Carried, End, Frame, Head, framed
from cloud_hub.sites.seal import Seal, fingerprint
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import events
from modules.messages import Batch, Stream

PAGE: Final = 500  # rows of one look into the database, and at most of one batch
_STREAMS: Final[tuple[Stream, ...]] = ("window", "sample")


class Packing:
    def __init__(self, store: Store, events: Events, seal: Seal, clock: Clock) -> None:
        self._store, self._events, self._seal, self._clock = store, events, seal, clock

    async def pack(self, actor: str) -> AsyncIterator[bytes]:
        """The file, piece by piece. Rows that come meanwhile are for the next one."""
        digest = hashlib.sha256(MAGIC)
        yield MAGIC
        async for frame in self._frames():
            piece = framed(frame)
            digest.update(piece)
            yield piece
        yield framed(End(self._seal.sign(digest.digest())))
        async with self._store.write() as connection:
            await self._events.record(connection, "site.packed", actor, "site", sha256=digest.hexdigest())

    async def _frames(self) -> AsyncIterator[Frame]:
        yield Head(await self.epoch(), self._clock())
        after = ""
        while True:
            async with self._store.read() as connection:
                found = await book.own_devices(connection, after, PAGE)
            for device in found:
                yield device
            if len(found) < PAGE:
                break
            after = found[-1].id
        for stream in _STREAMS:
            async for carried in self._carried(stream):
                yield carried

    async def _carried(self, stream: Stream) -> AsyncIterator[Carried]:
        """Each batch follows the one before of its device, so that nothing is taken behind a gap."""
        async with self._store.read() as connection:
            at = (await book.marks(connection)).get(stream, 0)
        epoch, last = await self.epoch(), dict[str, int]()
        while rows := await self._page(stream, at):
            entries: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
            for number, device, body in rows:
                entries[device].append((number, body))
            for device, some in entries.items():
                yield Carried(device, Batch(stream, epoch, last.get(device, 0), tuple(some)))
                last[device] = some[-1][0]
            at = rows[-1][0]

    async def _page(self, stream: Stream, at: int) -> list[tuple[int, str, bytes]]:
        async with self._store.read() as connection:
            return await book.rows_behind(connection, stream, at, PAGE)

    async def epoch(self) -> str:
        """One life of this database: another has other numbers."""
        async with self._store.read() as connection:
            born = await _first_event(connection)
        return hashlib.sha256(f"{fingerprint(self._seal.public_key)}\0{born}".encode()).hexdigest()[:32]


async def _first_event(connection: AsyncConnection) -> str:
    """The hash of the audit trail's first event: the database's birth certificate."""
    query = select(events.c.hash).order_by(events.c.id).limit(1)
    return str((await connection.execute(query)).scalar_one_or_none() or "")
