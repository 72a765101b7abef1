"""Both versions' looks and labelled predictions, read into arms. Bounded: devices beyond what may be read are left out.

Which devices are read is decided by a hash of their ids, so that nobody chooses them. Used by `comparisons`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.arms.designs import Arm
from cloud_hub.arms.measure import QUALITY, Measure, measures
from cloud_hub.monitoring.looks import look_start
from cloud_hub.monitoring.references import References
from cloud_hub.monitoring.scopes import is_device
from cloud_hub.monitoring.tallies import tally_of
from cloud_hub.store.engine import among
from cloud_hub.store.tables import look_scopes, looks, outcomes
from modules.sampling import ASKED

MAX_LOOKS: Final = 40_000  # of one arm
MAX_OUTCOMES: Final = 50_000  # of one arm, the newest
BATCH: Final = 500


@dataclass(frozen=True)
class Period:
    """From `since` on, before `until`, in looks of `look_s` seconds."""

    since: float
    until: float
    look_s: float

    @property
    def looks(self) -> int:
        return max(1, round(min((self.until - self.since) / self.look_s, float(MAX_LOOKS))))


async def devices_of(connection: AsyncConnection, manifests: Collection[str], period: Period) -> set[str]:
    """Devices that had looks of one of the builds in the period."""
    query = select(look_scopes.c.device).where(
        look_scopes.c.manifest_sha256.in_(sorted(manifests)),
        look_scopes.c.last >= period.since,
        look_scopes.c.first < period.until,
    )
    return {scope for scope in (await connection.execute(query)).scalars() if is_device(scope)}


def chosen(devices: Collection[str], period: Period, parts: int = 1) -> list[str]:
    """As many as may be read in one of `parts`, by a hash of their ids."""
    ordered = sorted(devices, key=lambda device: hashlib.blake2b(device.encode(), digest_size=8).digest())
    return ordered[: max(1, MAX_LOOKS // period.looks // parts)]


async def read_arm(
    connection: AsyncConnection,
    references: References,
    manifests: Collection[str],
    devices: Collection[str],
    period: Period,
) -> Arm:
    """What the builds did on the devices in the period. A look of a build that this hub no longer has is left out."""
    arm = Arm()
    query = (
        select(looks)
        .where(
            looks.c.manifest_sha256.in_(sorted(manifests)),
            among(looks.c.device, devices),
            looks.c.start >= period.since,
            looks.c.start < period.until,
        )
        .order_by(looks.c.start, looks.c.device)
        .limit(MAX_LOOKS)
    )
    layouts = {sha256: watched.layout for sha256 in manifests if (watched := await references.get(sha256))}
    found = await connection.stream(query)
    async for rows in found.partitions(BATCH):
        for row in rows:
            layout, tally = layouts.get(row.manifest_sha256), tally_of(row)
            if layout is not None and tally.counts.size == layout.cells:
                arm.add(row.device, row.start, measures(tally, layout), tally.rows)
    return arm


async def add_quality(
    connection: AsyncConnection,
    arms: Mapping[str, tuple[Arm, Collection[str]]],
    devices: Collection[str],
    period: Period,
) -> None:
    """Errors of labelled predictions, into arms given by name with their builds.

    A wrong class is 1; the error of a number is in standard deviations of the labels of both versions.
    """
    read = {name: await _outcomes(connection, manifests, devices, period) for name, (_, manifests) in arms.items()}
    scales = _scales([row for rows in read.values() for row in rows])
    for name, (arm, _) in arms.items():
        for (device, start), found in _by_look(read[name], period, scales).items():
            arm.add(device, start, found, 0)


async def _outcomes(
    connection: AsyncConnection, manifests: Collection[str], devices: Collection[str], period: Period
) -> Sequence[Row[Any]]:
    columns = ("device", "output", "at", "kind", "truth", "error", "weight")
    query = (
        select(*(outcomes.c[name] for name in columns))
        .where(
            outcomes.c.manifest_sha256.in_(sorted(manifests)),
            among(outcomes.c.device, devices),
            outcomes.c.stratum != ASKED,
            outcomes.c.at >= period.since,
            outcomes.c.at < period.until,
        )
        .order_by(outcomes.c.at.desc())
        .limit(MAX_OUTCOMES)
    )
    return (await connection.execute(query)).all()


def _scales(rows: Sequence[Row[Any]]) -> dict[str, float]:
    truths: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.kind == "number":
            truths[row.output].append(row.truth)
    return {output: float(np.std(found)) or 1.0 for output, found in truths.items()}


def _by_look(
    rows: Sequence[Row[Any]], period: Period, scales: Mapping[str, float]
) -> dict[tuple[str, float], list[Measure]]:
    """Per device, look and output the mean error, each prediction by its weight."""
    sums: dict[tuple[str, float, str], list[float]] = {}
    for row in rows:
        start = look_start(row.at, period.look_s)
        here = sums.setdefault((row.device, start, row.output), [0.0, 0.0, 0.0])
        here[0] += row.weight * abs(row.error) / scales.get(row.output, 1.0)
        here[1] += row.weight
        here[2] += 1
    found: dict[tuple[str, float], list[Measure]] = defaultdict(list)
    for (device, start, output), (total, weight, count) in sums.items():
        if weight > 0:
            found[(device, start)].append(Measure(f"{QUALITY}{output}", total / weight, int(count)))
    return found


async def first_look(connection: AsyncConnection, manifests: Collection[str]) -> float | None:
    """When the builds were first counted."""
    query = select(func.min(look_scopes.c.first)).where(look_scopes.c.manifest_sha256.in_(sorted(manifests)))
    first: float | None = (await connection.execute(query)).scalar_one()
    return first
