"""Alerts: after new counts, weigh the groups they belong to and open, update or resolve what there is to say.

`ingest` names the touched groups; one task weighs each at most EVALUATIONS_PER_LOOK times per look, the open look
included, which the threshold pays for. Groups with an open alert are weighed once per look also without new counts.
A fleet alert is not opened when a few devices explain it: those have alerts of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Collection
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.errors import HubError
from cloud_hub.events import Events
from cloud_hub.monitoring import alert_book, looks
from cloud_hub.monitoring.alert_book import (
    Alert,
    AlertDetail,
    AlertEvidence,
    AlertKind,
    DeviceShare,
    ProblemCount,
    Resolution,
    Severity,
)
from cloud_hub.monitoring.alert_life import AlertLife
from cloud_hub.monitoring.finding import Finding, next_evidence, opening
from cloud_hub.monitoring.fleet import share_out
from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.looks import FLEET, Group
from cloud_hub.monitoring.references import References, Watched
from cloud_hub.monitoring.reports import Reports, WatchSettings
from cloud_hub.monitoring.verdict import Kind, LookSeries
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import events as events_table
from modules.windows import ReferenceProfile

KINDS: Final[tuple[Kind, ...]] = ("drift", "quality")
REFUSED_KINDS: Final = ("window.refused", "sample.refused", "event.refused")
MAX_PROBLEM_EVENTS: Final = 200
REOPEN_LOOKS: Final = 24  # one that comes back within so many looks is the same alert
LONGEST_PAUSE_S: Final = 60.0
SHORTEST_PAUSE_S: Final = 0.02
_NOTHING: Final = Layout(ReferenceProfile(0, ()))

_log = logging.getLogger(__name__)


class Alerts:
    """An async context manager: inside it the evaluating task runs. `reports` shows how things stand."""

    def __init__(
        self,
        store: Store,
        events: Events,
        references: References,
        reports: Reports,
        clock: Clock,
        settings: WatchSettings,
    ) -> None:
        self.reports = reports
        self._store = store
        self._life = AlertLife(events, clock, REOPEN_LOOKS * settings.look_s)
        self._references = references
        self._clock = clock
        self._settings = settings
        self._waiting: set[Group] = set()
        self._weighed_at: dict[Group, float] = {}
        self._swept_at = -math.inf
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Alerts:
        self._task = asyncio.create_task(self._run(), name="alerts")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def touched(self, groups: Collection[Group]) -> None:
        """These groups have new counts. Returns at once."""
        self._waiting.update(groups)
        self._wake.set()

    async def run_due(self) -> float:
        """Weigh every waiting group whose pause is over; the seconds until the next one may be."""
        await self._sweep()
        now = self._clock()
        for group in sorted(self._waiting):
            if now - self._weighed_at.get(group, -math.inf) >= self._settings.pause_s:
                self._waiting.discard(group)
                self._weighed_at[group] = now
                await self._weigh(group)
        pauses = [self._weighed_at.get(group, now) + self._settings.pause_s - now for group in self._waiting]
        return min([LONGEST_PAUSE_S, self._settings.look_s, *pauses])

    async def list(
        self,
        state: str = "",
        module: str = "",
        before: int = 0,
        limit: int = 100,
        devices: Collection[str] | None = None,
    ) -> list[Alert]:
        """Newest first; `before` is the id of the last alert of the page before. With `devices` only theirs."""
        async with self._store.read() as connection:
            return await alert_book.list_alerts(connection, state, module, before, limit, devices)

    async def detail(self, number: int) -> AlertDetail:
        """With its history. Raises NotFound `alert-not-found`."""
        async with self._store.read() as connection:
            return await alert_book.detail(connection, number)

    async def raise_alert(
        self,
        kind: AlertKind,
        module: str,
        group: Group,
        evidence: AlertEvidence,
        version: int = 0,
        severity: Severity | None = None,
    ) -> int:
        """For what is not found in counts of looks: opens the alert of this kind and group, or says what it says now.

        Its id. `evidence.facts` say what was measured; `threshold` is 0 where there is none in nats.
        """
        async with self._store.write() as connection:
            alert = await alert_book.find_open(connection, kind, group)
            if alert is None:
                return await self._life.open(connection, kind, module, group, evidence, version, severity)
            await self._life.update(connection, alert.id, evidence, severity)
            return alert.id

    async def calm(self, kind: AlertKind, group: Group, resolution: Resolution = "calm", reason: str = "") -> bool:
        """Resolves what `raise_alert` opened; false when there was nothing to resolve."""
        async with self._store.write() as connection:
            alert = await alert_book.find_open(connection, kind, group)
            if alert is None:
                return False
            await self._life.resolve(connection, alert, resolution, comment=reason)
            return True

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                pause_s = await self.run_due()
            except Exception:
                # Nothing is lost: the counts stay, and the next look of the group is weighed with all of them.
                _log.exception("weighing looks failed; trying again with the next counts")
                pause_s = LONGEST_PAUSE_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pause(pause_s), LONGEST_PAUSE_S)

    async def _pause(self, pause_s: float) -> None:
        """Until the pause is over, and no longer than until a new group turns up."""
        await asyncio.sleep(min(SHORTEST_PAUSE_S, pause_s))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), max(pause_s - SHORTEST_PAUSE_S, SHORTEST_PAUSE_S))

    async def _sweep(self) -> None:
        """Once per look: open alerts may have come to their end without new counts."""
        now = self._clock()
        if now - self._swept_at >= self._settings.look_s:
            self._swept_at = now
            # Whose pause is over needs no memory: groups come and go with every build.
            recent = {group: at for group, at in self._weighed_at.items() if now - at < self._settings.pause_s}
            self._weighed_at = recent
            async with self._store.read() as connection:
                self._waiting |= await alert_book.open_groups(connection, KINDS)

    async def _weigh(self, group: Group) -> None:
        try:
            watched = await self._references.get(group.manifest_sha256) if group.manifest_sha256 else None
            for kind in KINDS:
                await self._weigh_kind(group, watched, kind)
        except HubError as error:
            _log.error("could not weigh a group", extra={"scope": group.scope, "key": error.key, "text": error.message})

    async def _weigh_kind(self, group: Group, watched: Watched | None, kind: Kind) -> None:
        module = watched.module if watched else ""
        async with self._store.read() as connection:
            alert = await alert_book.find_open(connection, kind, group)
            finding = await self._finding(connection, group, watched, kind)
            gone = alert is not None and await self._is_gone(connection, module, group, finding)
        if alert is not None and gone:
            await self._resolve(alert, "superseded")
            return
        window = await asyncio.to_thread(lambda: finding.window)
        devices: tuple[DeviceShare, ...] = ()
        if window >= 0 and group.device == FLEET:
            spread = await share_out(self._store, group.manifest_sha256, finding, window)
            if alert is None and spread.explained:
                return
            devices = spread.devices
        if alert is None:
            if (evidence := await asyncio.to_thread(opening, finding, devices)) is not None:
                await self._open(kind, watched, group, evidence)
        elif (evidence := await asyncio.to_thread(next_evidence, alert.evidence, finding, devices)) is None:
            return
        elif evidence.resolution:
            await self._resolve(alert, evidence.resolution, evidence.calm_from)
        else:
            await self._update(alert, evidence)

    async def _finding(self, connection: AsyncConnection, group: Group, watched: Watched | None, kind: Kind) -> Finding:
        rate = await self.reports.alarm_rate(connection)
        problems = await self._problems(connection, group) if kind == "quality" else ()
        calm_looks = self._settings.calm_looks
        if watched is None:
            return Finding(kind, _NOTHING, LookSeries.empty(_NOTHING), 0, rate, calm_looks, problems)
        found = await self.reports.series(connection, watched, group, kind)
        over = self._clock() - self._settings.look_s
        closed = sum(start <= over for start in found.starts)
        return Finding(kind, watched.layout, found, closed, rate, calm_looks, problems)

    async def _problems(self, connection: AsyncConnection, group: Group) -> tuple[ProblemCount, ...]:
        """What the device sent lately that could not be used, of this module or (without a manifest) of none."""
        since = self._clock() - self._settings.calm_looks * self._settings.look_s
        table = events_table
        query = (
            select(table.c.details)
            .where(table.c.subject == group.device, table.c.kind.in_(REFUSED_KINDS), table.c.at > since)
            .order_by(table.c.id.desc())
            .limit(MAX_PROBLEM_EVENTS)
        )
        counted: dict[str, ProblemCount] = {}
        for details in (await connection.execute(query)).scalars():
            if details["manifest_sha256"] == group.manifest_sha256:
                key = details["key"]
                before = counted[key].count if key in counted else 0
                counted[key] = ProblemCount(key, before + details["count"], details["text"])
        return tuple(counted.values())

    async def _is_gone(self, connection: AsyncConnection, module: str, group: Group, finding: Finding) -> bool:
        """No counts for some looks, while another build of the module has been counting there since."""
        if not len(finding.looks) or finding.problems:
            return False
        newest = finding.looks.starts[-1]
        silent_s = self._clock() - newest - self._settings.look_s
        if silent_s < self._settings.calm_looks * self._settings.look_s:
            return False
        return await looks.superseded(connection, module, group, newest)

    async def _open(self, kind: Kind, watched: Watched | None, group: Group, evidence: AlertEvidence) -> None:
        module, version = (watched.module, watched.version) if watched else ("", 0)
        async with self._store.write() as connection:
            await self._life.open(connection, kind, module, group, evidence, version)

    async def _update(self, alert: Alert, evidence: AlertEvidence) -> None:
        async with self._store.write() as connection:
            await self._life.update(connection, alert.id, evidence)

    async def _resolve(self, alert: Alert, resolution: Resolution, calm_from: float | None = None) -> None:
        async with self._store.write() as connection:
            await self._life.resolve(connection, alert, resolution, calm_from)
