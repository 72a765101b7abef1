"""Events in order for one follower, who remembers how far it has come in a row of the database.

The cursor moves in a transaction of the follower's own, together with what it did about the events: after a kill it
reads again what it had not finished, and loses nothing. Used by `outward.webhooks`, `outward.sinks` and `retraining`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.chain import Event
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import cursors, events

POLL_S: Final = 5.0  # for events that another process recorded, whose bell is not heard here
MAX_READ: Final = 500


class EventFeed:
    """One follower of the events, by its `name`: the name of its cursor."""

    def __init__(self, store: Store, name: str) -> None:
        self.name = name
        self._store = store
        self._heard = -1

    async def open(self, connection: AsyncConnection, after: int | None = None) -> None:
        """Makes the cursor when there is none: at the newest event, or behind the event `after`.

        A feed that was never opened begins with the first event of all.
        """
        if await self._position(connection) is None:
            start = await _newest(connection) if after is None else after
            await connection.execute(insert(cursors).values(name=self.name, event=start))

    async def position(self) -> int:
        """The id of the last event that the follower is done with; 0 before the first."""
        async with self._store.read() as connection:
            return await self._position(connection) or 0

    async def read(self, limit: int = 100, after: int | None = None) -> list[Event]:
        """The events behind the cursor, or behind the id `after`, oldest first; at most `limit` and MAX_READ."""
        async with self._store.read() as connection:
            start = (await self._position(connection) or 0) if after is None else after
            query = select(events).where(events.c.id > start).order_by(events.c.id).limit(min(limit, MAX_READ))
            return [_event(row) for row in await connection.execute(query)]

    async def advance(self, connection: AsyncConnection, event_id: int) -> None:
        """The follower is done with `event_id` and all before it, when this transaction commits. Never goes back."""
        here = cursors.c.name == self.name
        moved = await connection.execute(update(cursors).where(here, cursors.c.event < event_id).values(event=event_id))
        if not moved.rowcount and await self._position(connection) is None:
            await connection.execute(insert(cursors).values(name=self.name, event=event_id))

    async def skip(self, connection: AsyncConnection) -> None:
        """Leaves out everything up to the newest event."""
        await self.advance(connection, await _newest(connection))

    async def behind(self, connection: AsyncConnection) -> int:
        """How many events there are behind the cursor."""
        return await _newest(connection) - (await self._position(connection) or 0)

    async def close(self, connection: AsyncConnection) -> None:
        """Forgets the cursor: the follower is no more."""
        await connection.execute(delete(cursors).where(cursors.c.name == self.name))

    async def news(self, timeout_s: float = POLL_S) -> None:
        """Returns when events may have been recorded since the last call, or after `timeout_s`. Read after it."""
        self._heard = await self._store.bell.heard(self._heard, timeout_s)

    async def _position(self, connection: AsyncConnection) -> int | None:
        query = select(cursors.c.event).where(cursors.c.name == self.name)
        return (await connection.execute(query)).scalar_one_or_none()


async def _newest(connection: AsyncConnection) -> int:
    return (await connection.execute(select(func.max(events.c.id)))).scalar_one() or 0


def _event(row: Row[Any]) -> Event:
    return msgspec.convert(row, Event, from_attributes=True)
