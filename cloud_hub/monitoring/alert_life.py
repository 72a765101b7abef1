"""What becomes of an alert: opened, taken over, put off, worse again, attached to a wider one, resolved.

Each step is one function that writes the row, the alert's own history and the event, in the transaction it is given:

    open -> acknowledged -> resolved            by somebody, by calm looks, or because another build took over
    open, acknowledged -> snoozed -> open       when its time is over and it has not been resolved meanwhile
    acknowledged, snoozed -> open               when it has become critical
    resolved -> open                            when it comes back within `reopen_s`; later it is a new alert

Called by `alerts`, `clone_alerts` and the API.
"""

from __future__ import annotations

from typing import Final

import msgspec
from sqlalchemy import insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.errors import BadRequest, Conflict
from cloud_hub.events import Events
from cloud_hub.monitoring import alert_book
from cloud_hub.monitoring.alert_book import Alert, AlertEvidence, AlertKind, Change, Resolution, Severity, State
from cloud_hub.monitoring.beside import way_of
from cloud_hub.monitoring.looks import Group
from cloud_hub.store.tables import alert_changes, alerts

HUB: Final = "hub"
LONGEST_SNOOZE_S: Final = 92 * 86_400.0
MAX_COMMENT: Final = 2000
LARGE_PSI: Final = 0.25  # by common use of PSI: a large change
LARGE_RATE: Final = 0.2


class AlertLife:
    """`reopen_s`: one that comes back within so many seconds is the same alert."""

    def __init__(self, events: Events, clock: Clock, reopen_s: float = 0.0) -> None:
        self._events = events
        self._clock = clock
        self._reopen_s = reopen_s

    async def open(
        self,
        connection: AsyncConnection,
        kind: AlertKind,
        module: str,
        group: Group,
        evidence: AlertEvidence,
        version: int = 0,
        severity: Severity | None = None,
        parent: int | None = None,
    ) -> int:
        """The alert's id: a new one, or that of one which was resolved a moment ago."""
        now = self._clock()
        evidence = msgspec.structs.replace(evidence, beside=await way_of(connection, group))
        weight = severity_of(group, evidence, severity)
        last = await alert_book.latest(connection, kind, group)
        if last is not None and last.resolved_at is not None and now - last.resolved_at < self._reopen_s:
            again = msgspec.structs.replace(evidence, calm_from=last.evidence.calm_from)
            values = {"severity": weight, "parent": parent, "evidence": msgspec.to_builtins(again)}
            await self._move(connection, last, "open", "reopened", HUB, "it has come back", **values)
            return last.id
        values = {
            "kind": kind,
            "module": module,
            "version": version,
            "manifest_sha256": group.manifest_sha256,
            "scope": group.scope,
            "state": "open",
            "severity": weight,
            "parent": parent,
            "opened_at": now,
            "updated_at": now,
            "evidence": msgspec.to_builtins(evidence),
        }
        row = await connection.execute(insert(alerts).values(values).returning(alerts.c.id))
        number = int(row.scalar_one())
        await self._tell(connection, await alert_book.get(connection, number), "opened", HUB, "")
        return number

    async def update(
        self, connection: AsyncConnection, number: int, evidence: AlertEvidence, severity: Severity | None = None
    ) -> None:
        """What it says now. Whoever took it over is asked again when it has become critical."""
        alert = await alert_book.get(connection, number)
        if not alert.live:
            return  # somebody resolved it while it was weighed
        if evidence.calm_from is None:
            evidence = msgspec.structs.replace(evidence, calm_from=alert.evidence.calm_from)
        evidence = msgspec.structs.replace(evidence, beside=alert.evidence.beside)
        weight = severity_of(alert.group, evidence, severity)
        worse = weight == "critical" != alert.severity
        values = {"severity": "critical" if worse else alert.severity, "evidence": msgspec.to_builtins(evidence)}
        if worse and alert.state != "open":
            await self._move(connection, alert, "open", "reopened", HUB, "it has become critical", **values)
        else:
            await _write(connection, number, updated_at=self._clock(), **values)

    async def acknowledge(self, connection: AsyncConnection, number: int, actor: str, comment: str = "") -> None:
        """Somebody sees to it. Raises NotFound `alert-not-found`, Conflict `alert-resolved`."""
        alert = await _live(connection, number, "acknowledged")
        await self._move(connection, alert, "acknowledged", "acknowledged", actor, comment, snoozed_until=None)

    async def snooze(
        self, connection: AsyncConnection, number: int, for_s: float, actor: str, comment: str = ""
    ) -> None:
        """Put off for so many seconds. Raises NotFound `alert-not-found`, Conflict `alert-resolved`, BadRequest
        `snooze-invalid`.
        """
        if not 0 < for_s <= LONGEST_SNOOZE_S:
            most = LONGEST_SNOOZE_S / 86_400
            raise BadRequest("snooze-invalid", f"snooze: expected up to {most:.0f} days, got {for_s / 86_400:g}")
        alert = await _live(connection, number, "snoozed")
        until = self._clock() + for_s
        await self._move(connection, alert, "snoozed", "snoozed", actor, comment, snoozed_until=until)

    async def resolve_by_hand(
        self, connection: AsyncConnection, number: int, actor: str, comment: str, calm_from: float, normal: bool
    ) -> Alert:
        """With the alerts that it speaks for: they say the same. Looks before `calm_from` are not weighed again.

        Raises NotFound `alert-not-found`, Conflict `alert-resolved`.
        """
        alert = await _live(connection, number, "resolved")
        resolution: Resolution = "normal" if normal else "by-hand"
        over, seen, said = [alert], {number}, comment
        while over:
            one = over.pop()
            children = [child for child in await alert_book.children(connection, one.id) if child.id not in seen]
            seen |= {child.id for child in children}
            over += children
            await self.resolve(connection, one, resolution, calm_from, actor, said)
            said = f"with alert {number}"
        return alert

    async def resolve(
        self,
        connection: AsyncConnection,
        alert: Alert,
        resolution: Resolution,
        calm_from: float | None = None,
        actor: str = HUB,
        comment: str = "",
    ) -> None:
        """It is over. An alert that was resolved meanwhile stays as it is."""
        current = await alert_book.get(connection, alert.id)
        if not current.live:
            return
        calm = alert.evidence.calm_from if calm_from is None else calm_from
        evidence = msgspec.structs.replace(current.evidence, resolution=resolution, calm_from=calm)
        values = {"resolved_at": self._clock(), "snoozed_until": None, "parent": None}
        told = {"evidence": msgspec.to_builtins(evidence), "resolution": resolution}
        await self._move(connection, current, "resolved", "resolved", actor, comment, **values, **told)

    async def wake(self, connection: AsyncConnection) -> None:
        """Open those whose snooze is over: they have not become calm meanwhile."""
        for alert in await alert_book.awake(connection, self._clock()):
            await self._move(connection, alert, "open", "reopened", HUB, "its snooze is over", snoozed_until=None)

    async def attach(self, connection: AsyncConnection, alert: Alert, parent: int) -> None:
        """A wider alert says the same."""
        values = {"parent": parent}
        await self._move(connection, alert, alert.state, "attached", HUB, f"alert {parent} says the same", **values)

    async def detach(self, connection: AsyncConnection, alert: Alert) -> None:
        """The wider alert is over, this one is not."""
        why = f"alert {alert.parent} is over, this one is not"
        await self._move(connection, alert, "open", "reopened", HUB, why, parent=None, snoozed_until=None)

    async def _move(
        self,
        connection: AsyncConnection,
        alert: Alert,
        state: State,
        change: Change,
        actor: str,
        comment: str,
        **values: object,
    ) -> None:
        told = {name: values.pop(name) for name in ("resolution",) if name in values}
        if state == "open":
            values["resolved_at"] = None
        await _write(connection, alert.id, state=state, updated_at=self._clock(), **values)
        await self._tell(connection, await alert_book.get(connection, alert.id), change, actor, comment, **told)

    async def _tell(
        self, connection: AsyncConnection, alert: Alert, change: Change, actor: str, comment: str, **told: object
    ) -> None:
        said = comment[:MAX_COMMENT]
        row = {"alert": alert.id, "at": self._clock(), "actor": actor, "change": change, "comment": said}
        await connection.execute(insert(alert_changes).values(row))
        await self._events.record(
            connection,
            f"alert.{change}",
            actor,
            alert.module or (alert.devices[0] if alert.devices else alert.scope),
            alert=alert.id,
            alert_kind=alert.kind,
            scope=alert.scope,
            module=alert.module,
            version=alert.version,
            manifest_sha256=alert.manifest_sha256,
            severity=alert.severity,
            beside=alert.evidence.beside,
            state=alert.state,
            names=alert.evidence.names,
            devices=alert.devices,
            parent=alert.parent,
            since=alert.evidence.since,
            comment=said,
            **told,
        )


def severity_of(group: Group, evidence: AlertEvidence, said: Severity | None = None) -> Severity:
    """Critical: a large change (PSI of an alarming feature, or share of bad values), or of more than one device; or as
    it was `said`. What a shadow does is nobody's emergency.
    """
    if evidence.beside == "shadow":
        return "warning"
    if said is not None:
        return said
    return "critical" if severe(evidence) or not group.scope.startswith("device:") else "warning"


def severe(evidence: AlertEvidence) -> bool:
    """A large change, or many bad values."""
    large = any(feature.alarm and feature.psi >= LARGE_PSI for feature in evidence.features)
    return large or any(rate.rate - rate.reference_rate >= LARGE_RATE for rate in evidence.rates)


async def _live(connection: AsyncConnection, number: int, wanted: str) -> Alert:
    alert = await alert_book.get(connection, number)
    if not alert.live:
        raise Conflict(
            "alert-resolved", f"alert {number} is resolved and cannot be {wanted} any more; nothing was changed"
        )
    return alert


async def _write(connection: AsyncConnection, number: int, **values: object) -> None:
    await connection.execute(update(alerts).where(alerts.c.id == number).values(values))
