"""What the counts of one scope say at this moment, and whether a narrower or another scope says it better. Reads only.

Used by `alerts`, which writes. Within one run every scope is decided once, so that a device asks what its fleet says
without weighing the fleet again for each device.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.monitoring import alert_book, looks, problems, spread
from cloud_hub.monitoring.alert_book import Alert, AlertEvidence, AlertKind, ProblemCount
from cloud_hub.monitoring.evidence import MAX_LOOKS
from cloud_hub.monitoring.finding import Finding, next_evidence, opening
from cloud_hub.monitoring.looks import FLEET, Group
from cloud_hub.monitoring.population import MAX_SUSPECTS, Population, heaviest, heavy_in, population
from cloud_hub.monitoring.readings import Reading, read_scopes
from cloud_hub.monitoring.references import References, Watched
from cloud_hub.monitoring.reports import Reports, WatchSettings
from cloud_hub.monitoring.scopes import is_device, is_group
from cloud_hub.monitoring.traits import Traits
from cloud_hub.monitoring.verdict import Kind, LookSeries
from cloud_hub.store.engine import Store

KINDS: Final[tuple[Kind, ...]] = ("drift", "quality")


@dataclass(frozen=True)
class Decision:
    """`finding` without what others explain; `evidence` to open an alert with, None where there is nothing to say.

    `alert` is the live one, if there is one.
    """

    watched: Watched | None
    alert: Alert | None
    finding: Finding
    behind: spread.Spread | None
    evidence: AlertEvidence | None

    def again(self, old: AlertEvidence) -> AlertEvidence | None:
        """What an open alert says now; with a `resolution` it is to be resolved. None leaves it as it is."""
        found = next_evidence(old, self.finding)
        if found is None or found.resolution:
            return found
        shown = dressed(found, self.behind)
        causes = old.causes if found.since == old.since else ()
        if self.behind is None:
            shown = msgspec.structs.replace(shown, devices=old.devices, affected=old.affected, common=old.common)
        return msgspec.structs.replace(shown, causes=causes)


@dataclass(frozen=True)
class _Question:
    """A decision but for its evidence, which is worked out in a thread."""

    watched: Watched | None
    alert: Alert | None
    finding: Finding
    behind: spread.Spread | None

    def decided(self, evidence: AlertEvidence | None) -> Decision:
        shown = None if evidence is None else dressed(evidence, self.behind)
        return Decision(self.watched, self.alert, self.finding, self.behind, shown)


class Deciding:
    """`fresh` begins a run."""

    def __init__(
        self,
        store: Store,
        references: References,
        reports: Reports,
        clock: Clock,
        settings: WatchSettings,
        group_by: Sequence[str],
    ) -> None:
        self._store = store
        self._references = references
        self._reports = reports
        self._clock = clock
        self._settings = settings
        self._group_by = tuple(group_by)
        self._traits = Traits()
        self._decided: dict[tuple[Group, Kind], Decision] = {}
        self._readings: dict[Group, Reading] = {}
        self._alerts: dict[Group, dict[AlertKind, Alert]] = {}
        self._people: dict[str, tuple[float, Population]] = {}
        self._heavy: dict[str, list[str]] = {}

    def fresh(self) -> None:
        """Forget what was decided, and populations that are older than a pause."""
        self._decided.clear()
        self._readings.clear()
        self._alerts.clear()
        self._heavy.clear()
        oldest = self._clock() - self._settings.pause_s
        self._people = {sha256: kept for sha256, kept in self._people.items() if kept[0] > oldest}

    async def decide(self, group: Group, kind: Kind) -> Decision:
        """Once per run."""
        if (group, kind) not in self._decided:
            await self._decide([group], (kind,))
        return self._decided[group, kind]

    async def decide_devices(self, groups: Sequence[Group]) -> None:
        """As `decide` of each of these devices for drift and quality, with few questions to the database for all."""
        await self._decide(groups, KINDS)

    def forget(self, groups: Collection[Group]) -> None:
        """What was read of these, which nobody asks for again: of a whole fleet it would be much."""
        for group in groups:
            self._readings.pop(group, None)
            self._alerts.pop(group, None)
            for kind in KINDS:
                self._decided.pop((group, kind), None)

    async def wider(self, group: Group) -> list[Group]:
        """The scopes that hold all of this one's devices, the widest first."""
        async with self._store.read() as connection:
            return await self._wider(connection, group)

    async def inside(self, group: Group) -> set[Group]:
        """The scopes all of whose devices are this one's: what an alert of it may speak for."""
        async with self._store.read() as connection:
            people = await self._population(connection, group.manifest_sha256)
        names = set(people.members(group.device))
        if group.device == FLEET:
            names |= {name for device in people.rows for name in people.groups_of(device)}
        return {Group(group.manifest_sha256, name) for name in names}

    async def _decide(self, groups: Sequence[Group], kinds: Sequence[Kind]) -> None:
        builds = {group.manifest_sha256 for group in groups}
        watched = {sha256: await self._references.get(sha256) if sha256 else None for sha256 in builds}
        questions: dict[tuple[Group, Kind], _Question] = {}
        async with self._store.read() as connection:
            await self._read(connection, groups, watched)
            for group in groups:
                for kind in kinds:
                    questions[group, kind] = await self._question(connection, group, kind)
        findings = [question.finding for question in questions.values()]
        found = await asyncio.to_thread(lambda: [opening(finding) for finding in findings])
        for (key, question), evidence in zip(questions.items(), found, strict=True):
            self._decided[key] = question.decided(evidence)

    async def _read(
        self, connection: AsyncConnection, groups: Sequence[Group], watched: Mapping[str, Watched | None]
    ) -> None:
        for sha256, build in watched.items():
            scopes = [g.device for g in groups if g.manifest_sha256 == sha256 and g not in self._readings]
            if scopes:
                bases = self._reports.bases
                self._readings |= await read_scopes(connection, bases, build, sha256, scopes, self._recent)
        await self._read_alerts(connection, groups)

    async def _read_alerts(self, connection: AsyncConnection, groups: Collection[Group]) -> None:
        new = [group for group in groups if group not in self._alerts]
        if new:
            found = await alert_book.newest_of(connection, new)
            self._alerts.update({group: found.get(group, {}) for group in new})

    async def _question(self, connection: AsyncConnection, group: Group, kind: Kind) -> _Question:
        reading = self._readings[group]
        finding = await self._finding(connection, group, reading, kind)
        behind = None
        if not is_device(group.device) and len(finding.looks):
            finding, behind = await self._of_many(connection, group, finding)
        newest = self._alerts[group].get(kind)
        alert = newest if newest is not None and newest.live else None
        return _Question(reading.watched, alert, finding, behind)

    async def _wider(self, connection: AsyncConnection, group: Group) -> list[Group]:
        if not group.manifest_sha256 or group.device == FLEET:
            return []
        fleet = Group(group.manifest_sha256, FLEET)
        if is_group(group.device):
            return [fleet]
        people = await self._population(connection, group.manifest_sha256)
        return [fleet, *(Group(group.manifest_sha256, name) for name in people.groups_of(group.device))]

    async def _calm_from(self, connection: AsyncConnection, group: Group, kind: Kind) -> float:
        """Where the latest calm began, of this scope or of one that holds it: looks before are not weighed again."""
        scopes = (group, *await self._wider(connection, group))
        await self._read_alerts(connection, scopes)
        newest = [self._alerts[scope].get(kind) for scope in scopes]
        calm = [alert.evidence.calm_from for alert in newest if alert is not None]
        return max((since for since in calm if since is not None), default=-math.inf)

    async def _finding(self, connection: AsyncConnection, group: Group, reading: Reading, kind: Kind) -> Finding:
        rate = await self._reports.alarm_rate(connection)
        calm = await self._calm_from(connection, group, kind)
        series = reading.looks.since(calm)
        closed = sum(start <= self._clock() - self._settings.look_s for start in series.starts)
        calm_looks, reference = self._settings.calm_looks, reading.basis.reference
        finding = Finding(kind, reading.basis.layout(series), series, closed, rate, calm_looks, (), reference)
        if kind != "quality" or not is_device(group.device):
            return finding
        return replace(finding, problems=await self._problems(connection, group, reading, finding))

    async def _problems(
        self, connection: AsyncConnection, group: Group, reading: Reading, finding: Finding
    ) -> tuple[ProblemCount, ...]:
        found = reading.problems
        if int(finding.looks.rows.max(initial=0)) >= problems.FLOOD_ROWS:
            recent = self._recent
            found += problems.flood(finding.looks, recent, await self._usual(connection, group, recent))
        return found

    @property
    def _recent(self) -> float:
        """Since when problems are of now."""
        return self._clock() - self._settings.calm_looks * self._settings.look_s

    async def _usual(self, connection: AsyncConnection, group: Group, since: float) -> float:
        """Rows that another device sends per look."""
        people = await self._population(connection, group.manifest_sha256)
        fleet = await looks.rows_since(connection, Group(group.manifest_sha256, FLEET), since)
        own = await looks.rows_since(connection, group, since)
        return (fleet - own) / max(len(people.rows) - 1, 1) / self._settings.calm_looks

    async def _of_many(
        self, connection: AsyncConnection, group: Group, finding: Finding
    ) -> tuple[Finding, spread.Spread | None]:
        people = await self._population(connection, group.manifest_sha256)
        members = people.members(group.device)
        if len(members) < 2 or (is_group(group.device) and len(members) == len(people.rows)):
            # What a single device or the whole fleet says is said by the device or the fleet.
            return replace(finding, looks=LookSeries.empty(finding.layout), closed=0), None
        heavy = heavy_in(people, group.device, await self._newest(connection, group.manifest_sha256, people))
        sent = finding.looks
        finding = replace(finding, looks=await spread.balanced(connection, finding, group, people, heavy))
        if await asyncio.to_thread(lambda: finding.window) < 0 or await self._is_said(group, finding):
            return finding, None
        live = await alert_book.live_of(connection, finding.kind, group.manifest_sha256, MAX_SUSPECTS)
        suspects = [alert.group.device for alert in live if is_device(alert.group.device)]
        behind = await spread.look_behind(connection, finding, sent, group, people, suspects, heavy)
        return replace(finding, looks=behind.rest), behind

    async def _is_said(self, group: Group, finding: Finding) -> bool:
        """Whether the fleet says the same: then nobody needs to know who is behind each of its groups."""
        if group.device == FLEET:
            return False
        fleet = await self.decide(Group(group.manifest_sha256, FLEET), finding.kind)
        own = await asyncio.to_thread(opening, finding)
        said = [e for e in (fleet.evidence, fleet.alert.evidence if fleet.alert else None) if e is not None]
        return own is not None and any(says(evidence, own) for evidence in said)

    async def _newest(self, connection: AsyncConnection, manifest_sha256: str, people: Population) -> list[str]:
        if manifest_sha256 not in self._heavy:
            self._heavy[manifest_sha256] = await heaviest(connection, manifest_sha256, people)
        return self._heavy[manifest_sha256]

    async def _population(self, connection: AsyncConnection, manifest_sha256: str) -> Population:
        if manifest_sha256 not in self._people:
            now = self._clock()
            since = now - MAX_LOOKS * self._settings.look_s
            people = await population(connection, self._traits, self._group_by, manifest_sha256, since)
            self._people[manifest_sha256] = (now, people)
        return self._people[manifest_sha256][1]


def says(wide: AlertEvidence, narrow: AlertEvidence) -> bool:
    """Whether the wider alert speaks of what is strongest in the narrower one, against the same reference."""
    if narrow.problems or not narrow.names or narrow.reference != wide.reference:
        return False
    return narrow.names[0] in wide.names


def dressed(evidence: AlertEvidence, behind: spread.Spread | None) -> AlertEvidence:
    """With who is behind it."""
    if behind is None:
        return evidence
    return msgspec.structs.replace(
        evidence, devices=behind.devices, affected=len(behind.affected), common=behind.common
    )
