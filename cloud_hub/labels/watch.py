"""After new labels: is a module wrong in a new way (`concept`), or worse than it is asked to be (`performance`)?

`desk` names the builds that have new outcomes; one task weighs each of them once in a while, for the fleet and for the
devices with most labels, and opens, updates or resolves its alerts. All rows are read anew (`concept`), so nothing
depends on the order in which labels came, or on when the hub was restarted. A fleet alert is about the devices that
have none of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.labels.bounds import bounds_of
from cloud_hub.labels.concept import MAX_ROWS, Row
from cloud_hub.labels.join import DAY_S
from cloud_hub.labels.known import KnownOutputs
from cloud_hub.labels.weighing import Build, LabelKind, Promise, is_calm, weigh
from cloud_hub.monitoring import alert_book
from cloud_hub.monitoring.alerts import Alerts
from cloud_hub.monitoring.evidence import MONTH_S
from cloud_hub.monitoring.looks import Group
from cloud_hub.monitoring.scopes import FLEET
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import look_scopes, modules, outcomes

KINDS: Final[tuple[LabelKind, ...]] = ("concept", "performance")
LEAST_ROWS: Final = 60  # labelled predictions of a device that is watched by itself
MAX_DEVICES: Final = 20
MAX_OUTPUTS: Final = 32
RECENT_S: Final = 90 * DAY_S
PAUSE_S: Final = 60.0
LONGEST_SWEEP_S: Final = 3600.0
SHORTEST_SWEEP_S: Final = 1.0
CALM_LOOKS: Final = 3
_log = logging.getLogger(__name__)


class LabelWatch:
    """`look_s` and `false_alarm_months` are those of all alerts. `pause_s`: a build is weighed no more often."""

    def __init__(
        self,
        store: Store,
        known: KnownOutputs,
        alerts: Alerts,
        clock: Clock,
        look_s: float,
        false_alarm_months: float,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._store, self._known, self._alerts, self._clock = store, known, alerts, clock
        self._look_s, self._promise_s, self._pause_s = look_s, false_alarm_months * MONTH_S, pause_s
        self._sweep_s = min(max(look_s, SHORTEST_SWEEP_S), LONGEST_SWEEP_S)
        self._waiting: set[str] = set()
        self._weighed_at: dict[str, float] = {}
        self._swept_at = -math.inf
        self._wake = asyncio.Event()

    def touched(self, manifests: Collection[str]) -> None:
        """These builds have new outcomes. Returns at once."""
        self._waiting.update(manifests)
        self._wake.set()

    async def keep_watching(self) -> None:
        """Until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self.run_due()
            except Exception:
                # The outcomes stay, and the next labels of the build bring it here again.
                _log.exception("weighing labels failed; trying again in %s s", self._pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._sweep_s)
            await asyncio.sleep(min(self._pause_s, 1.0))

    async def run_due(self) -> None:
        """Weigh every build that has new outcomes and whose pause is over."""
        await self._sweep()
        now = self._clock()
        for manifest in sorted(self._waiting):
            if now - self._weighed_at.get(manifest, -math.inf) < self._pause_s:
                self._wake.set()
                continue
            self._waiting.discard(manifest)
            self._weighed_at[manifest] = now
            await self._weigh(manifest)

    async def _sweep(self) -> None:
        """Once per look: what came while the hub was down, and alerts of builds that no longer run."""
        now = self._clock()
        if now - self._swept_at < self._sweep_s:
            return
        first, self._swept_at = self._swept_at == -math.inf, now
        self._weighed_at = {one: at for one, at in self._weighed_at.items() if now - at < self._pause_s}
        async with self._store.read() as connection:
            live = await alert_book.open_groups(connection, KINDS)
            if first:
                recent = select(outcomes.c.manifest_sha256).where(outcomes.c.joined_at > now - DAY_S).distinct()
                self._waiting |= set((await connection.execute(recent)).scalars())
            gone = {group for group in live if await self._is_gone(connection, group)}
        self._waiting |= {group.manifest_sha256 for group in live - gone}
        for group in gone:
            for kind in KINDS:
                await self._alerts.calm(kind, group, "superseded")

    async def _is_gone(self, connection: AsyncConnection, group: Group) -> bool:
        """No counts for some looks, while another build of the module has been counting there since."""
        mine = select(look_scopes).where(
            look_scopes.c.manifest_sha256 == group.manifest_sha256, look_scopes.c.device == group.device
        )
        row = (await connection.execute(mine)).one_or_none()
        if row is None or self._clock() - row.last < (CALM_LOOKS + 1) * self._look_s:
            return False
        others = select(look_scopes.c.last).where(
            look_scopes.c.module == row.module, look_scopes.c.device == group.device, look_scopes.c.last > row.last
        )
        return (await connection.execute(others.limit(1))).first() is not None

    async def _weigh(self, manifest: str) -> None:
        build = await self._build(manifest)
        if build is None:
            return
        promise = Promise(self._promise_s, await self._streams())
        devices = await self._devices(build)
        since = {kind: await self._since(build, kind, [*devices, FLEET]) for kind in KINDS}
        alarmed: dict[LabelKind, set[str]] = {kind: set() for kind in KINDS}
        for device in [*devices, FLEET]:
            streams = await self._read(build, device)
            for kind in KINDS:
                rows = {output: _weighable(stream, since[kind], alarmed[kind]) for output, stream in streams.items()}
                if await self._weigh_kind(build, kind, device, rows, promise):
                    alarmed[kind].add(device)

    async def _since(self, build: Build, kind: LabelKind, scopes: Collection[str]) -> dict[str, float]:
        """From where on each is weighed: somebody has seen to what was before, there or on the whole fleet."""
        async with self._store.read() as connection:
            found = {
                scope: await alert_book.calm_from(connection, kind, Group(build.manifest_sha256, scope)) or 0.0
                for scope in scopes
            }
        return {scope: max(at, found[FLEET]) for scope, at in found.items()}

    async def _read(self, build: Build, device: str) -> dict[str, list[Row]]:
        async with self._store.read() as connection:
            return {output: await _rows(connection, build.manifest_sha256, output, device) for output in build.outputs}

    async def _weigh_kind(
        self, build: Build, kind: LabelKind, device: str, rows: dict[str, list[Row]], promise: Promise
    ) -> bool:
        """Whether there is an alarm."""
        group = Group(build.manifest_sha256, device)
        found = await asyncio.to_thread(weigh, kind, build, rows, promise)
        if found is not None:
            await self._alerts.raise_alert(kind, build.module, group, found, build.version)
            return True
        async with self._store.read() as connection:
            alert = await alert_book.find_open(connection, kind, group)
        if alert is not None and is_calm(kind, build, rows, alert.evidence):
            await self._alerts.calm(kind, group, "calm", "the labels that came since are as they should be")
        return False

    async def _build(self, manifest: str) -> Build | None:
        known = (await self._known.of([manifest]))[manifest]
        async with self._store.read() as connection:
            query = select(modules.c.name, modules.c.version).where(modules.c.manifest_sha256 == manifest)
            row = (await connection.execute(query.limit(1))).one_or_none()
            if row is None:
                return None
            of = select(outcomes.c.output).where(outcomes.c.manifest_sha256 == manifest).distinct()
            found = await connection.execute(of.order_by(outcomes.c.output).limit(MAX_OUTPUTS))
            outputs = tuple(found.scalars())
            bounds = tuple(await bounds_of(connection, row.name))
        return Build(row.name, row.version, manifest, outputs, known, bounds)

    async def _devices(self, build: Build) -> list[str]:
        """Those with enough labels lately, the most first, and those with an alert."""
        query = (
            select(outcomes.c.device)
            .where(outcomes.c.manifest_sha256 == build.manifest_sha256, outcomes.c.at > self._clock() - RECENT_S)
            .group_by(outcomes.c.device)
            .having(func.count() >= LEAST_ROWS)
            .order_by(func.count().desc(), outcomes.c.device)
            .limit(MAX_DEVICES)
        )
        async with self._store.read() as connection:
            found = list((await connection.execute(query)).scalars())
            live = await alert_book.open_groups(connection, KINDS)
        mine = {group.device for group in live if group.manifest_sha256 == build.manifest_sha256}
        return found + sorted(mine - set(found) - {FLEET})

    async def _streams(self) -> int:
        """How many streams of errors are watched: each output of each build, on the fleet and on some devices."""
        query = (
            select(outcomes.c.manifest_sha256, outcomes.c.output, func.count(outcomes.c.device.distinct()))
            .where(outcomes.c.at > self._clock() - RECENT_S)
            .group_by(outcomes.c.manifest_sha256, outcomes.c.output)
        )
        async with self._store.read() as connection:
            return sum(1 + min(row[2], MAX_DEVICES) for row in await connection.execute(query))


async def _rows(connection: AsyncConnection, manifest: str, output: str, device: str) -> list[Row]:
    """The latest, in the order of the predictions, whenever their labels came."""
    of: list[ColumnElement[Any]] = [outcomes.c.manifest_sha256 == manifest, outcomes.c.output == output]
    if device != FLEET:
        of.append(outcomes.c.device == device)
    columns = (outcomes.c.at, outcomes.c.device, outcomes.c.error, outcomes.c.weight)
    order = (outcomes.c.at.desc(), outcomes.c.prediction_id.desc(), outcomes.c.device.desc())
    rows = await connection.execute(select(*columns).where(*of).order_by(*order).limit(MAX_ROWS))
    return [Row(*row) for row in reversed(rows.all())]


def _weighable(stream: Sequence[Row], since: Mapping[str, float], alarmed: Collection[str]) -> list[Row]:
    """Without devices that have alerts of their own, and without what somebody has seen to."""
    everywhere = since[FLEET]
    return [row for row in stream if row.device not in alarmed and row.at >= since.get(row.device, everywhere)]
