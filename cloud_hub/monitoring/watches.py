"""Which reference a module, or a device or group of it, is compared with: set by an operator, kept in the database.

Counts of a period or of another version are summed once, when they are chosen, so that they stay what they were while
looks are added and forgotten. What is done with them: `bases`. Used by `alerts` and the API.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.builds import builds_of
from cloud_hub.clock import Clock
from cloud_hub.errors import Conflict, NotFound
from cloud_hub.events import Events
from cloud_hub.monitoring.bases import MAX_BUILDS, Bases, Counted
from cloud_hub.monitoring.integers import pack
from cloud_hub.monitoring.reference import TRAINING, Reference
from cloud_hub.monitoring.references import References, Watched
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import watch_counts, watches


class Watch(msgspec.Struct, frozen=True):
    """What `module` is compared with in a scope ("fleet" is for every scope without a watch of its own)."""

    module: str
    scope: str
    reference: Reference
    author: str
    at: float


class Watches:
    """Sets and lists them."""

    def __init__(self, store: Store, events: Events, references: References, clock: Clock) -> None:
        self._store = store
        self._events = events
        self._references = references
        self._clock = clock
        self._bases = Bases(references)

    async def set(self, module: str, scope: str, reference: Reference, actor: str) -> Watch:
        """From now on. `scope` as in alerts; training takes the watch away.

        Raises NotFound `module-not-found`, Conflict `reference-empty` where nothing was counted there.
        """
        builds = await self._builds(module)
        async with self._store.read() as connection:
            sums = {
                build.reference_sha256: await self._bases.count(connection, build, scope, reference) for build in builds
            }
        if reference.kind in ("period", "version") and not any(one.rows for one in sums.values()):
            raise Conflict(
                "reference-empty",
                f"{reference} of {module}: nothing was counted there in cells that fit; nothing was changed",
            )
        watch = Watch(module, scope, reference, actor, self._clock())
        async with self._store.write() as connection:
            await self._write(connection, watch, sums)
        return watch

    async def _builds(self, module: str) -> list[Watched]:
        """Newest versions first, one for each reference profile."""
        async with self._store.read() as connection:
            found = await builds_of(connection, module, limit=MAX_BUILDS)
        if not found:
            raise NotFound("module-not-found", f"no module {module} on this hub", name=module)
        builds = [build for sha256 in found if (build := await self._references.get(sha256)) is not None]
        return list({build.reference_sha256: build for build in reversed(builds)}.values())

    async def _write(self, connection: AsyncConnection, watch: Watch, sums: dict[str, Counted]) -> None:
        for table in (watches, watch_counts):
            await connection.execute(delete(table).where(table.c.module == watch.module, table.c.scope == watch.scope))
        if watch.reference != TRAINING:
            await connection.execute(insert(watches).values(msgspec.to_builtins(watch)))
        for sha256, one in sums.items():
            if one.rows:
                row = {"module": watch.module, "scope": watch.scope, "reference_sha256": sha256, "rows": one.rows}
                packed = {"counts": pack(one.counts), "joint": pack(one.joint) if one.joint.size else None}
                await connection.execute(insert(watch_counts).values(**row, **packed))
        told = {"scope": watch.scope, "reference": str(watch.reference)}
        await self._events.record(connection, "module.watched", watch.author, watch.module, **told)

    async def all(self, module: str = "") -> list[Watch]:
        """By module and scope. What is not listed is compared with its training data."""
        query = select(watches).order_by(watches.c.module, watches.c.scope)
        async with self._store.read() as connection:
            rows = await connection.execute(query.where(watches.c.module == module) if module else query)
            return [msgspec.convert(row, Watch, from_attributes=True) for row in rows]
