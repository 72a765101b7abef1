"""Rollouts, executions and their counts as rows. Every query that changes them, or decides over them.

All functions take the caller's connection, so that a decision and what it rests on are one transaction. Nothing here
reads all executions of a rollout at once, but for its cancellation, which is one statement. `reading` is what people
look at, `targets` what is known of devices. Called by `turn` and `controller`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Row, Select, Text, and_, bindparam, cast, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.desired import Assignment
from cloud_hub.errors import NotFound
from cloud_hub.rollouts.states import (
    ACTIVE,
    BUSY,
    NOT_ELIGIBLE,
    UNDONE,
    Execution,
    ExecutionState,
    Rollout,
    RolloutState,
)
from cloud_hub.store.among import among
from cloud_hub.store.bulk import in_slices, insert_many, upsert
from cloud_hub.store.tables import devices, executions, rollout_counts, rollouts

LATE: Final = "device-late"  # the reason of a device that was put back, and stayed with what it had committed
EVERYONE: Final = 1_000_000  # where a person asks for all of them
_ACTIVE: Final = tuple(str(state) for state in ACTIVE)
_BUSY: Final = tuple(str(state) for state in BUSY)
_UNDONE: Final = tuple(str(state) for state in UNDONE)
StateCounts = dict[int, Counter[ExecutionState]]


class Member(msgspec.Struct, frozen=True):
    """An execution with what acting on it needs: the device's profile ("" when it is gone) and time zone, and what
    stood on it before, to go back to.
    """

    execution: Execution
    profile: str
    timezone: str = ""
    previous: Assignment | None = None


async def next_id(connection: AsyncConnection) -> str:
    """r1, r2, ...: short enough to type; rollouts are never deleted."""
    count = (await connection.execute(select(func.count()).select_from(rollouts))).scalar_one()
    return f"r{count + 1}"


async def add(connection: AsyncConnection, rollout: Rollout, parts: Sequence[Execution]) -> StateCounts:
    """The new rollout with its executions; how many of them stand where."""
    await connection.execute(insert(rollouts).values(**_rollout_values(rollout)))
    counts = await add_parts(connection, rollout.id, parts)
    await save_counts(connection, rollout.id, counts)
    return counts


async def add_parts(connection: AsyncConnection, rollout_id: str, parts: Sequence[Execution]) -> StateCounts:
    """More executions; how many of them stand where, which the caller has to save."""
    rows = [msgspec.to_builtins(part) | {"rollout": rollout_id, "previous": None} for part in parts]
    for some in in_slices(rows):
        await insert_many(connection, executions, some)
    counts: StateCounts = defaultdict(Counter)
    for part in parts:
        if part.group_index != NOT_ELIGIBLE:
            counts[part.group_index][part.state] += 1
    return counts


async def load(connection: AsyncConnection, rollout_id: str) -> Rollout:
    """Raises NotFound `rollout-not-found`."""
    row = (await connection.execute(select(rollouts).where(rollouts.c.id == rollout_id))).one_or_none()
    if row is None:
        raise NotFound("rollout-not-found", f"no rollout {rollout_id[:80]}", id=rollout_id[:80])
    return to_rollout(row)


async def counts(connection: AsyncConnection, rollout_id: str) -> StateCounts:
    """Executions by group and state; states that nobody is in may be there with 0."""
    found: StateCounts = defaultdict(Counter)
    query = select(rollout_counts.c.group_index, rollout_counts.c.state, rollout_counts.c.count.label("number"))
    for row in await connection.execute(query.where(rollout_counts.c.rollout == rollout_id)):
        found[row.group_index][ExecutionState(row.state)] = row.number
    return found


async def save(connection: AsyncConnection, rollout: Rollout, next_at: float | None) -> None:
    values = _rollout_values(rollout) | {"next_at": next_at}
    await connection.execute(update(rollouts).where(rollouts.c.id == rollout.id).values(**values))


async def save_counts(connection: AsyncConnection, rollout_id: str, counts: StateCounts) -> None:
    rows = [
        {"rollout": rollout_id, "group_index": group, "state": str(state), "count": count}
        for group, states in counts.items()
        for state, count in states.items()
    ]
    await upsert(connection, rollout_counts, rows)


async def save_parts(connection: AsyncConnection, rollout_id: str, parts: Sequence[Execution]) -> None:
    if not parts:
        return
    key = and_(executions.c.rollout == bindparam("of"), executions.c.device == bindparam("who"))
    names = [name for name in Execution.__struct_fields__ if name not in ("device", "group_index")]
    change = update(executions).where(key).values({name: bindparam(f"to_{name}") for name in names})
    rows = []
    for part in parts:
        values = msgspec.to_builtins(part)
        rows.append({"of": rollout_id, "who": part.device} | {f"to_{name}": values[name] for name in names})
    await connection.execute(change, rows)


async def cancel_waiting(connection: AsyncConnection, rollout_id: str, now: float, key: str, reason: str) -> None:
    """All that have not begun, at once."""
    values = {"state": str(ExecutionState.CANCELLED), "reason_key": key, "reason": reason, "finished_at": now}
    where = (executions.c.rollout == rollout_id) & (executions.c.state == str(ExecutionState.WAITING))
    await connection.execute(update(executions).where(where).values(**values))


async def set_previous(connection: AsyncConnection, rollout_id: str, stood: Mapping[str, Assignment | None]) -> None:
    """Remembers what stood on the devices at the moment of their assignment."""
    if not stood:
        return
    key = and_(executions.c.rollout == bindparam("of"), executions.c.device == bindparam("who"))
    change = update(executions).where(key).values(previous=bindparam("stood"))
    rows = [{"of": rollout_id, "who": device, "stood": msgspec.to_builtins(one)} for device, one in stood.items()]
    await connection.execute(change, rows)


async def previous_kinds(connection: AsyncConnection, rollout_id: str) -> list[Assignment]:
    """What stood on the verified devices before, each kind of it once."""
    text = cast(executions.c.previous, Text)
    query = select(text).where(executions.c.rollout == rollout_id, executions.c.state == str(ExecutionState.VERIFIED))
    found = [value for value in (await connection.execute(query.distinct())).scalars() if value not in (None, "null")]
    return [msgspec.json.decode(value, type=Assignment) for value in found]


# --- which executions ---------------------------------------------------------------------------------------------
async def members(connection: AsyncConnection, rollout_id: str, ids: Collection[str]) -> list[Member]:
    """Of these devices, those that take part."""
    found: list[Member] = []
    for some in in_slices(sorted(ids)):
        query = _members(rollout_id).where(among(executions.c.device, some), executions.c.group_index != NOT_ELIGIBLE)
        found += [_member(row) for row in await connection.execute(query)]
    return found


async def standing(
    connection: AsyncConnection, rollout_id: str, states: Iterable[ExecutionState], limit: int
) -> list[Member]:
    """Some that are in one of the states."""
    return await _those(connection, rollout_id, executions.c.state.in_([str(state) for state in states]), limit)


async def overdue(connection: AsyncConnection, rollout_id: str, now: float, limit: int) -> list[Member]:
    """Some whose deadline has passed."""
    return await _those(
        connection, rollout_id, executions.c.state.in_(_BUSY) & (executions.c.deadline_at <= now), limit
    )


async def ready(connection: AsyncConnection, rollout: Rollout, now: float, limit: int) -> list[Member]:
    """Those of the open groups that wait and whose time has come, in their order."""
    query = _members(rollout.id).where(
        executions.c.state == str(ExecutionState.WAITING),
        executions.c.group_index.between(0, rollout.group_index),
        executions.c.ready_at <= now,
    )
    query = query.order_by(executions.c.group_index, executions.c.device).limit(limit)
    return [_member(row) for row in await connection.execute(query)]


async def next_moment(connection: AsyncConnection, rollout: Rollout, now: float) -> float | None:
    """The next deadline of an execution, or the next moment at which one that waits may begin."""
    mine = executions.c.rollout == rollout.id
    deadlines = select(func.min(executions.c.deadline_at)).where(mine, executions.c.state.in_(_BUSY))
    moments = [(await connection.execute(deadlines)).scalar_one()]
    if rollout.state is RolloutState.RUNNING:
        moments.append(await next_ready(connection, rollout, now))
    return min((moment for moment in moments if moment is not None), default=None)


async def next_ready(connection: AsyncConnection, rollout: Rollout, now: float) -> float | None:
    """When the first of those that wait for their time may begin; None where none has to."""
    waiting = (executions.c.rollout == rollout.id) & (executions.c.state == str(ExecutionState.WAITING))
    opened = executions.c.group_index.between(0, rollout.group_index)
    query = select(func.min(executions.c.ready_at)).where(waiting, opened, executions.c.ready_at > now)
    found: float | None = (await connection.execute(query)).scalar_one()
    return found


# --- which rollouts -----------------------------------------------------------------------------------------------
async def due_ids(connection: AsyncConnection, now: float, limit: int) -> list[str]:
    """Rollouts whose time has come, the longest waiting first."""
    query = select(rollouts.c.id).where(rollouts.c.next_at <= now).order_by(rollouts.c.next_at).limit(limit)
    return list((await connection.execute(query)).scalars())


async def active(connection: AsyncConnection) -> list[Rollout]:
    """Those that are running, paused or rolling back, oldest first."""
    query = select(rollouts).where(rollouts.c.state.in_(_ACTIVE)).order_by(rollouts.c.created_at)
    return [to_rollout(row) for row in await connection.execute(query)]


async def concerned(connection: AsyncConnection, deployments: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """Devices by rollout: in which each is busy, and whose deployment it runs though it should not.

    `deployments` are those that each device reports. What came to a good end needs no report more: else every report
    of a whole fleet would take the writer's turn.
    """
    found: dict[str, list[str]] = defaultdict(list)
    columns = (executions.c.rollout, executions.c.device, executions.c.state)
    undone = executions.c.state.in_(_UNDONE) & (executions.c.reason_key != LATE)
    for some in in_slices(sorted(deployments)):
        query = select(*columns).where(
            among(executions.c.device, some),
            executions.c.state.in_(_BUSY) | undone,
            executions.c.group_index != NOT_ELIGIBLE,
        )
        for rollout, device, state in await connection.execute(query.order_by(executions.c.rollout)):
            if state in _BUSY or rollout in deployments[device]:
                found[rollout].append(device)
    return found


async def busy_devices(connection: AsyncConnection) -> list[str]:
    """Devices from which some rollout expects a report."""
    query = select(executions.c.device).where(executions.c.state.in_(_BUSY)).distinct()
    return list((await connection.execute(query)).scalars())


async def elsewhere(connection: AsyncConnection, module: str, rollout_id: str, ids: Sequence[str]) -> dict[str, str]:
    """The rollout of the module, other than this one, that is under way on each device, or has yet to be undone."""
    open_for_it = rollouts.c.state.in_(_ACTIVE) & (executions.c.state != str(ExecutionState.CANCELLED))
    query = (
        select(executions.c.device, executions.c.rollout)
        .join(rollouts, rollouts.c.id == executions.c.rollout)
        .where(rollouts.c.module == module, rollouts.c.id != rollout_id, executions.c.group_index != NOT_ELIGIBLE)
        .where(open_for_it | executions.c.state.in_(_BUSY))
    )
    wanted = set(ids)
    return {row.device: row.rollout for row in await connection.execute(query) if row.device in wanted}


async def overlap(connection: AsyncConnection, rollout_id: str, module: str) -> dict[str, list[str]]:
    """Every other rollout of the module that is under way on a device of this one, with those devices.

    One device may be in several: verified in one that others join, and at work in another.
    """
    found: dict[str, list[str]] = defaultdict(list)
    others = executions.alias("others")
    open_for_it = rollouts.c.state.in_(_ACTIVE) & (others.c.state != str(ExecutionState.CANCELLED))
    query = (
        select(others.c.device, others.c.rollout)
        .select_from(
            executions.join(others, others.c.device == executions.c.device).join(
                rollouts, rollouts.c.id == others.c.rollout
            )
        )
        .where(executions.c.rollout == rollout_id, executions.c.group_index != NOT_ELIGIBLE)
        .where(others.c.rollout != rollout_id, others.c.group_index != NOT_ELIGIBLE, rollouts.c.module == module)
        .where(open_for_it | others.c.state.in_(_BUSY))
    )
    for device, rollout in await connection.execute(query.order_by(others.c.rollout, others.c.device)):
        found[rollout].append(device)
    return found


async def taken(connection: AsyncConnection, rollout: Rollout) -> set[str]:
    """The devices of this rollout that another one of the module is under way on."""
    return {device for ids in (await overlap(connection, rollout.id, rollout.module)).values() for device in ids}


async def unheard(connection: AsyncConnection) -> dict[str, int]:
    """Devices that were assigned something and have not said anything since, with their director version."""
    query = (
        select(devices.c.id, devices.c.director_version)
        .join(executions, executions.c.device == devices.c.id)
        .where(executions.c.state.in_((str(ExecutionState.ASSIGNED), str(ExecutionState.RETURNING))))
        .where(devices.c.retired_at.is_(None))
    )
    return {row.id: row.director_version for row in await connection.execute(query)}


async def _those(connection: AsyncConnection, rollout_id: str, which: ColumnElement[bool], limit: int) -> list[Member]:
    query = _members(rollout_id).where(which, executions.c.group_index != NOT_ELIGIBLE)
    query = query.order_by(executions.c.group_index, executions.c.device).limit(limit)
    return [_member(row) for row in await connection.execute(query)]


def _members(rollout_id: str) -> Select[Any]:
    about = executions.outerjoin(devices, devices.c.id == executions.c.device)
    query = select(executions, devices.c.profile, devices.c.tags).select_from(about)
    return query.where(executions.c.rollout == rollout_id)


def _member(row: Row[Any]) -> Member:
    previous = None if row.previous is None else msgspec.convert(row.previous, Assignment)
    timezone = (row.tags or {}).get("timezone", "")
    return Member(to_execution(row), row.profile or "", timezone, previous)


def _rollout_values(rollout: Rollout) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(rollout)
    return values


def to_rollout(row: Row[Any]) -> Rollout:
    return msgspec.convert(row, Rollout, from_attributes=True)


def to_execution(row: Row[Any]) -> Execution:
    return msgspec.convert(row, Execution, from_attributes=True)
