"""How good a module is by its labels, over all that it predicted: put together for `api.labels`.

One report per output: figures over all, their parts (by device, site, day, version, ...), confusions, calibration, and
what is estimated where there are no labels. Reads sums (`sums`), computes nothing itself (`figures`, `estimate`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Row, Select, exists, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.errors import BadRequest, NotFound
from cloud_hub.labels import confidences, figures, sums
from cloud_hub.labels.estimate import Estimate, NoEstimate, estimate, stated
from cloud_hub.labels.figures import ConfusionCell
from cloud_hub.labels.join import DAY_S
from cloud_hub.labels.known import KnownOutputs
from cloud_hub.labels.match import Known
from cloud_hub.labels.report import QualityQuery, QualityReport, figures_of
from cloud_hub.labels.sums import Part, Slice
from cloud_hub.monitoring.references import References
from cloud_hub.monitoring.scopes import FLEET, groups_of
from cloud_hub.monitoring.traits import Traits
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules, outcomes

MAX_OUTPUTS: Final = 64
MAX_PARTS: Final = 500
MAX_GROUPS: Final = 20_000  # devices or days that are folded into parts
MAX_OUTCOMES: Final = 500_000  # of one build: with more, the span begins later
DEFAULT_DAYS: Final = 90.0
RETIRED: Final = "(retired)"
UNKNOWN: Final = "(unknown)"


@dataclass(frozen=True)
class _Build:
    version: int
    profile: str
    manifest_sha256: str


@dataclass(frozen=True)
class _Asked:
    """What is asked, with the builds and outputs that it is about."""

    query: QualityQuery
    builds: dict[str, _Build]
    known: Known
    of: Slice


class Quality:
    """Answers questions, changes nothing."""

    def __init__(self, store: Store, known: KnownOutputs, references: References, clock: Clock) -> None:
        self._store, self._known, self._references, self._clock = store, known, references, clock
        self._traits = Traits()

    async def reports(self, query: QualityQuery, devices: Collection[str] | None = None) -> list[QualityReport]:
        """One per output; with `devices` only of these. Raises NotFound `module-not-found`, BadRequest `time-invalid`.

        An output of which there is no label has a report without rows, where it is asked for by name or is the main
        one: the estimate stands in it.
        """
        builds = await self._builds(query)
        known = await self._known.of([build.manifest_sha256 for build in builds])
        manifests = tuple(build.manifest_sha256 for build in builds)
        since, until = _span(query, self._clock())
        mine = {query.device} if query.device else devices
        async with self._store.read() as connection:
            found = await sums.outputs_of(connection, manifests)
        main = next((known[sha256].main for sha256 in manifests), "")
        names = [query.output] if query.output else found or [main]
        by_digest = {build.manifest_sha256: build for build in builds}
        slices = [
            Slice(manifests, name, since, until, mine, kind=_kind(known, manifests, name))
            for name in names[:MAX_OUTPUTS]
        ]
        return [await self._report(_Asked(query, by_digest, known, of)) for of in slices]

    async def _report(self, asked: _Asked) -> QualityReport:
        async with self._store.read() as connection:
            asked = replace(asked, of=replace(asked.of, since=await sums.first_of(connection, asked.of, MAX_OUTCOMES)))
            total = next(iter(await sums.parts(connection, asked.of, (), 1)), None)
            asked, total = _weighed(asked, total)
            of = asked.of
            cells = _cells(await sums.pairs(connection, of), asked) if of.kind == "class" else []
            bins = await sums.bins(connection, of) if of.kind == "class" else []
            named, more = await self._parts(connection, asked)
            distance = await _distance(connection, of, total)
            guess = await self._estimate(connection, asked)
        return QualityReport(
            module=asked.query.module,
            versions=tuple(sorted({build.version for build in asked.builds.values()})),
            output=of.output,
            kind=of.kind,
            since=of.since,
            until=of.until,
            device=asked.query.device,
            total=figures_of("all", of.kind, total, figures.class_shares(cells), distance),
            by=asked.query.by,
            parts=tuple(figures_of(name, of.kind, part) for name, part in named[:MAX_PARTS]),
            more_parts=more or len(named) > MAX_PARTS,
            classes=figures.class_figures(cells),
            confusion=figures.confusions(cells),
            calibration=figures.calibration(bins),
            estimate=guess,
        )

    async def _builds(self, query: QualityQuery) -> list[_Build]:
        """Of the version that is asked for, the newest first."""
        statement = select(modules.c.version, modules.c.profile, modules.c.manifest_sha256)
        statement = statement.where(modules.c.name == query.module)
        if query.version:
            statement = statement.where(modules.c.version == query.version)
        async with self._store.read() as connection:
            rows = await connection.execute(statement.order_by(modules.c.version.desc(), modules.c.profile))
            found = [_Build(*row) for row in rows]
            if not found:
                what = f"{query.module} version {query.version}" if query.version else query.module
                raise NotFound(
                    "module-not-found", f"no module {what} on this hub", name=query.module, version=query.version
                )
            if query.version or query.by == "version":
                return found
            every = [build.manifest_sha256 for build in found]
            labelled = set((await connection.execute(_labelled(every))).scalars())
        newest = max((b.version for b in found if b.manifest_sha256 in labelled), default=found[0].version)
        return [build for build in found if build.version == newest]

    async def _parts(self, connection: AsyncConnection, asked: _Asked) -> tuple[list[tuple[str, Part]], bool]:
        """By name, those with most rows first; days in their order."""
        by = asked.query.by
        if not by:
            return [], False
        column = {"device": outcomes.c.device, "day": outcomes.c.day}.get(by)
        if by in ("version", "profile"):
            column = outcomes.c.manifest_sha256
        found = await sums.parts(connection, asked.of, (outcomes.c.device if column is None else column,), MAX_GROUPS)
        if column is None:
            names = await self._groups(connection, [part.key[0] for part in found], by)
        else:
            names = {part.key[0]: _name(part.key[0], asked) for part in found}
        folded: dict[str, Part] = {}
        for part in found:
            name = names[part.key[0]]
            folded[name] = folded[name] + part if name in folded else part
        ordered = sorted(folded.items(), key=lambda item: item[0] if by == "day" else (-item[1].error.rows, item[0]))
        return ordered, len(found) == MAX_GROUPS

    async def _groups(self, connection: AsyncConnection, devices: Sequence[str], by: str) -> dict[str, str]:
        """What each device has for that tag, profile, agent or os."""
        traits = await self._traits.of(connection, devices)
        names: dict[str, str] = {}
        for device in devices:
            found = traits.get(device)
            group = "" if found is None else next(iter(groups_of(found, (by,))), "")
            names[device] = group.partition("=")[2] or (RETIRED if device in traits and found is None else UNKNOWN)
        return names

    async def _estimate(self, connection: AsyncConnection, asked: _Asked) -> Estimate | NoEstimate | None:
        of, query = asked.of, asked.query
        outputs = [asked.known[sha256].by_name.get(of.output) for sha256 in of.manifests]
        output = next((one for one in outputs if one is not None), None)
        if output is None or output.kind == "number":
            return None
        if of.devices is not None and not query.device:
            return NoEstimate("your scope is not every device: name a device")
        if not output.edges:
            return NoEstimate("its confidences are not counted: it was built without a reference of its answers")
        if len({(one.edges, one.classes) for one in outputs if one is not None}) > 1:
            return NoEstimate("the builds differ in their reference: name a version, or a device of one profile")
        watched = await self._references.get(of.manifests[0])
        cells = None if watched is None else confidences.cells_of(watched.layout, output)
        if cells is None:
            return NoEstimate("its confidences are not counted: it was built without a reference of its answers")
        scope = query.device or FLEET
        counted = await confidences.counted(connection, of.manifests, scope, cells, of.since, of.until)
        labelled = await sums.cells(connection, of)
        prior = stated(output.edges, len(output.classes))
        return await asyncio.to_thread(estimate, counted, labelled, prior)


def _weighed(asked: _Asked, total: Part | None) -> tuple[_Asked, Part | None]:
    """With the largest weight that a row of the slice might have had.

    Where only rows are labelled that were taken for a reason, those that stand for all the others are still to come.
    """
    if total is None:
        return asked, None
    heaviest = total.error.largest
    if not total.plain:
        heaviest = max([heaviest, *(outputs.heaviest for outputs in asked.known.values())])
    return replace(asked, of=replace(asked.of, heaviest=heaviest)), total.with_largest(heaviest)


async def _distance(connection: AsyncConnection, of: Slice, total: Part | None) -> tuple[float, float] | None:
    if total is None or of.kind != "number":
        return None
    return await sums.distance(connection, of, total.truth)


def _kind(known: Known, manifests: Sequence[str], name: str) -> str:
    """What the newest build that has the output says it is."""
    outputs = (known[sha256].by_name.get(name) for sha256 in manifests)
    return next((output.kind for output in outputs if output is not None), "class")


def _cells(rows: Sequence[Row[Any]], asked: _Asked) -> list[ConfusionCell]:
    """By the names of the classes, which builds may number differently."""
    folded: dict[tuple[str, str], ConfusionCell] = {}
    for row in rows:
        output = asked.known[row.manifest_sha256].by_name.get(asked.of.output)
        classes = output.classes if output is not None else ()
        truth, predicted = (_class(classes, int(place)) for place in (row.truth, row.predicted))
        before = folded.get((truth, predicted), ConfusionCell(truth, predicted, 0, 0.0, 0.0, asked.of.heaviest))
        folded[truth, predicted] = ConfusionCell(
            truth,
            predicted,
            before.rows + row.rows,
            before.w + row.w,
            before.w2 + row.w2,
            max(before.largest, row.largest),
        )
    return list(folded.values())


def _class(classes: Sequence[str], place: int) -> str:
    return classes[place] if 0 <= place < len(classes) else figures.OTHER


def _name(key: object, asked: _Asked) -> str:
    """A group as people call it."""
    if asked.query.by == "day":
        return datetime.fromtimestamp(int(str(key)) * DAY_S, UTC).date().isoformat()
    if asked.query.by == "device":
        return str(key)
    build = asked.builds[str(key)]
    return str(build.version) if asked.query.by == "version" else build.profile


def _labelled(manifests: Sequence[str]) -> Select[Any]:
    """Those of them that have outcomes; an index answers it for each."""
    of = select(modules.c.manifest_sha256).where(modules.c.manifest_sha256.in_(manifests))
    return of.where(exists().where(outcomes.c.manifest_sha256 == modules.c.manifest_sha256))


def _span(query: QualityQuery, now: float) -> tuple[float, float]:
    """Raises BadRequest `time-invalid`."""
    until = query.until or now + DAY_S
    since = query.since or until - DEFAULT_DAYS * DAY_S
    if not 0 <= since < until < 1e11:
        raise BadRequest("time-invalid", f"expected a time before the other, got {query.since} to {query.until}")
    return since, until
