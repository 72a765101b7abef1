"""Saved queries: a text under a name, for `query = NAME` in any other. What they mean is asked each time anew.

Whoever changes one changes what others mean by it, so only principals without a scope may.
"""

from __future__ import annotations

from typing import Final

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.errors import BadRequest, Conflict, NotFound
from cloud_hub.events import Events
from cloud_hub.groups.book import Description, check_name
from cloud_hub.groups.resolving import in_order, resolved
from cloud_hub.query import Query, parse
from cloud_hub.store.bulk import upsert
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import saved_queries

MAX_QUERIES: Final = 1000


class SavedQuery(msgspec.Struct, frozen=True):
    """A query under its name."""

    name: str
    query: str
    description: str
    changed_at: float


class NewQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text of the query, and what it is for."""

    query: str
    description: Description = ""


class SavedQueries:
    def __init__(self, store: Store, events: Events, clock: Clock) -> None:
        self._store, self._events, self._clock = store, events, clock

    async def list(self) -> list[SavedQuery]:
        """By name."""
        async with self._store.read() as connection:
            rows = await connection.execute(select(saved_queries).order_by(saved_queries.c.name))
            return [SavedQuery(row.name, row.query, row.description, row.changed_at) for row in rows]

    async def get(self, name: str) -> SavedQuery:
        """Raises NotFound `query-not-found`."""
        async with self._store.read() as connection:
            return await _get(connection, name)

    async def put(self, name: str, new: NewQuery, actor: str) -> SavedQuery:
        """In the place of what the name meant before.

        Raises BadRequest `name-invalid`, `query-cycle` or as `resolved`, Conflict `too-many-queries`.
        """
        check_name(name, "query")
        made = SavedQuery(name, parse(new.query).text, new.description, self._clock())
        async with self._store.write() as connection:
            await self._check(connection, name, parse(new.query))
            before = (await connection.execute(select(saved_queries).where(saved_queries.c.name == name))).one_or_none()
            await upsert(connection, saved_queries, [msgspec.structs.asdict(made)])
            was = None if before is None else before.query
            await self._events.record(connection, "query.saved", actor, name, query=made.query, before=was)
        return made

    async def remove(self, name: str, actor: str) -> None:
        """Raises NotFound `query-not-found`, Conflict `query-in-use` where another one names it."""
        async with self._store.write() as connection:
            found = await _get(connection, name)
            others = [one for one, query in (await _all(connection)).items() if name in query.saved()]
            if others:
                text = f"query {name}: {others[0]} names it; change that one first"
                raise Conflict("query-in-use", text, name=name, queries=sorted(others))
            await connection.execute(delete(saved_queries).where(saved_queries.c.name == name))
            await self._events.record(connection, "query.removed", actor, name, query=found.query)

    async def _check(self, connection: AsyncConnection, name: str, query: Query) -> None:
        if name in query.saved():
            raise BadRequest("query-cycle", f"query {name}: it names itself; nothing was saved", name=name)
        await resolved(connection, query.text)
        every = await _all(connection)
        if name not in every and len(every) >= MAX_QUERIES:
            raise Conflict("too-many-queries", f"there are {MAX_QUERIES} saved queries already; nothing was saved")
        in_order({**every, name: query}, query)


async def _all(connection: AsyncConnection) -> dict[str, Query]:
    return {row.name: parse(row.query) for row in await connection.execute(select(saved_queries))}


async def _get(connection: AsyncConnection, name: str) -> SavedQuery:
    row = (await connection.execute(select(saved_queries).where(saved_queries.c.name == name))).one_or_none()
    if row is None:
        raise NotFound("query-not-found", f"no saved query {name[:63]}", name=name[:63])
    return SavedQuery(row.name, row.query, row.description, row.changed_at)
