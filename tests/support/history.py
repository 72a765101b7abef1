"""What a hub has recorded, as values: events, rollouts, executions, counts. Read by the invariant checker's users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import select

from cloud_hub.chain import Event
from cloud_hub.rollouts.records import to_rollout
from cloud_hub.rollouts.states import Rollout
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import events, executions, rollout_counts, rollouts


@dataclass(frozen=True)
class Part:
    """One row of executions. `group` is -1 for a device that is listed and takes no part."""

    rollout: str
    device: str
    group: int
    state: str


@dataclass(frozen=True)
class History:
    """`counts` are by rollout, group and state; `effects` say how often each command was carried out by a device."""

    events: Sequence[Event]
    rollouts: Sequence[Rollout]
    parts: Sequence[Part]
    counts: Mapping[tuple[str, int, str], int]
    effects: Mapping[str, int] = field(default_factory=dict)


async def read_history(store: Store, effects: Mapping[str, int] | None = None) -> History:
    """All of it, at one moment."""
    async with store.read() as connection:
        rows = await connection.execute(select(events).order_by(events.c.id))
        happened = [msgspec.convert(row, Event, from_attributes=True) for row in rows]
        found = [to_rollout(row) for row in await connection.execute(select(rollouts))]
        listed = select(executions.c.rollout, executions.c.device, executions.c.group_index, executions.c.state)
        parts = [Part(*row) for row in await connection.execute(listed)]
        rows = await connection.execute(select(rollout_counts))
        counts = {(rollout, group, state): count for rollout, group, state, count in rows}
    return History(happened, found, parts, counts, effects or {})
