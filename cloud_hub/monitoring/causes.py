"""What else happened about when a change began: rollouts, updates, settings, from the audit trail.

That something came before is no proof; it is where to look first. Used by `alerts` when an alert opens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from sqlalchemy import Row, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.monitoring.alert_book import Cause
from cloud_hub.store.engine import among
from cloud_hub.store.tables import events, executions, rollouts

BEFORE_S: Final = 3600.0
MAX_READ: Final = 2000
MAX_CAUSES: Final = 10
MAX_ROLLOUTS: Final = 100
# What can change what a device sees or answers. Alerts, sessions and refusals cannot.
_OF_DEVICES: Final = ("agent.", "device.enrolled", "device.tagged", "device.readmitted")
_OF_ROLLOUTS: Final = ("rollout.started", "rollout.group-started", "rollout.device-ended", "rollout.aborted")
_OF_MODULES: Final = ("module.", "sampling.")


async def causes_of(
    connection: AsyncConnection, module: str, devices: Collection[str], since: float, look_s: float
) -> tuple[Cause, ...]:
    """From an hour (or a look) before the change to the end of the look in which it shows; the nearest first.

    `devices` are those affected; none means that any device counts. Empty where nobody knows since when.
    """
    if since <= 0:
        return ()
    begin, end = since - max(BEFORE_S, look_s), since + look_s
    first = await _first_at(connection, begin)
    wanted = [events.c.kind.startswith(kind, autoescape=True) for kind in (*_OF_DEVICES, *_OF_ROLLOUTS, *_OF_MODULES)]
    query = select(events).where(events.c.id >= first, events.c.id < first + MAX_READ, events.c.at <= end, or_(*wanted))
    found = (await connection.execute(query.order_by(events.c.id))).all()
    planned = await _rollouts(connection, {row.subject for row in found if row.kind in _OF_ROLLOUTS})
    kept: dict[tuple[str, str], list[Row[Any]]] = {}
    for row in found:
        if _concerns(row, module, devices, planned):
            kept.setdefault(_gist(row), []).append(row)
    told = [_cause(rows, planned) for rows in kept.values()]
    return tuple(sorted(told, key=lambda cause: (abs(since - cause.at), cause.event))[:MAX_CAUSES])


async def _first_at(connection: AsyncConnection, begin: float) -> int:
    """The number of the first event at `begin` or later, by halving: numbers have no gaps and grow with time."""
    query = select(events.c.id).order_by(events.c.id.desc()).limit(1)
    low, high = 1, 1 + int((await connection.execute(query)).scalar_one_or_none() or 0)
    while low < high:
        middle = (low + high) // 2
        at = (await connection.execute(select(events.c.at).where(events.c.id == middle))).scalar_one_or_none()
        if at is None or at < begin:
            low = middle + 1
        else:
            high = middle
    return low


async def _rollouts(connection: AsyncConnection, ids: Collection[str]) -> dict[str, tuple[str, set[str]]]:
    """Module and version, and devices, of rollouts."""
    some = sorted(ids)[:MAX_ROLLOUTS]
    columns = (rollouts.c.id, rollouts.c.module, rollouts.c.version)
    known = {row.id: row for row in await connection.execute(select(*columns).where(among(rollouts.c.id, some)))}
    found = {number: (f"{row.module}:{row.version}", set[str]()) for number, row in known.items()}
    parts = select(executions.c.rollout, executions.c.device).where(among(executions.c.rollout, sorted(found)))
    for row in await connection.execute(parts):
        found[row.rollout][1].add(row.device)
    return found


def _concerns(
    row: Row[Any], module: str, devices: Collection[str], planned: Mapping[str, tuple[str, set[str]]]
) -> bool:
    if row.kind in _OF_ROLLOUTS:
        members = planned.get(row.subject, ("", set[str]()))[1]
        device = row.details.get("device")
        return not devices or (device in devices if device else bool(members & set(devices)))
    if row.kind.startswith(_OF_MODULES):
        return bool(row.subject.partition(":")[0] == module)
    return not devices or row.subject in devices


def _gist(row: Row[Any]) -> tuple[str, str]:
    """The same thing on many devices is told once."""
    return (row.kind, row.subject) if row.kind in _OF_ROLLOUTS or row.kind.startswith(_OF_MODULES) else (row.kind, "")


def _cause(rows: list[Row[Any]], planned: Mapping[str, tuple[str, set[str]]]) -> Cause:
    first = rows[0]
    text = str(first.details.get("text") or first.details.get("reason") or "")
    if first.kind in _OF_ROLLOUTS:
        text = f"rollout of {planned.get(first.subject, ('a module', set[str]()))[0]}" + (f": {text}" if text else "")
    if first.kind == "device.tagged":
        text = f"tags became {first.details.get('after')}"
    if first.kind == "module.watched":
        text = f"{first.details.get('scope')} is compared with {first.details.get('reference')}"
    if len(rows) > 1:
        text += f" (and {len(rows) - 1} more)"
    return Cause(first.id, first.at, first.kind, first.actor, first.subject, text.strip())
