"""From the text of a query to the devices that it means: saved queries are put in, then the database is asked.

Called by every room that takes a query from a person, within a transaction of its own.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import ColumnElement, select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.errors import BadRequest
from cloud_hub.query import Moment, Query, parse
from cloud_hub.roles import EVERYTHING, Scope
from cloud_hub.store.tables import device_groups, devices, saved_queries

MAX_SAVED: Final = 32  # saved queries that one query may come to, with those that they name


async def resolved(connection: AsyncConnection, text: str) -> Query:
    """As `put_in`, of a text."""
    return await put_in(connection, parse(text))


async def put_in(connection: AsyncConnection, query: Query) -> Query:
    """The query with the saved ones in it, and every group that it names by its whole name there.

    Raises BadRequest `query-invalid`, `query-unknown`, `query-cycle` or `group-unknown`.
    """
    if not query.needs() & {"queries", "groups"}:
        return query
    found = await _texts(connection, query)
    order = in_order(found, query)
    whole: dict[str, Query] = {}
    for name in order:
        whole[name] = found[name].with_saved(whole)
    query = query.with_saved(whole)
    await _check_groups(connection, query)
    return query


async def where(
    connection: AsyncConnection, text: str, moment: Moment, scope: Scope = EVERYTHING
) -> ColumnElement[bool]:
    """A condition on rows of `devices`: those that the text means and that are in scope. Raises as `resolved`."""
    query = await resolved(connection, text)
    return query.where(moment) & in_scope(scope)


def in_scope(scope: Scope) -> ColumnElement[bool]:
    """Scopes look at nothing that changes with time."""
    return true() if scope.query is None else scope.query.where(Moment(0.0, 0.0))


async def meant(connection: AsyncConnection, text: str, moment: Moment, scope: Scope = EVERYTHING) -> list[str]:
    """The ids of the devices that the text means, in their order; none that was retired. Raises as `resolved`."""
    which = await where(connection, text, moment, scope)
    rows = await connection.execute(select(devices.c.id).where(which, devices.c.retired_at.is_(None)).order_by("id"))
    return list(rows.scalars())


def in_order(queries: dict[str, Query], query: Query) -> list[str]:
    """The names of all that `query` comes to, each behind those that it names. Raises BadRequest `query-cycle`."""
    order: list[str] = []
    path: list[str] = []

    def visit(one: Query) -> None:
        for name in sorted(one.saved()):
            if name in path:
                circle = " -> ".join([*path[path.index(name) :], name])
                raise BadRequest(
                    "query-cycle", f"query: saved queries name each other in a circle: {circle}", name=name
                )
            if name not in order:
                path.append(name)
                visit(queries[name])
                path.pop()
                order.append(name)

    visit(query)
    return order


async def _texts(connection: AsyncConnection, query: Query) -> dict[str, Query]:
    """All that it names, and all that these name. Raises BadRequest `query-unknown` or `query-invalid`."""
    found: dict[str, Query] = {}
    wanted = query.saved()
    while wanted:
        if len(found) + len(wanted) > MAX_SAVED:
            raise BadRequest("query-invalid", f"query: expected at most {MAX_SAVED} saved queries in it")
        rows = await connection.execute(select(saved_queries).where(saved_queries.c.name.in_(sorted(wanted))))
        found |= {row.name: parse(row.query) for row in rows}
        if missing := sorted(wanted - found.keys()):
            raise BadRequest("query-unknown", f"query: there is no saved query {missing[0]!r}", name=missing[0])
        wanted = frozenset(name for name in wanted for name in found[name].saved()) - found.keys()
    return found


async def _check_groups(connection: AsyncConnection, query: Query) -> None:
    """A slip in the name of a group would mean no device, and nobody would notice."""
    named = {value for value in query.values("group") if "*" not in value}
    if not named:
        return
    rows = await connection.execute(select(device_groups.c.name).where(device_groups.c.name.in_(sorted(named))))
    if missing := sorted(named - set(rows.scalars())):
        raise BadRequest("group-unknown", f"query: there is no group {missing[0]!r}", name=missing[0])
