"""Rollouts and executions as rows, and what a rollout needs to know of devices and modules. Every query of this room.

All functions take the caller's connection, so that a decision and what it rests on are one transaction. Called by
`controller` and `targeting`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Row, Select, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.desired import Assignment
from cloud_hub.errors import NotFound
from cloud_hub.rollouts.plan import (
    IN_PROGRESS,
    NOT_ELIGIBLE,
    UNDONE,
    Execution,
    ExecutionState,
    Rollout,
    RolloutState,
)
from cloud_hub.store.engine import among
from cloud_hub.store.tables import devices, executions, modules, rollouts
from modules.messages import DeviceReport, decode_report

_ACTIVE = (str(RolloutState.RUNNING), str(RolloutState.PAUSED))


class Target(msgspec.Struct, frozen=True):
    """A device as a rollout sees it. `report` is the last that it sent, null before the first."""

    id: str
    profile: str
    tags: Mapping[str, str]
    director_version: int
    report: DeviceReport | None


class Build(msgspec.Struct, frozen=True):
    """A module for one profile. `release_counter` is 0 until it is signed."""

    manifest_sha256: str
    release_counter: int


async def next_id(connection: AsyncConnection) -> str:
    """r1, r2, ...: short enough to type; rollouts are never deleted."""
    count = (await connection.execute(select(func.count()).select_from(rollouts))).scalar_one()
    return f"r{count + 1}"


async def add(connection: AsyncConnection, rollout: Rollout, parts: Sequence[Execution]) -> None:
    await connection.execute(insert(rollouts).values(**_rollout_values(rollout)))
    rows = [msgspec.to_builtins(part) | {"rollout": rollout.id, "previous": None} for part in parts]
    await connection.execute(insert(executions), rows)


async def load(connection: AsyncConnection, rollout_id: str) -> tuple[Rollout, list[Execution]]:
    """The rollout with its executions by group and device. Raises NotFound `rollout-not-found`."""
    row = (await connection.execute(select(rollouts).where(rollouts.c.id == rollout_id))).one_or_none()
    if row is None:
        raise NotFound("rollout-not-found", f"no rollout {rollout_id[:80]}", id=rollout_id[:80])
    query = select(executions).where(executions.c.rollout == rollout_id)
    rows = await connection.execute(query.order_by(executions.c.group_index, executions.c.device))
    return _rollout(row), [_execution(part) for part in rows]


async def newest(
    connection: AsyncConnection, state: str, limit: int, ids: Collection[str] | None = None
) -> list[Rollout]:
    """Newest first; of one state, or of all when empty; of these ids where given."""
    query = select(rollouts).order_by(rollouts.c.created_at.desc(), rollouts.c.id.desc()).limit(limit)
    if state:
        query = query.where(rollouts.c.state == state)
    if ids is not None:
        query = query.where(among(rollouts.c.id, ids))
    return [_rollout(row) for row in await connection.execute(query)]


async def active_ids(connection: AsyncConnection) -> list[str]:
    """Rollouts that are running or paused."""
    query = select(rollouts.c.id).where(rollouts.c.state.in_(_ACTIVE)).order_by(rollouts.c.created_at)
    return list((await connection.execute(query)).scalars())


async def due_ids(connection: AsyncConnection, now: float) -> list[str]:
    """Active rollouts with a device past its deadline, or (their own deadline stands in the plan) all with a start."""
    late = (
        select(executions.c.rollout)
        .join(rollouts, rollouts.c.id == executions.c.rollout)
        .where(rollouts.c.state.in_(_ACTIVE), executions.c.state.in_([str(s) for s in IN_PROGRESS]))
        .where(executions.c.deadline_at <= now)
        .distinct()
    )
    found = list((await connection.execute(late)).scalars())
    running = await connection.execute(select(rollouts).where(rollouts.c.state.in_(_ACTIVE)))
    over = [
        r.id for r in map(_rollout, running) if r.started_at is not None and now >= r.started_at + r.plan.deadline_s
    ]
    return sorted({*found, *over})


async def concerned_ids(connection: AsyncConnection, device: str, deployments: set[str]) -> list[str]:
    """Rollouts in which the device is in progress, and those whose deployment it runs though it should not.

    What came to a good end needs no report more: else every report of a whole fleet would take the writer's turn.
    """
    undone = executions.c.state.in_([str(s) for s in UNDONE]) & executions.c.rollout.in_(deployments)
    query = select(executions.c.rollout).where(
        executions.c.device == device,
        executions.c.state.in_([str(s) for s in IN_PROGRESS]) | undone,
        executions.c.group_index != NOT_ELIGIBLE,
    )
    return list((await connection.execute(query.order_by(executions.c.rollout))).scalars())


async def save(
    connection: AsyncConnection, before: tuple[Rollout, Sequence[Execution]], after: tuple[Rollout, Sequence[Execution]]
) -> None:
    """Writes what differs."""
    rollout = after[0]
    if rollout != before[0]:
        await connection.execute(update(rollouts).where(rollouts.c.id == rollout.id).values(**_rollout_values(rollout)))
    for old, new in zip(before[1], after[1], strict=True):
        if old != new:
            key = (executions.c.rollout == rollout.id, executions.c.device == new.device)
            await connection.execute(update(executions).where(*key).values(**msgspec.to_builtins(new)))


async def set_previous(connection: AsyncConnection, rollout_id: str, device: str, previous: Assignment | None) -> None:
    """Remembers what stood on the device at the moment of its assignment."""
    change = update(executions).where(executions.c.rollout == rollout_id, executions.c.device == device)
    await connection.execute(change.values(previous=msgspec.to_builtins(previous)))


async def previous(connection: AsyncConnection, rollout_id: str, device: str) -> Assignment | None:
    """What stood on the device before, to go back to."""
    query = select(executions.c.previous).where(executions.c.rollout == rollout_id, executions.c.device == device)
    value = (await connection.execute(query)).scalar_one()
    return None if value is None else msgspec.convert(value, Assignment)


async def elsewhere(connection: AsyncConnection, module: str, rollout_id: str, ids: Sequence[str]) -> dict[str, str]:
    """Which of the devices take part in another active rollout of the module: device -> rollout."""
    query = (
        select(executions.c.device, executions.c.rollout)
        .join(rollouts, rollouts.c.id == executions.c.rollout)
        .where(rollouts.c.module == module, rollouts.c.state.in_(_ACTIVE), rollouts.c.id != rollout_id)
        .where(executions.c.group_index != NOT_ELIGIBLE)
    )
    wanted = set(ids)
    return {row.device: row.rollout for row in await connection.execute(query) if row.device in wanted}


async def targets(connection: AsyncConnection) -> list[Target]:
    """Every device that is not retired, by id."""
    query = _target_columns().where(devices.c.retired_at.is_(None)).order_by(devices.c.id)
    return [_target(row) for row in await connection.execute(query)]


async def unheard(connection: AsyncConnection) -> dict[str, int]:
    """Devices that were assigned something and have not said anything since, with their director version."""
    query = (
        select(devices.c.id, devices.c.director_version)
        .join(executions, executions.c.device == devices.c.id)
        .where(executions.c.state == str(ExecutionState.ASSIGNED), devices.c.retired_at.is_(None))
    )
    return {row.id: row.director_version for row in await connection.execute(query)}


async def target(connection: AsyncConnection, device: str) -> Target | None:
    row = (await connection.execute(_target_columns().where(devices.c.id == device))).one_or_none()
    return None if row is None else _target(row)


async def builds(connection: AsyncConnection, module: str, version: int) -> dict[str, Build]:
    """Builds of the module version, by profile."""
    query = select(modules.c.profile, modules.c.manifest_sha256, modules.c.release_counter).where(
        modules.c.name == module, modules.c.version == version
    )
    rows = await connection.execute(query)
    return {row.profile: Build(row.manifest_sha256, row.release_counter or 0) for row in rows}


def _target_columns() -> Select[Any]:
    return select(devices.c.id, devices.c.profile, devices.c.tags, devices.c.director_version, devices.c.report)


def _target(row: Row[Any]) -> Target:
    report = None if row.report is None else decode_report(row.report)
    return Target(row.id, row.profile, dict(row.tags), row.director_version, report)


def _rollout_values(rollout: Rollout) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(rollout)
    return values


def _rollout(row: Row[Any]) -> Rollout:
    return msgspec.convert(row, Rollout, from_attributes=True)


def _execution(row: Row[Any]) -> Execution:
    return msgspec.convert(row, Execution, from_attributes=True)
