"""How far each stream of each device is committed: marks, read and moved for many at a time. Used by `intake_group`.

`epoch` names one life of a device's outbox. A device that begins epoch after epoch makes the hub forget its oldest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.store.among import pairs_among
from cloud_hub.store.bulk import find, in_slices, upsert
from cloud_hub.store.tables import streams

MAX_SEQUENCE: Final = 2**62
CLOSED: Final = MAX_SEQUENCE + 1  # the mark of an epoch of which this database has lost a part
# Epochs of one stream of one device that are remembered: an honest device begins one when a database was lost.
MAX_EPOCHS: Final = 16


class StreamKey(NamedTuple):
    """One stream in one life of a device's outbox."""

    device: str
    stream: str
    epoch: str


async def read_marks(connection: AsyncConnection, keys: Collection[StreamKey]) -> dict[StreamKey, int]:
    """Without those that nothing was committed of."""
    rows = await find(connection, streams, StreamKey._fields, list(keys))
    return {StreamKey(row.device, row.stream, row.epoch): row.mark for row in rows}


async def move_marks(connection: AsyncConnection, marks: Mapping[StreamKey, int], now: float) -> None:
    """Call inside the transaction that stores what the marks stand for."""
    rows = [{**key._asdict(), "mark": mark, "heard_at": now} for key, mark in marks.items()]
    await upsert(connection, streams, rows)


async def forget_epochs(connection: AsyncConnection, begun: Collection[StreamKey]) -> dict[tuple[str, str], int]:
    """Make room for epochs that begin: those that have not moved for longest go. How many, by device and stream."""
    gone: dict[tuple[str, str], int] = {}
    for some in in_slices(sorted(begun)):
        for device, stream, known in await _crowded(connection, {key[:2] for key in some}):
            beginning = sum(key[:2] == (device, stream) for key in some)
            if known + beginning > MAX_EPOCHS:
                gone[(device, stream)] = await _forget(connection, device, stream, max(MAX_EPOCHS - beginning, 0))
    return gone


async def _crowded(connection: AsyncConnection, outboxes: Collection[tuple[str, str]]) -> list[tuple[str, str, int]]:
    of = pairs_among(streams.c.device, streams.c.stream, outboxes)
    query = select(streams.c.device, streams.c.stream, func.count()).where(of)
    return [tuple(row) for row in await connection.execute(query.group_by(streams.c.device, streams.c.stream))]


async def _forget(connection: AsyncConnection, device: str, stream: str, kept: int) -> int:
    of = (streams.c.device == device, streams.c.stream == stream)
    newest = func.coalesce(streams.c.heard_at, 0.0).desc()
    known = (await connection.execute(select(streams.c.epoch).where(*of).order_by(newest))).scalars().all()
    await connection.execute(delete(streams).where(*of, streams.c.epoch.in_(known[kept:])))
    return len(known[kept:])
