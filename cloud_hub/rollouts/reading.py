"""Rollouts as people look at them: lists, counts, and pages of executions. Only reads; called by `controller`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Final

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.rollouts.records import StateCounts, to_execution, to_rollout
from cloud_hub.rollouts.states import (
    BUSY,
    FAILURES,
    NOT_ELIGIBLE,
    Execution,
    ExecutionState,
    Rollout,
)
from cloud_hub.store.engine import among
from cloud_hub.store.tables import executions, rollouts

_FIRST: Final = tuple(str(state) for state in (*FAILURES, ExecutionState.STUCK))
_THEN: Final = tuple(str(state) for state in BUSY)
_ELSE: Final = tuple(str(state) for state in ExecutionState if state not in {*_FIRST, *_THEN})


async def newest(
    connection: AsyncConnection,
    state: str,
    limit: int,
    ids: Collection[str] | None = None,
    module: str = "",
    after: str = "",
) -> list[Rollout]:
    """Newest first; of one state or module, or of all when empty; of these ids where given; from behind `after` on."""
    query = select(rollouts).order_by(rollouts.c.created_at.desc(), rollouts.c.id.desc()).limit(limit)
    if state:
        query = query.where(rollouts.c.state == state)
    if module:
        query = query.where(rollouts.c.module == module)
    if ids is not None:
        query = query.where(among(rollouts.c.id, ids))
    if after:
        last = select(rollouts.c.created_at).where(rollouts.c.id == after).scalar_subquery()
        older = rollouts.c.created_at < last
        query = query.where(older | ((rollouts.c.created_at == last) & (rollouts.c.id < after)))
    return [to_rollout(row) for row in await connection.execute(query)]


async def counts_of(connection: AsyncConnection, rollout_id: str, ids: Collection[str]) -> StateCounts:
    """As `records.counts`, of these devices only."""
    found: StateCounts = defaultdict(Counter)
    query = (
        select(executions.c.group_index, executions.c.state, func.count())
        .where(executions.c.rollout == rollout_id, executions.c.group_index != NOT_ELIGIBLE)
        .where(among(executions.c.device, ids))
        .group_by(executions.c.group_index, executions.c.state)
    )
    for group, state, count in await connection.execute(query):
        found[group][ExecutionState(state)] = count
    return found


async def worth_showing(
    connection: AsyncConnection, rollout_id: str, limit: int, ids: Collection[str] | None
) -> list[Execution]:
    """At most so many, those that need attention before those that do not; by group and device in the end.

    Devices that are not eligible come after those at which something happens.
    """
    found: list[Execution] = []
    eligible = executions.c.group_index != NOT_ELIGIBLE
    for states, which in ((_FIRST, eligible), (_THEN, eligible), (_FIRST, ~eligible), (_ELSE, eligible)):
        # In the order of an index, so that a fleet of a hundred thousand is not sorted to show two hundred.
        query = select(executions).where(executions.c.rollout == rollout_id, executions.c.state.in_(states), which)
        query = query.where(*_only(ids)).order_by(executions.c.state, executions.c.group_index, executions.c.device)
        found += [to_execution(row) for row in await connection.execute(query.limit(limit - len(found)))]
        if len(found) >= limit:
            break
    return sorted(found, key=lambda one: (one.group_index, one.device))


async def page(
    connection: AsyncConnection,
    rollout_id: str,
    state: str = "",
    group: int | None = None,
    after: str = "",
    limit: int = 100,
    ids: Collection[str] | None = None,
) -> list[Execution]:
    """Executions by device id, from behind `after` on."""
    query = select(executions).where(executions.c.rollout == rollout_id, executions.c.device > after, *_only(ids))
    if state:
        query = query.where(executions.c.state == state)
    if group is not None:
        query = query.where(executions.c.group_index == group)
    query = query.order_by(executions.c.device).limit(limit)
    return [to_execution(row) for row in await connection.execute(query)]


def _only(ids: Collection[str] | None) -> list[ColumnElement[bool]]:
    return [] if ids is None else [among(executions.c.device, ids)]
