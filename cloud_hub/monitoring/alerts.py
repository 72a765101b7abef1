"""Alerts: after new counts, weigh the scopes they belong to and open, update or resolve what there is to say.

`ingest` names the touched groups; one task weighs each at most EVALUATIONS_PER_LOOK times per look, the open look
included. Groups with a live alert are weighed once per look also without new counts. What a scope says, and whether
another says it better, is `deciding`; what becomes of an alert, `alert_life`. The fleet is weighed before groups and
those before devices: a device whose alarm a wider scope already says, or will say at its next turn, opens none of its
own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Collection, Sequence
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.errors import HubError
from cloud_hub.events import Events
from cloud_hub.monitoring import alert_book, looks
from cloud_hub.monitoring.alert_book import Alert, AlertDetail, AlertEvidence, AlertKind, Resolution, Severity
from cloud_hub.monitoring.alert_life import AlertLife, severe
from cloud_hub.monitoring.causes import causes_of
from cloud_hub.monitoring.deciding import KINDS, Deciding, Decision, says
from cloud_hub.monitoring.looks import FLEET, Group
from cloud_hub.monitoring.reference import Reference
from cloud_hub.monitoring.references import References
from cloud_hub.monitoring.reports import Reports, WatchSettings
from cloud_hub.monitoring.scopes import is_device
from cloud_hub.monitoring.verdict import Kind
from cloud_hub.monitoring.watches import Watches
from cloud_hub.store.bulk import in_slices
from cloud_hub.store.engine import Store

REOPEN_LOOKS: Final = 24  # one that comes back within so many looks is the same alert
LONGEST_PAUSE_S: Final = 60.0
TOGETHER: Final = 32  # devices that are read and weighed at once
SHORTEST_PAUSE_S: Final = 0.25  # what comes meanwhile is weighed together, on the same view of its fleet
SAID: Final = "said"  # by a wider alert
HELD: Final = "held"  # a wider scope will say it at its next turn

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
        group_by: Sequence[str] = (),
    ) -> None:
        self.watches = Watches(store, events, references, clock)
        self.reports = reports
        self._store = store
        self._life = AlertLife(events, clock, REOPEN_LOOKS * settings.look_s)
        self._deciding = Deciding(store, references, reports, clock, settings, group_by)
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
        self._deciding.fresh()
        now = self._clock()
        due = [
            group for group in self._waiting if now - self._weighed_at.get(group, -math.inf) >= self._settings.pause_s
        ]
        for group in sorted((group for group in due if not is_device(group.device)), key=_by_width):
            await self._weigh(group, now)
        for some in in_slices(sorted(group for group in due if is_device(group.device)), TOGETHER):
            await self._weigh_devices(some, now)
        pauses = [self._weighed_at.get(group, now) + self._settings.pause_s - now for group in self._waiting]
        return min([LONGEST_PAUSE_S, self._settings.look_s, *pauses])

    async def list(
        self,
        state: str = "",
        module: str = "",
        before: int = 0,
        limit: int = 100,
        devices: Collection[str] | None = None,
        attached: bool = True,
    ) -> list[Alert]:
        """Newest first; `before` is the id of the last alert of the page before. State "live" is all but resolved.

        With `devices` only theirs; without `attached` none for which a wider alert speaks.
        """
        async with self._store.read() as connection:
            return await alert_book.list_alerts(connection, state, module, before, limit, devices, attached)

    async def detail(self, number: int) -> AlertDetail:
        """With its history. Raises NotFound `alert-not-found`."""
        async with self._store.read() as connection:
            return await alert_book.detail(connection, number)

    async def acknowledge(self, number: int, actor: str, comment: str = "") -> AlertDetail:
        """Raises NotFound `alert-not-found`, Conflict `alert-resolved`."""
        async with self._store.write() as connection:
            await self._life.acknowledge(connection, number, actor, comment)
            return await alert_book.detail(connection, number)

    async def snooze(self, number: int, for_s: float, actor: str, comment: str = "") -> AlertDetail:
        """Raises NotFound `alert-not-found`, Conflict `alert-resolved`, BadRequest `snooze-invalid`."""
        async with self._store.write() as connection:
            await self._life.snooze(connection, number, for_s, actor, comment)
            return await alert_book.detail(connection, number)

    async def resolve(self, number: int, actor: str, comment: str = "", normal: bool = False) -> AlertDetail:
        """By hand: looks up to now are not weighed again. With `normal` what was counted since the change began is what
        this scope is compared with from now on.

        Raises NotFound `alert-not-found`, Conflict `alert-resolved`, and with `normal` Conflict `reference-empty`.
        """
        now, look_s = self._clock(), self._settings.look_s
        next_look = looks.look_start(now, look_s) + look_s
        alert = (await self.detail(number)).alert
        if normal and alert.live and alert.kind in KINDS:  # others are not found in counts
            since = alert.evidence.since or alert.opened_at
            await self.watches.set(alert.module, alert.scope, Reference("period", since, next_look), actor)
        async with self._store.write() as connection:
            await self._life.resolve_by_hand(connection, number, actor, comment, next_look, normal)
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
        """Once per look: open alerts may have come to their end without new counts, and snoozed ones wake."""
        now = self._clock()
        if now - self._swept_at >= self._settings.look_s:
            self._swept_at = now
            # Whose pause is over needs no memory: groups come and go with every build.
            recent = {group: at for group, at in self._weighed_at.items() if now - at < self._settings.pause_s}
            self._weighed_at = recent
            async with self._store.read() as connection:
                self._waiting |= await alert_book.open_groups(connection, KINDS)
        async with self._store.read() as connection:
            asleep = await alert_book.awake(connection, now)
        if asleep:
            async with self._store.write() as connection:
                await self._life.wake(connection)

    async def _weigh_devices(self, groups: Sequence[Group], now: float) -> None:
        # What one of them cannot be weighed for is met again below, by itself: it must not hold up the others.
        with contextlib.suppress(Exception):
            await self._deciding.decide_devices(groups)
        for group in groups:
            await self._weigh(group, now)
        self._deciding.forget(groups)

    async def _weigh(self, group: Group, now: float) -> None:
        self._waiting.discard(group)  # it may come back: see `_say`
        self._weighed_at[group] = now
        try:
            for kind in await self._in_order(group):
                await self._weigh_kind(group, kind)
        except HubError as error:
            _log.error("could not weigh a group", extra={"scope": group.scope, "key": error.key, "text": error.message})

    async def _in_order(self, group: Group) -> tuple[Kind, ...]:
        """What is worse first: the other may be said by it."""
        quality = (await self._deciding.decide(group, "quality")).evidence
        return ("quality", "drift") if quality is not None and _is_bad(quality) else KINDS

    async def _weigh_kind(self, group: Group, kind: Kind) -> None:
        decision = await self._deciding.decide(group, kind)
        if decision.alert is None:
            if decision.evidence is not None:
                await self._say(group, kind, decision, decision.evidence)
            return
        async with self._store.read() as connection:
            alert = await alert_book.get(connection, decision.alert.id)
            gone = await self._is_gone(connection, decision, group)
            parent = await alert_book.get(connection, alert.parent) if alert.parent else None
        if gone:
            await self._resolve(alert, "superseded")
        elif (evidence := await asyncio.to_thread(decision.again, alert.evidence)) is not None:
            if evidence.resolution:
                await self._resolve(alert, evidence.resolution, evidence.calm_from)
            else:
                await self._update(alert, decision, evidence, parent)

    async def _say(self, group: Group, kind: Kind, decision: Decision, evidence: AlertEvidence) -> None:
        """Open an alert, unless one of a wider scope says it, or will in a moment."""
        saying = await self._wider_alert(group, kind, evidence)
        if saying == HELD:
            self._waiting.add(group)
        if saying is not None:
            return
        module, version = (decision.watched.module, decision.watched.version) if decision.watched else ("", 0)
        inside = set() if is_device(group.device) else await self._deciding.inside(group)
        async with self._store.write() as connection:
            if await alert_book.find_open(connection, kind, group) is not None:
                return  # another replica was first
            evidence = await self._with_causes(connection, module, group, evidence)
            twin = await self._companion(connection, group, kind, evidence)
            main = kind == "quality" and _is_bad(evidence)
            parent = None if twin is None or main else twin.id
            number = await self._life.open(connection, kind, module, group, evidence, version, None, parent)
            if twin is not None and main:
                await self._life.attach(connection, twin, number)
            for alert in await alert_book.live_of(connection, kind, group.manifest_sha256):
                if alert.parent is None and alert.group in inside and says(evidence, alert.evidence):
                    await self._life.attach(connection, alert, number)

    async def _wider_alert(self, group: Group, kind: Kind, evidence: AlertEvidence) -> str | None:
        for wide in await self._deciding.wider(group):
            async with self._store.read() as connection:
                alert = await alert_book.find_open(connection, kind, wide)
            if alert is not None and says(alert.evidence, evidence):
                return SAID
            if alert is None:
                wider = (await self._deciding.decide(wide, kind)).evidence
                if wider is not None and says(wider, evidence):
                    self._waiting.add(wide)
                    return HELD
        return None

    async def _companion(
        self, connection: AsyncConnection, group: Group, kind: Kind, evidence: AlertEvidence
    ) -> Alert | None:
        """The alert of the other kind about the same here: a wrong unit is one thing to see to, not two."""
        other = await alert_book.find_open(connection, "drift" if kind == "quality" else "quality", group)
        if other is None or not evidence.names:
            return None
        drift, quality = (evidence, other.evidence) if kind == "drift" else (other.evidence, evidence)
        # Rows of a flood are hardly independent of each other: what they seem to say is not weighed against it.
        flooded = any(problem.key == "flood" for problem in quality.problems)
        return other if flooded or set(drift.names) & set(quality.names) else None

    async def _with_causes(
        self, connection: AsyncConnection, module: str, group: Group, evidence: AlertEvidence
    ) -> AlertEvidence:
        devices = [group.device] if is_device(group.device) else [share.device for share in evidence.devices]
        found = await causes_of(connection, module, devices, evidence.since, self._settings.look_s)
        return msgspec.structs.replace(evidence, causes=found)

    async def _is_gone(self, connection: AsyncConnection, decision: Decision, group: Group) -> bool:
        """No counts for some looks, while another build of the module has been counting there since."""
        finding = decision.finding
        if decision.watched is None or not len(finding.looks) or finding.problems:
            return False
        newest = finding.looks.starts[-1]
        silent_s = self._clock() - newest - self._settings.look_s
        if silent_s < self._settings.calm_looks * self._settings.look_s:
            return False
        return await looks.superseded(connection, decision.watched.module, group, newest)

    async def _update(self, alert: Alert, decision: Decision, evidence: AlertEvidence, parent: Alert | None) -> None:
        async with self._store.write() as connection:
            if not evidence.causes and evidence.since != alert.evidence.since:
                evidence = await self._with_causes(connection, alert.module, alert.group, evidence)
            await self._life.update(connection, alert.id, evidence)
            if parent is not None and not parent.live and decision.evidence is not None:
                await self._life.detach(connection, alert)

    async def _resolve(self, alert: Alert, resolution: Resolution, calm_from: float | None = None) -> None:
        async with self._store.write() as connection:
            await self._life.resolve(connection, alert, resolution, calm_from)


def _is_bad(quality: AlertEvidence) -> bool:
    """So much that what else is seen there follows from it."""
    return bool(quality.problems) or severe(quality)


def _by_width(group: Group) -> tuple[bool, Group]:
    """The fleet before groups of devices."""
    return group.device != FLEET, group
