"""Alerts as they are kept, and how they are read: at most one live per kind, build and scope.

What opens one is in `alerts`, what becomes of it in `alert_life`; nothing is written here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import Row, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.errors import NotFound
from cloud_hub.monitoring.looks import Group
from cloud_hub.monitoring.verdict import FeatureEvidence, Kind, RateEvidence
from cloud_hub.store.among import among, pairs_among
from cloud_hub.store.tables import alert_changes, alerts

State = Literal["open", "acknowledged", "snoozed", "resolved"]
Severity = Literal["warning", "critical"]
# What is found in counts (drift, quality), in labels (concept, performance), and two devices with one key.
AlertKind = Kind | Literal["concept", "performance", "clone-suspected"]
Change = Literal["opened", "acknowledged", "snoozed", "reopened", "attached", "resolved"]
Resolution = Literal["", "calm", "superseded", "by-hand", "normal"]
CLONE: Final = "clone-suspected"
MAX_ALERTS: Final = 500
MAX_HISTORY: Final = 200
LIVE: Final[tuple[State, ...]] = ("open", "acknowledged", "snoozed")


class DeviceShare(msgspec.Struct, frozen=True):
    """A device's part in an alert of many: its own evidence, in nats, and its share of that of all devices."""

    device: str
    share: float
    log_bf: float


class ProblemCount(msgspec.Struct, frozen=True):
    """Something that a device did and that makes its data suspect, by reason: entries that could not be used, a clock
    that was set, late rows, far more rows than usual, a sensor that stands still (then `field` is its name).
    """

    key: str
    count: int
    text: str
    field: str = ""


class Fact(msgspec.Struct, frozen=True):
    """A measured value beside what it was or should be, with a sentence that says so: for alerts from labels."""

    name: str
    value: float
    reference: float | None
    text: str


class Common(msgspec.Struct, frozen=True):
    """What the devices behind an alert have in common ("site=north"), and how many of all others have it, too."""

    group: str
    behind: int
    behind_all: int
    others: int
    others_all: int


class Cause(msgspec.Struct, frozen=True):
    """Something that happened shortly before the change: a rollout, an update, a setting. `event` is its number."""

    event: int
    at: float
    kind: str
    actor: str
    subject: str
    text: str


class AlertEvidence(msgspec.Struct, frozen=True):
    """Why the alert stands. Strongest first; `since` is the start of the looks in which the strongest shows.

    `window` is the index of the shortest window of looks that raised it (-1: no evidence from counts), `alarm_look`
    the start of the newest look in which that window still did. Once resolved, `resolution` says how, and looks
    before `calm_from` are not weighed again. `affected` devices alarm by themselves, as far as was looked;
    `reference` is what the counts were compared with. `beside` says as what the build ran when it opened, where it was
    beside a version that serves.
    """

    threshold: float
    since: float
    features: tuple[FeatureEvidence, ...] = ()
    rates: tuple[RateEvidence, ...] = ()
    problems: tuple[ProblemCount, ...] = ()
    devices: tuple[DeviceShare, ...] = ()
    window: int = -1
    alarm_look: float = 0.0
    resolution: Resolution = ""
    calm_from: float | None = None
    facts: tuple[Fact, ...] = ()
    affected: int = 0
    common: tuple[Common, ...] = ()
    causes: tuple[Cause, ...] = ()
    reference: str = "training"
    beside: Literal["", "shadow", "arm"] = ""

    @property
    def names(self) -> tuple[str, ...]:
        """What the alert speaks of: features, or the keys of problems, or the names of facts."""
        found = [item.name for item in self.features if item.alarm] + [item.name for item in self.rates]
        found += [item.field or item.key for item in self.problems] + [item.name for item in self.facts]
        return tuple(dict.fromkeys(found))


class Alert(msgspec.Struct, frozen=True):
    """`scope` is "fleet", "device:<id>" or "group:<key=value>"; a group has something in common, such as its site.

    `parent` is the alert of a wider scope that says the same; then nobody needs to look at this one by itself. Times
    are seconds since the epoch by the hub's clock. `version` is 0 where it is not about one build of a module.
    """

    id: int
    kind: AlertKind
    module: str
    version: int
    manifest_sha256: str
    scope: str
    state: State
    severity: Severity
    parent: int | None
    opened_at: float
    updated_at: float
    resolved_at: float | None
    snoozed_until: float | None
    evidence: AlertEvidence

    @property
    def live(self) -> bool:
        return self.state != "resolved"

    @property
    def devices(self) -> tuple[str, ...]:
        """The device that it is about, or those with the largest shares."""
        kind, _, name = self.scope.partition(":")
        return (name,) if kind == "device" else tuple(share.device for share in self.evidence.devices)

    @property
    def group(self) -> Group:
        return Group(self.manifest_sha256, "*" if self.scope == "fleet" else self.scope.partition(":")[2])


class AlertChange(msgspec.Struct, frozen=True):
    """One step in the life of an alert: who, when, what, and why as they said it."""

    at: float
    actor: str
    change: Change
    comment: str


class AlertDetail(msgspec.Struct, frozen=True):
    """An alert with its history, oldest first, and the alerts of single devices or groups that it speaks for."""

    alert: Alert
    history: tuple[AlertChange, ...]
    children: tuple[Alert, ...]


async def get(connection: AsyncConnection, number: int) -> Alert:
    """Raises NotFound `alert-not-found`."""
    row = (await connection.execute(select(alerts).where(alerts.c.id == number))).one_or_none()
    if row is None:
        raise NotFound("alert-not-found", f"no alert {number}", id=number)
    return _alert(row)


async def detail(connection: AsyncConnection, number: int) -> AlertDetail:
    """Raises NotFound `alert-not-found`."""
    alert = await get(connection, number)
    of = select(alert_changes).where(alert_changes.c.alert == number).order_by(alert_changes.c.id).limit(MAX_HISTORY)
    history = [msgspec.convert(row, AlertChange, from_attributes=True) for row in await connection.execute(of)]
    return AlertDetail(alert, tuple(history), tuple(await children(connection, number)))


async def children(connection: AsyncConnection, number: int) -> list[Alert]:
    """Live ones."""
    query = select(alerts).where(alerts.c.parent == number, alerts.c.state.in_(LIVE)).order_by(alerts.c.id)
    return [_alert(row) for row in await connection.execute(query.limit(MAX_ALERTS))]


async def find_open(connection: AsyncConnection, kind: AlertKind, group: Group) -> Alert | None:
    """The live one, in whatever state."""
    query = select(alerts).where(*_of(kind, group), alerts.c.state.in_(LIVE))
    row = (await connection.execute(query)).first()
    return None if row is None else _alert(row)


async def latest(connection: AsyncConnection, kind: AlertKind, group: Group) -> Alert | None:
    """The newest one, live or not."""
    query = select(alerts).where(*_of(kind, group)).order_by(alerts.c.id.desc()).limit(1)
    row = (await connection.execute(query)).first()
    return None if row is None else _alert(row)


async def calm_from(connection: AsyncConnection, kind: AlertKind, group: Group) -> float | None:
    """From where on looks are weighed: the start of the calm that resolved the latest such alert, None without one."""
    found = await latest(connection, kind, group)
    return None if found is None else found.evidence.calm_from


async def newest_of(connection: AsyncConnection, groups: Collection[Group]) -> dict[Group, dict[AlertKind, Alert]]:
    """The newest alert of each kind, live or not, by group; without groups that have none."""
    of = pairs_among(alerts.c.manifest_sha256, alerts.c.scope, [(g.manifest_sha256, g.scope) for g in groups])
    newest = select(func.max(alerts.c.id)).where(of).group_by(alerts.c.manifest_sha256, alerts.c.scope, alerts.c.kind)
    found: dict[Group, dict[AlertKind, Alert]] = {}
    for row in await connection.execute(select(alerts).where(alerts.c.id.in_(newest))):
        alert = _alert(row)
        found.setdefault(alert.group, {})[alert.kind] = alert
    return found


async def live_of(
    connection: AsyncConnection, kind: AlertKind, manifest_sha256: str, limit: int = MAX_ALERTS
) -> list[Alert]:
    """Live alerts of any scope of one build, newest first."""
    query = select(alerts).where(
        alerts.c.manifest_sha256 == manifest_sha256, alerts.c.kind == kind, alerts.c.state.in_(LIVE)
    )
    return [_alert(row) for row in await connection.execute(query.order_by(alerts.c.id.desc()).limit(limit))]


async def open_groups(connection: AsyncConnection, kinds: Collection[AlertKind]) -> set[Group]:
    """Groups with a live alert of these kinds."""
    query = select(alerts).where(alerts.c.state.in_(LIVE), alerts.c.kind.in_(kinds))
    return {_alert(row).group for row in await connection.execute(query)}


async def awake(connection: AsyncConnection, now: float) -> list[Alert]:
    """Snoozed ones whose time is over."""
    query = select(alerts).where(alerts.c.state == "snoozed", alerts.c.snoozed_until <= now)
    return [_alert(row) for row in await connection.execute(query.order_by(alerts.c.id).limit(MAX_ALERTS))]


async def list_alerts(
    connection: AsyncConnection,
    state: str = "",
    module: str = "",
    before: int = 0,
    limit: int = 100,
    devices: Collection[str] | None = None,
    attached: bool = True,
) -> list[Alert]:
    """Newest first; `before` is an id to go on from. State "live" is all but resolved.

    With `devices` only alerts of single ones of them, and of many that may hold them; without `attached` none for which
    a wider one speaks.
    """
    query = select(alerts).order_by(alerts.c.id.desc()).limit(min(limit, MAX_ALERTS + 1))
    if state:
        query = query.where(alerts.c.state.in_(LIVE) if state == "live" else alerts.c.state == state)
    if module:
        query = query.where(alerts.c.module == module)
    if before:
        query = query.where(alerts.c.id < before)
    if devices is not None:
        single = among(alerts.c.scope, [f"device:{device}" for device in devices])
        query = query.where(or_(single, alerts.c.scope.not_like("device:%")))
    if not attached:
        query = query.where(alerts.c.parent.is_(None))
    return [_alert(row) for row in await connection.execute(query)]


def _of(kind: AlertKind, group: Group) -> tuple[Any, ...]:  # SQLAlchemy's condition types
    return (
        alerts.c.kind == kind,
        alerts.c.manifest_sha256 == group.manifest_sha256,
        alerts.c.scope == group.scope,
    )


def _alert(row: Row[Any]) -> Alert:
    return msgspec.convert(row, Alert, from_attributes=True)
