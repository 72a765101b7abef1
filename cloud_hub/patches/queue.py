"""The rows of `patches`: what is to be built, what was, and why something was not. SQL only.

A row is queued, building, then built, dropped (it would save too little) or failed. It is `building` before anything
is done, so that a build which ends the hub counts as an attempt. Called by `build`, `choose` and `retention`.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, and_, delete, func, insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.patches.wishes import Wish
from cloud_hub.store.among import pairs_among
from cloud_hub.store.behind import behind
from cloud_hub.store.tables import patches

RETRY_S: Final = 60.0  # before the second attempt; twice as long before each further one
MAX_REASON: Final = 500


class PatchState(enum.StrEnum):
    QUEUED = "queued"
    BUILDING = "building"
    BUILT = "built"
    DROPPED = "dropped"
    FAILED = "failed"


class Patch(msgspec.Struct, frozen=True):
    """A patch from the file `base` to the file `target`, or the wish for one.

    `devices` hold the base and are to have the target; `holders` hold the base. Sizes in bytes, times in seconds since
    the epoch; `sha256`, `size`, `built_at` and `build_s` (what the build took) are null until it is built. `reason`
    says why it was dropped, or why the last attempt failed.
    """

    target: str
    base: str
    module: str
    path: str
    base_version: int
    version: int
    target_size: int
    devices: int
    holders: int
    state: PatchState
    attempts: int
    not_before: float
    reason: str
    sha256: str | None
    size: int | None
    queued_at: float
    built_at: float | None
    build_s: float | None


async def take_in(connection: AsyncConnection, wishes: Sequence[Wish], now: float) -> int:
    """Queues what is new, and forgets what is queued or building and no longer wished for. How many are new."""
    query = select(patches.c.target, patches.c.base, patches.c.state, patches.c.devices, patches.c.holders)
    known = {(row.target, row.base): row for row in await connection.execute(query)}
    wished = {(wish.target, wish.base): wish for wish in wishes}
    new = [wish for pair, wish in wished.items() if pair not in known]
    if new:
        fresh = {"state": PatchState.QUEUED.value, "attempts": 0, "not_before": 0.0, "reason": "", "queued_at": now}
        await connection.execute(insert(patches), [msgspec.structs.asdict(wish) | fresh for wish in new])
    for pair, row in known.items():
        wish = wished.get(pair)
        if wish is not None and (wish.devices, wish.holders) != (row.devices, row.holders):
            change = update(patches).where(_is(*pair))
            await connection.execute(change.values(devices=wish.devices, holders=wish.holders))
    undone = (PatchState.QUEUED, PatchState.BUILDING)
    await forget(connection, [pair for pair, row in known.items() if pair not in wished and row.state in undone])
    return len(new)


async def forget(connection: AsyncConnection, pairs: Collection[tuple[str, str]]) -> None:
    """Rows by target and base; their blobs go with the next sweep."""
    await connection.execute(delete(patches).where(pairs_among(patches.c.target, patches.c.base, pairs)))


async def is_due(connection: AsyncConnection, now: float) -> bool:
    """Whether anything may be tried now."""
    return (await connection.execute(select(patches.c.target).where(_due(now)).limit(1))).one_or_none() is not None


async def start_next(connection: AsyncConnection, now: float) -> Patch | None:
    """The most wanted that may be tried now, from here on building."""
    columns = patches.c
    order = (columns.devices.desc(), columns.holders.desc(), columns.queued_at, columns.target, columns.base)
    row = (await connection.execute(select(patches).where(_due(now)).order_by(*order).limit(1))).one_or_none()
    if row is None:
        return None
    found = patch(row)
    change = update(patches).where(_is(found.target, found.base))
    await connection.execute(change.values(state=PatchState.BUILDING.value, attempts=found.attempts + 1))
    return msgspec.structs.replace(found, state=PatchState.BUILDING, attempts=found.attempts + 1)


async def is_building(connection: AsyncConnection, job: Patch) -> bool:
    """Whether it is still wanted."""
    return (await connection.execute(select(patches.c.target).where(_building(job)))).one_or_none() is not None


async def settle(connection: AsyncConnection, job: Patch, values: Mapping[str, Any]) -> bool:
    """How the build ended; whether the row was still there."""
    return bool((await connection.execute(update(patches).where(_building(job)).values(dict(values)))).rowcount)


def failed(job: Patch, reason: str, now: float, attempts: int) -> dict[str, Any]:
    """What to settle: another attempt later, or the end of it."""
    state = PatchState.FAILED if job.attempts >= attempts else PatchState.QUEUED
    not_before = now + RETRY_S * 2 ** (job.attempts - 1)
    return {"state": state.value, "reason": reason[:MAX_REASON], "not_before": not_before}


async def recover(connection: AsyncConnection, now: float, attempts: int) -> None:
    """After a start: what was building when the hub ended is queued again, or given up."""
    query = select(patches).where(patches.c.state == PatchState.BUILDING.value)
    for job in [patch(row) for row in await connection.execute(query)]:
        # At once: most hubs end for other reasons than a build.
        ended = failed(job, "the hub ended while it was built", now, attempts) | {"not_before": now}
        await settle(connection, job, ended)


async def stored_bytes(connection: AsyncConnection) -> int:
    """Bytes of all patches."""
    return int((await connection.execute(select(func.coalesce(func.sum(patches.c.size), 0)))).scalar_one())


async def digests(connection: AsyncConnection) -> set[str]:
    """Of all patches that were built."""
    return {sha256 for sha256 in (await connection.execute(select(patches.c.sha256))).scalars() if sha256 is not None}


async def pairs(connection: AsyncConnection) -> dict[tuple[str, str], str | None]:
    """Target and base of every row, with the digest of the patch where it was built."""
    rows = await connection.execute(select(patches.c.target, patches.c.base, patches.c.sha256))
    return {(row.target, row.base): row.sha256 for row in rows}


async def listed(
    connection: AsyncConnection, module: str, limit: int, after: tuple[str, int, str, int, str, str] | None = None
) -> list[Patch]:
    """Of one module or of all, newest versions first; behind the `place` of a patch."""
    columns = patches.c
    order = (
        (columns.module, False), (columns.version, True), (columns.path, False), (columns.base_version, True),
        (columns.target, False), (columns.base, False),
    )  # fmt: skip
    query = select(patches).order_by(*(column.desc() if down else column for column, down in order))
    if after is not None:
        query = query.where(behind(order, after))
    if module:
        query = query.where(columns.module == module)
    return [patch(row) for row in await connection.execute(query.limit(limit))]


def place(one: Patch) -> tuple[str, int, str, int, str, str]:
    """Where it is in the list."""
    return one.module, one.version, one.path, one.base_version, one.target, one.base


def patch(row: Row[Any]) -> Patch:
    """The patch in a row of the table."""
    return msgspec.convert(row, Patch, from_attributes=True)


def _is(target: str, base: str) -> ColumnElement[bool]:
    return and_(patches.c.target == target, patches.c.base == base)


def _due(now: float) -> ColumnElement[bool]:
    return and_(patches.c.state == PatchState.QUEUED.value, patches.c.not_before <= now)


def _building(job: Patch) -> ColumnElement[bool]:
    return and_(_is(job.target, job.base), patches.c.state == PatchState.BUILDING.value)
