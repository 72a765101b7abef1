"""Drift as it stands now, for whoever asks: the looks of a group, weighed. Opens no alerts.

Used by `alerts` (which decides) and by `api.monitoring` (which shows).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.errors import Conflict, NotFound
from cloud_hub.monitoring import alert_book, looks
from cloud_hub.monitoring.bases import Bases
from cloud_hub.monitoring.evidence import MAX_LOOKS, AlarmRate
from cloud_hub.monitoring.looks import FLEET, Group, LookSummary
from cloud_hub.monitoring.reference import Reference
from cloud_hub.monitoring.references import References, Watched
from cloud_hub.monitoring.scopes import is_device
from cloud_hub.monitoring.verdict import FeatureEvidence, Kind, LookSeries, RateEvidence, group_threshold, judge
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules

EVALUATIONS_PER_LOOK: Final = 8  # a look that is still open is weighed too, so that a change is seen early
MAX_SUMMARIES: Final = 1000


@dataclass(frozen=True)
class WatchSettings:
    """`look_s` is the length of a look; at most one false alarm in `false_alarm_months` over everything watched.

    An alert is resolved after `calm_looks` looks with less than half the evidence that opens one.
    """

    look_s: float
    false_alarm_months: float
    calm_looks: int = 3

    @property
    def pause_s(self) -> float:
        """The shortest time between two evaluations of a group."""
        return self.look_s / EVALUATIONS_PER_LOOK


class DriftReport(msgspec.Struct, frozen=True):
    """Evidence for one build of a module on one device, or on the fleet where `device` is empty.

    `alarm` is true when any feature or rate has evidence above `threshold` (nats) for a change that matters. `since`
    and `until` bound the looks that were weighed; `rows` are the predictions in them.
    `reference` is what they were compared with. A group of devices stands in `device` as "key=value".
    """

    module: str
    version: int
    manifest_sha256: str
    device: str
    looks: int
    rows: int
    since: float | None
    until: float | None
    threshold: float
    alarm: bool
    features: tuple[FeatureEvidence, ...]
    rates: tuple[RateEvidence, ...]
    reference: str = "training"


class Reports:
    """Reads looks and weighs them."""

    def __init__(self, store: Store, references: References, clock: Clock, settings: WatchSettings) -> None:
        self._store = store
        self._references = references
        self._clock = clock
        self._settings = settings
        self.bases = Bases(references)
        self._groups = (-math.inf, 1)  # counted when, how many

    async def drift(self, manifest_sha256: str, device: str = "", reference: Reference | None = None) -> DriftReport:
        """Of a device, a group ("site=north") or else the fleet; against what is set for it, or what is chosen here.

        Raises NotFound `module-not-found` for a manifest that is not of this hub, Conflict `reference-empty` where what
        is chosen here has nothing to compare with.
        """
        watched = await self._references.get(manifest_sha256)
        if watched is None:
            raise NotFound("module-not-found", f"no module with manifest {manifest_sha256}", manifest=manifest_sha256)
        group = Group(manifest_sha256, device or FLEET)
        async with self._store.read() as connection:
            basis = await self.bases.basis(connection, watched, group, reference)
            found = await self.series(connection, watched, group, "drift", basis.since)
            if reference is not None and len(found):
                _check_compared(basis.reference, reference, watched, group)
            rows = await looks.rows_since(connection, group, found.starts[0]) if len(found) else 0
            rate = await self.alarm_rate(connection)
        verdict = await asyncio.to_thread(judge, basis.layout(found), found, rate)
        return DriftReport(
            module=watched.module,
            version=watched.version,
            manifest_sha256=manifest_sha256,
            device=device,
            looks=len(found),
            rows=rows,
            since=found.starts[0] if len(found) else None,
            until=found.starts[-1] + self._settings.look_s if len(found) else None,
            threshold=group_threshold(watched.layout, rate),
            alarm=bool(verdict.drifted or verdict.poor),
            features=verdict.drift,
            rates=verdict.rates,
            reference=basis.reference,
        )

    async def drift_of(
        self, module: str, version: int = 0, device: str = "", reference: Reference | None = None
    ) -> list[DriftReport]:
        """One report per build (device profile) of a version: the given one, else the newest that has been running.

        Raises NotFound `module-not-found`.
        """
        builds = await self._builds(module, version)
        if not builds:
            what = f"{module} version {version}" if version else module
            raise NotFound("module-not-found", f"no module {what} on this hub", name=module, version=version)
        newest: list[DriftReport] = []
        for number in sorted({number for number, _ in builds}, reverse=True):
            reports = [await self.drift(sha256, device, reference) for at, sha256 in builds if at == number]
            newest = newest or reports
            if running := [report for report in reports if report.looks]:
                return running
        return newest

    async def looks(
        self,
        module: str = "",
        version: int = 0,
        device: str = "",
        since: float = 0.0,
        limit: int = 100,
        devices: Collection[str] | None = None,
        after: tuple[float, str, str] | None = None,
    ) -> list[LookSummary]:
        """Newest first, behind the start, device and manifest of `after`.

        Without a device those of the fleet, or of each of `devices` where given.
        """
        only = device if devices is not None else device or FLEET
        manifests = {sha256 for _, sha256 in await self._builds(module, version)} if version else None
        async with self._store.read() as connection:
            most = min(limit, MAX_SUMMARIES + 1)
            return await looks.summaries(connection, module, manifests, only, since, most, devices, after)

    async def series(
        self, connection: AsyncConnection, watched: Watched, group: Group, kind: Kind, since: float | None = None
    ) -> LookSeries:
        """The looks that count for the group: the latest, but none from before `since` or before it was last found
        calm again.
        """
        calm = await alert_book.calm_from(connection, kind, group)
        after = max((start for start in (calm, since) if start is not None), default=-math.inf)
        return await looks.series(connection, watched.layout, group, after)

    async def alarm_rate(self, connection: AsyncConnection) -> AlarmRate:
        """The promise, shared among all groups with recent looks; they are counted once per look."""
        settings = self._settings
        now = self._clock()
        counted_at, groups = self._groups
        if not counted_at <= now < counted_at + settings.look_s:
            groups = await looks.count_groups(connection, now - MAX_LOOKS * settings.look_s)
            self._groups = (now, groups)
        return AlarmRate(settings.false_alarm_months, settings.look_s, groups)

    async def _builds(self, module: str, version: int) -> list[tuple[int, str]]:
        query = select(modules.c.version, modules.c.manifest_sha256).where(modules.c.name == module)
        if version:
            query = query.where(modules.c.version == version)
        async with self._store.read() as connection:
            return [(row.version, row.manifest_sha256) for row in await connection.execute(query)]


def _check_compared(used: str, reference: Reference, watched: Watched, group: Group) -> None:
    """Raises Conflict `reference-empty`: whoever chose one must not read another's figures as its."""
    if used == str(reference):
        return
    if reference.kind == "fleet":
        why = "too few others were counted" if is_device(group.device) else "it is what one device is compared with"
    elif reference.kind == "version" and reference.version == watched.version:
        why = "a version is not compared with itself"
    else:
        why = "nothing was counted there in cells that fit"
    raise Conflict("reference-empty", f"{watched.module}:{watched.version} on {group.scope}: {reference}: {why}")
