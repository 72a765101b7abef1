"""What makes a device's data suspect beside its counts: entries refused, a clock that was set, a flood.

All of it is data quality, of one device. Sensors that stand still are in the counts: see `conditions`. Used by
`readings` and `deciding`.

- `window.refused` and its like: the events of the last looks, by reason.
- `clock-set`: the device says that its clock was set by so much that windows may lie elsewhere.
- `late`: more than LATE_SHARE of the rows came after their window had been closed.
- `flood`: FLOOD times as many rows in a look as the device usually sends, or as others do where it is new.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.monitoring.alert_book import ProblemCount
from cloud_hub.monitoring.looks import Group
from cloud_hub.monitoring.verdict import LookSeries
from cloud_hub.store.among import among
from cloud_hub.store.tables import events, looks

REFUSED_KINDS: Final = ("window.refused", "sample.refused", "event.refused")
MAX_EVENTS: Final = 200
FLOOD: Final = 50.0
FLOOD_ROWS: Final = 10_000  # fewer are nobody's trouble
USUAL_LOOKS: Final = 24
MIN_USUAL: Final = 3
LATE_SHARE: Final = 0.1
LATE_ROWS: Final = 100


async def refused(connection: AsyncConnection, group: Group, since: float) -> tuple[ProblemCount, ...]:
    """What the device sent lately that could not be used, of this module or (without a manifest) of none."""
    query = (
        select(events.c.details)
        .where(events.c.subject == group.device, events.c.kind.in_(REFUSED_KINDS), events.c.at > since)
        .order_by(events.c.id.desc())
        .limit(MAX_EVENTS)
    )
    counted: dict[str, ProblemCount] = {}
    for details in (await connection.execute(query)).scalars():
        if details["manifest_sha256"] == group.manifest_sha256:
            key = details["key"]
            before = counted[key].count if key in counted else 0
            counted[key] = ProblemCount(key, before + details["count"], details["text"])
    return tuple(counted.values())


async def with_refusals(connection: AsyncConnection, devices: Collection[str], since: float) -> list[str]:
    """Those of the devices of which `refused` has something to say."""
    query = select(events.c.subject).distinct()
    query = query.where(among(events.c.subject, devices), events.c.kind.in_(REFUSED_KINDS), events.c.at > since)
    return list((await connection.execute(query)).scalars())


async def clocks_and_lateness(
    connection: AsyncConnection, manifest_sha256: str, devices: Collection[str], since: float
) -> dict[str, tuple[ProblemCount, ...]]:
    """What windows of the last looks say of the devices' clocks, and of rows that came late."""
    sums = (func.sum(looks.c.clock_jumps), func.sum(looks.c.late), func.sum(looks.c.rows))
    query = (
        select(looks.c.device, *sums)
        .group_by(looks.c.device)
        .where(looks.c.manifest_sha256 == manifest_sha256, among(looks.c.device, devices), looks.c.start >= since)
    )
    rows = await connection.execute(query)
    return {device: _told(int(jumps or 0), int(late or 0), int(counted or 0)) for device, jumps, late, counted in rows}


def _told(jumps: int, late: int, rows: int) -> tuple[ProblemCount, ...]:
    found = []
    if jumps:
        found.append(ProblemCount("clock-set", jumps, f"its clock was set {_times(jumps)}: windows may lie elsewhere"))
    if late >= LATE_ROWS and late > LATE_SHARE * rows:
        found.append(ProblemCount("late", late, f"{late} of {rows} rows came after their window had been closed"))
    return tuple(found)


def flood(own: LookSeries, recent: float, others_per_look: float) -> tuple[ProblemCount, ...]:
    """Looks since `recent` with far more rows than those before, or than others send."""
    before = [int(rows) for start, rows in zip(own.starts, own.rows, strict=True) if start < recent][-USUAL_LOOKS:]
    usual = float(np.median(before)) if len(before) >= MIN_USUAL else others_per_look
    most = max((int(rows) for start, rows in zip(own.starts, own.rows, strict=True) if start >= recent), default=0)
    if usual <= 0 or most < FLOOD_ROWS or most < FLOOD * usual:
        return ()
    return (ProblemCount("flood", most, f"{most} rows in one look, where {usual:.0f} are usual"),)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
