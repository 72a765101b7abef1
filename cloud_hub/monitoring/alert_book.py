"""Alerts as they are kept: at most one open per kind, module and scope. Rows only; what opens one is in `alerts`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.monitoring.looks import Group
from cloud_hub.monitoring.verdict import FeatureEvidence, Kind, RateEvidence
from cloud_hub.store.engine import among
from cloud_hub.store.tables import alerts

State = Literal["open", "resolved"]
# Beside what is found in the counts: two devices with one key. See `clone_alerts`.
AlertKind = Kind | Literal["clone-suspected"]
CLONE: Final = "clone-suspected"
MAX_ALERTS = 500


class DeviceShare(msgspec.Struct, frozen=True):
    """A device's part in a fleet alert: its own evidence, in nats, and its share of that of all devices."""

    device: str
    share: float
    log_bf: float


class ProblemCount(msgspec.Struct, frozen=True):
    """Entries that a device sent and that could not be used, by reason."""

    key: str
    count: int
    text: str


class AlertEvidence(msgspec.Struct, frozen=True):
    """Why the alert stands. Strongest first; `since` is the start of the looks in which the strongest shows.

    `window` is the index of the shortest window of looks that raised it (-1: no evidence from counts), `alarm_look`
    the start of the newest look in which that window still did. Once resolved, `resolution` says how, and looks
    before `calm_from` are not weighed again.
    """

    threshold: float
    since: float
    features: tuple[FeatureEvidence, ...] = ()
    rates: tuple[RateEvidence, ...] = ()
    problems: tuple[ProblemCount, ...] = ()
    devices: tuple[DeviceShare, ...] = ()
    window: int = -1
    alarm_look: float = 0.0
    resolution: Literal["", "calm", "superseded"] = ""
    calm_from: float | None = None


class Alert(msgspec.Struct, frozen=True):
    """`scope` is "fleet" or "device:<id>". Times are seconds since the epoch by the hub's clock."""

    id: int
    kind: AlertKind
    module: str
    manifest_sha256: str
    scope: str
    state: State
    opened_at: float
    updated_at: float
    resolved_at: float | None
    evidence: AlertEvidence


async def find_open(connection: AsyncConnection, kind: AlertKind, group: Group) -> Alert | None:
    query = select(alerts).where(*_of(kind, group), alerts.c.state == "open")
    row = (await connection.execute(query)).first()
    return None if row is None else _alert(row)


async def calm_from(connection: AsyncConnection, kind: AlertKind, group: Group) -> float | None:
    """From where on looks are weighed: the start of the calm that resolved the latest such alert, None without one."""
    query = select(alerts).where(*_of(kind, group), alerts.c.state == "resolved").order_by(alerts.c.id.desc()).limit(1)
    row = (await connection.execute(query)).first()
    return None if row is None else _alert(row).evidence.calm_from


async def open_groups(connection: AsyncConnection) -> set[Group]:
    """Groups with an open alert."""
    rows = await connection.execute(select(alerts.c.manifest_sha256, alerts.c.scope).where(alerts.c.state == "open"))
    return {Group(row.manifest_sha256, row.scope.removeprefix("device:").replace("fleet", "*")) for row in rows}


async def list_alerts(
    connection: AsyncConnection,
    state: str = "",
    module: str = "",
    before: int = 0,
    limit: int = 100,
    devices: Collection[str] | None = None,
) -> list[Alert]:
    """Newest first; `before` is an id to go on from. With `devices` only alerts of single ones of them."""
    query = select(alerts).order_by(alerts.c.id.desc()).limit(min(limit, MAX_ALERTS))
    if state:
        query = query.where(alerts.c.state == state)
    if module:
        query = query.where(alerts.c.module == module)
    if before:
        query = query.where(alerts.c.id < before)
    if devices is not None:
        query = query.where(among(alerts.c.scope, [f"device:{device}" for device in devices]))
    return [_alert(row) for row in await connection.execute(query)]


async def insert_alert(
    connection: AsyncConnection, kind: AlertKind, module: str, group: Group, evidence: AlertEvidence, now: float
) -> int:
    """The new alert's id."""
    values = {
        "kind": kind,
        "module": module,
        "manifest_sha256": group.manifest_sha256,
        "scope": group.scope,
        "state": "open",
        "opened_at": now,
        "updated_at": now,
        "evidence": msgspec.to_builtins(evidence),
    }
    return int((await connection.execute(insert(alerts).values(values).returning(alerts.c.id))).scalar_one())


async def update_alert(
    connection: AsyncConnection, alert: Alert, evidence: AlertEvidence, state: State, now: float
) -> None:
    resolved_at = now if state == "resolved" else None
    await connection.execute(
        update(alerts)
        .where(alerts.c.id == alert.id)
        .values(state=state, updated_at=now, resolved_at=resolved_at, evidence=msgspec.to_builtins(evidence))
    )


def _of(kind: AlertKind, group: Group) -> tuple[Any, ...]:  # SQLAlchemy's condition types
    return (
        alerts.c.kind == kind,
        alerts.c.manifest_sha256 == group.manifest_sha256,
        alerts.c.scope == group.scope,
    )


def _alert(row: Row[Any]) -> Alert:
    return msgspec.convert(row, Alert, from_attributes=True)
