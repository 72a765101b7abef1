"""Versions against each other, for whoever asks: the API, a person, a rollout's gate. Decides nothing, stores nothing.

Made by `service`; reads the looks of devices and the labelled predictions that are there at that moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.arms.compare import Comparison, compare, verdict_of
from cloud_hub.arms.designs import Arm
from cloud_hub.arms.margins import Margins
from cloud_hub.arms.reading import Period, add_quality, chosen, devices_of, first_look, read_arm
from cloud_hub.arms.sequential import LEAST_DEVICES
from cloud_hub.bounds import AnyVersion
from cloud_hub.builds import builds_of
from cloud_hub.clock import Clock
from cloud_hub.errors import BadRequest, NotFound
from cloud_hub.monitoring.references import References
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules

# Where no time is asked for: looks before the candidate's first, for what devices did until then, and looks in all.
HISTORY_LOOKS: Final = 168
MOST_LOOKS: Final = 504


class Question(msgspec.Struct, frozen=True):
    """Which versions; `baseline` 0 is the newest one below the candidate. `until` 0 is now, `since` 0 some time before
    the candidate's first look, or the last MOST_LOOKS looks.

    Without `devices` all of them; `alpha` is the chance of any wrong word, at any time.
    """

    module: str
    candidate: int
    baseline: AnyVersion = 0
    devices: frozenset[str] | None = None
    since: float = 0.0
    until: float = 0.0
    margins: Margins = Margins()
    alpha: float = 0.05


class Comparisons:
    """Reads and compares."""

    def __init__(self, store: Store, references: References, clock: Clock, look_s: float) -> None:
        self._store = store
        self._references = references
        self._clock = clock
        self._look_s = look_s

    async def ask(self, question: Question) -> Comparison:
        """Raises NotFound `module-not-found` for a version that is not here, BadRequest `arms-alike`."""
        async with self._store.read() as connection:
            versions = await self._versions(connection, question)
            period, candidate, baseline = await self._read(connection, question, versions)
        margins, alpha = question.margins, question.alpha
        design, controlled, found = await asyncio.to_thread(compare, candidate, baseline, margins, alpha)
        devices = min((difference.devices for difference in found), default=0)
        return Comparison(
            module=question.module,
            candidate=versions[0],
            baseline=versions[1],
            design=design,
            verdict=verdict_of(found),
            generalises=devices >= LEAST_DEVICES,
            controlled=controlled,
            candidate_devices=len(candidate.devices),
            baseline_devices=len(baseline.devices),
            candidate_rows=candidate.rows,
            baseline_rows=baseline.rows,
            since=period.since or None,
            until=period.until,
            alpha=alpha,
            differences=found,
        )

    async def _versions(self, connection: AsyncConnection, question: Question) -> tuple[int, int]:
        query = select(modules.c.version).where(modules.c.name == question.module).distinct()
        known = set((await connection.execute(query)).scalars())
        below = [version for version in known if version < question.candidate]
        baseline = question.baseline or max(below, default=0)
        for version in (question.candidate, baseline):
            if version not in known:
                what = f"version {version}" if version else f"version before {question.candidate}"
                raise NotFound(
                    "module-not-found",
                    f"no {what} of module {question.module[:80]} on this hub",
                    name=question.module[:80],
                    version=version,
                )
        if baseline == question.candidate:
            raise BadRequest("arms-alike", f"expected two versions of {question.module}, got {baseline} twice")
        return question.candidate, baseline

    async def _read(
        self, connection: AsyncConnection, question: Question, versions: tuple[int, int]
    ) -> tuple[Period, Arm, Arm]:
        new, old = [await builds_of(connection, question.module, version) for version in versions]
        period = await self._period(connection, question, new)
        candidates = _asked(question, await devices_of(connection, new, period))
        others = _asked(question, await devices_of(connection, old, period))
        # Those that had both tell most; the others are the control, or the other arm.
        both = candidates & others
        parts = 2 if both else 1
        ids = chosen(candidates, period), [*chosen(both, period, parts), *chosen(others - both, period, parts)]
        arms = [
            await read_arm(connection, self._references, builds, some, period)
            for builds, some in zip((new, old), ids, strict=True)
        ]
        await add_quality(
            connection,
            {"candidate": (arms[0], new), "baseline": (arms[1], old)},
            sorted({*ids[0], *ids[1]}),
            period,
        )
        return period, arms[0], arms[1]

    async def _period(self, connection: AsyncConnection, question: Question, builds: Collection[str]) -> Period:
        until = question.until or self._clock() + self._look_s
        if question.since:
            return Period(question.since, until, self._look_s)
        first = await first_look(connection, builds)
        since = (until if first is None else first) - HISTORY_LOOKS * self._look_s
        return Period(max(0.0, since, until - MOST_LOOKS * self._look_s), until, self._look_s)


def _asked(question: Question, devices: set[str]) -> set[str]:
    return devices if question.devices is None else devices & question.devices
