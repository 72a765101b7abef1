"""How good a module is asked to be: a bound per output, set by operators, held by `watch`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from sqlalchemy import Row, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.errors import BadRequest, NotFound
from cloud_hub.events import Events
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules, quality_bounds

Metric = Literal["accuracy", "mae"]


class NewBound(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An accuracy of at least `bound`, or a mean absolute error of at most that; without an output of the main one."""

    module: Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
    metric: Metric
    bound: float
    output: Annotated[str, msgspec.Meta(max_length=200)] = ""


class Bound(msgspec.Struct, frozen=True):
    """How good an output is asked to be, since when, and by whom."""

    module: str
    output: str
    metric: Metric
    bound: float
    set_at: float
    set_by: str


class BoundQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one module, or of all; an empty output is the main one."""

    module: str = ""
    output: str = ""


class Bounds:
    """Rows of `quality_bounds`, each change with its event."""

    def __init__(self, store: Store, events: Events, clock: Clock) -> None:
        self._store, self._events, self._clock = store, events, clock

    async def list(self, module: str = "") -> list[Bound]:
        async with self._store.read() as connection:
            return await bounds_of(connection, module)

    async def set(self, new: NewBound, actor: str) -> Bound:
        """In the place of the one that there was. Raises BadRequest `bound-invalid`, NotFound `module-not-found`."""
        if not (0 < new.bound < 1 if new.metric == "accuracy" else 0 < new.bound < 1e60):
            between = "between 0 and 1" if new.metric == "accuracy" else "above 0"
            raise BadRequest("bound-invalid", f"{new.metric}: expected a number {between}, got {new.bound}")
        made = Bound(new.module, new.output, new.metric, new.bound, self._clock(), actor)
        async with self._store.write() as connection:
            known = select(modules.c.name).where(modules.c.name == new.module).limit(1)
            if (await connection.execute(known)).first() is None:
                raise NotFound("module-not-found", f"no module {new.module} on this hub", name=new.module)
            await connection.execute(delete(quality_bounds).where(*_is(new.module, new.output)))
            await connection.execute(insert(quality_bounds).values(msgspec.structs.asdict(made)))
            said = {"output": new.output, "metric": new.metric, "bound": new.bound}
            await self._events.record(connection, "quality.bound-set", actor, new.module, **said)
        return made

    async def remove(self, module: str, output: str, actor: str) -> None:
        """Raises NotFound `bound-not-found`."""
        async with self._store.write() as connection:
            if not (await connection.execute(delete(quality_bounds).where(*_is(module, output)))).rowcount:
                raise NotFound("bound-not-found", f"{module}: no bound of output {output or '(the main one)'}")
            await self._events.record(connection, "quality.bound-removed", actor, module, output=output)


async def bounds_of(connection: AsyncConnection, module: str = "") -> list[Bound]:
    query = select(quality_bounds).order_by(quality_bounds.c.module, quality_bounds.c.output)
    if module:
        query = query.where(quality_bounds.c.module == module)
    return [_bound(row) for row in await connection.execute(query)]


def _is(module: str, output: str) -> tuple[Any, ...]:
    return quality_bounds.c.module == module, quality_bounds.c.output == output


def _bound(row: Row[Any]) -> Bound:
    return msgspec.convert(row, Bound, from_attributes=True)
