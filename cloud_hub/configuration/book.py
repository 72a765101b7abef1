"""Revisions of configurations as rows, and which of them stands. Functions over a connection.

Numbers only grow: going back to a revision makes a new one with its content. Writing ones belong into the caller's
transaction. Used by `configurations` and `resolving`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Row, and_, func, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.configuration.document import Document, to_document
from cloud_hub.errors import NotFound
from cloud_hub.store.tables import configurations, rollouts

FINISHED: Final = "finished"  # the state of a rollout that has reached its end, see rollouts.states
MAX_COMMENT: Final = 500


class Revision(msgspec.Struct, frozen=True):
    """One revision of a module's configuration. `base` is the one that it was made from (0: nothing).

    `stands`: this is what devices get that are given the module now. `rollouts` are those that carry it, newest first.
    """

    module: str
    revision: int
    document: Document
    base: int
    comment: str
    created_at: float
    created_by: str
    stands: bool = False
    rollouts: tuple[str, ...] = ()


async def add(
    connection: AsyncConnection,
    module: str,
    document: Document,
    base: int,
    comment: str,
    actor: str,
    now: float,
) -> Revision:
    last = select(func.max(configurations.c.revision)).where(configurations.c.module == module)
    number = ((await connection.execute(last)).scalar_one() or 0) + 1
    made = Revision(module, number, document, base, comment[:MAX_COMMENT], now, actor)
    values = {
        name: getattr(made, name) for name in ("module", "revision", "base", "comment", "created_at", "created_by")
    }
    await connection.execute(insert(configurations).values(**values, document=msgspec.to_builtins(document)))
    return made


async def get(connection: AsyncConnection, module: str, revision: int) -> Revision:
    """Raises NotFound `configuration-not-found`."""
    query = select(configurations).where(configurations.c.module == module, configurations.c.revision == revision)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        text = f"module {module} has no revision {revision} of its configuration"
        raise NotFound("configuration-not-found", text, module=module, revision=revision)
    return _revision(row, await standing(connection, module), await _carriers(connection, module, [revision]))


async def document(connection: AsyncConnection, module: str, revision: int) -> Document:
    """Empty for revision 0. Raises NotFound `configuration-not-found`."""
    return (await get(connection, module, revision)).document if revision else Document()


async def history(connection: AsyncConnection, module: str, limit: int, before: int = 0) -> list[Revision]:
    """Newest first; with `before` only older ones."""
    query = select(configurations).where(configurations.c.module == module)
    if before:
        query = query.where(configurations.c.revision < before)
    rows = (await connection.execute(query.order_by(configurations.c.revision.desc()).limit(limit))).all()
    carriers = await _carriers(connection, module, [row.revision for row in rows])
    stands = await standing(connection, module)
    return [_revision(row, stands, carriers) for row in rows]


async def standing(connection: AsyncConnection, module: str) -> int:
    """The revision that stands: the newest that a finished rollout has brought, or that needed none. 0: none does."""
    brought = and_(
        rollouts.c.module == configurations.c.module,
        rollouts.c.config == configurations.c.revision,
        rollouts.c.state == FINISHED,
    )
    stood: ColumnElement[bool] = or_(
        configurations.c.stood_at.is_not(None), select(rollouts.c.id).where(brought).exists()
    )
    query = select(func.max(configurations.c.revision)).where(configurations.c.module == module, stood)
    return (await connection.execute(query)).scalar_one() or 0


async def modules(connection: AsyncConnection, limit: int) -> list[tuple[str, int]]:
    """Each module that has a configuration, with its newest revision."""
    newest = func.max(configurations.c.revision)
    query = select(configurations.c.module, newest).group_by(configurations.c.module)
    return [
        (name, number)
        for name, number in await connection.execute(query.order_by(configurations.c.module).limit(limit))
    ]


async def stand(connection: AsyncConnection, module: str, revision: int, now: float) -> None:
    """No device has to change for it."""
    change = configurations.update().where(configurations.c.module == module, configurations.c.revision == revision)
    await connection.execute(change.values(stood_at=now))


async def _carriers(connection: AsyncConnection, module: str, revisions: list[int]) -> dict[int, tuple[str, ...]]:
    query = (
        select(rollouts.c.id, rollouts.c.config)
        .where(rollouts.c.module == module, rollouts.c.config.in_(revisions))
        .order_by(rollouts.c.created_at.desc())
    )
    found: dict[int, tuple[str, ...]] = {}
    for id_, revision in await connection.execute(query):
        found[revision] = (*found.get(revision, ()), id_)
    return found


def _revision(row: Row[Any], stands: int, carriers: dict[int, tuple[str, ...]]) -> Revision:
    return Revision(
        row.module,
        row.revision,
        to_document(row.document),
        row.base,
        row.comment,
        row.created_at,
        row.created_by,
        row.revision == stands,
        carriers.get(row.revision, ()),
    )
