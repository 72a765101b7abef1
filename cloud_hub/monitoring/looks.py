"""Looks: windows merged per period, per module and device, and once more for the whole fleet ("*").

A window belongs to the look in which it ended. Everything kept is an integer, so the sum is exact and does not
depend on the order in which windows come. Written by `ingest` in its transaction, read by `alerts` and the API.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from sqlalchemy import ColumnElement, Row, and_, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.monitoring.evidence import MAX_LOOKS, IntArray
from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.verdict import MAX_MOMENT, LookSeries
from cloud_hub.store.engine import among
from cloud_hub.store.tables import looks
from modules.windows import LATENCY_BINS

FLEET: Final = "*"
TICK: Final = 2.0**-10  # unit of stored moments


class Group(NamedTuple):
    """What is watched together: one module on one device, or on the fleet."""

    manifest_sha256: str
    device: str

    @property
    def scope(self) -> str:
        return "fleet" if self.device == FLEET else f"device:{self.device}"


class LookKey(NamedTuple):
    manifest_sha256: str
    device: str
    start: float


@dataclass(frozen=True)
class Tally:
    """Counts of one or more windows. Adding is exact."""

    windows: int
    rows: int
    errors: int
    refused: int
    counts: IntArray
    moments: IntArray
    latency: IntArray

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.windows + other.windows,
            self.rows + other.rows,
            self.errors + other.errors,
            self.refused + other.refused,
            self.counts + other.counts,
            self.moments + other.moments,
            self.latency + other.latency,
        )


class LookSummary(msgspec.Struct, frozen=True):
    """One look without its cells. Times are seconds since the epoch; latencies are upper bounds in milliseconds."""

    module: str
    manifest_sha256: str
    device: str
    start: float
    windows: int
    rows: int
    errors: int
    refused: int
    latency_p50_ms: float
    latency_p99_ms: float


def look_start(end: float, look_s: float) -> float:
    """Start of the look that a window which ended at `end` belongs to; a look holds its own end."""
    return (math.ceil(end / look_s) - 1) * look_s


def moment_ticks(moments: np.ndarray[Any, np.dtype[np.float32]]) -> IntArray:
    """Moments as whole ticks; what is not a number becomes 0."""
    bounded = np.clip(np.nan_to_num(moments.astype(np.float64), nan=0.0), -MAX_MOMENT, MAX_MOMENT)
    return np.asarray(np.rint(bounded / TICK).astype(np.int64))


async def merge(connection: AsyncConnection, module: str, tallies: Mapping[LookKey, Tally]) -> None:
    """Add each tally to its look. Call inside the writing transaction that also moves the stream's mark."""
    for key, tally in tallies.items():
        here = _is(key)
        row = (await connection.execute(select(looks).where(here))).one_or_none()
        if row is None:
            values = {"module": module, **key._asdict(), **_columns(tally)}
            await connection.execute(insert(looks).values(values))
        else:
            await connection.execute(update(looks).where(here).values(_columns(_tally(row) + tally)))


async def series(
    connection: AsyncConnection, layout: Layout, group: Group, since: float = -math.inf, limit: int = MAX_LOOKS
) -> LookSeries:
    """The latest looks of a group that start at `since` or later, oldest first."""
    query = (
        select(looks.c.start, looks.c.counts, looks.c.moments)
        .where(looks.c.manifest_sha256 == group.manifest_sha256, looks.c.device == group.device)
        .order_by(looks.c.start.desc())
        .limit(limit)
    )
    if math.isfinite(since):
        query = query.where(looks.c.start >= since)
    rows = list(reversed((await connection.execute(query)).all()))
    counts = np.array([_integers(row.counts) for row in rows], np.int64).reshape(len(rows), layout.cells)
    moments = np.array([_integers(row.moments) for row in rows], np.float64).reshape(len(rows), 2 * layout.numeric)
    return LookSeries(tuple(row.start for row in rows), counts, moments * TICK)


async def devices_of(connection: AsyncConnection, manifest_sha256: str, since: float, limit: int) -> list[str]:
    """Devices with looks at `since` or later, those with most rows first."""
    query = (
        select(looks.c.device)
        .where(looks.c.manifest_sha256 == manifest_sha256, looks.c.device != FLEET, looks.c.start >= since)
        .group_by(looks.c.device)
        .order_by(func.sum(looks.c.rows).desc(), looks.c.device)
        .limit(limit)
    )
    return list((await connection.execute(query)).scalars())


async def count_groups(connection: AsyncConnection, since: float) -> int:
    """How many groups have looks at `since` or later."""
    found = select(looks.c.manifest_sha256, looks.c.device).where(looks.c.start >= since).distinct().subquery()
    return int((await connection.execute(select(func.count()).select_from(found))).scalar_one())


async def rows_since(connection: AsyncConnection, group: Group, since: float) -> int:
    """Predictions in the group's looks at `since` or later."""
    query = select(func.sum(looks.c.rows)).where(
        looks.c.manifest_sha256 == group.manifest_sha256, looks.c.device == group.device, looks.c.start >= since
    )
    return int((await connection.execute(query)).scalar_one() or 0)


async def superseded(connection: AsyncConnection, module: str, group: Group, after: float) -> bool:
    """Whether another build of the module has looks there after `after`."""
    query = select(looks.c.start).where(
        looks.c.module == module,
        looks.c.device == group.device,
        looks.c.start > after,
        looks.c.manifest_sha256 != group.manifest_sha256,
    )
    return (await connection.execute(query.limit(1))).first() is not None


async def summaries(
    connection: AsyncConnection,
    module: str,
    manifests: set[str] | None,
    device: str,
    since: float,
    limit: int,
    devices: Collection[str] | None = None,
) -> list[LookSummary]:
    """Newest first; empty texts and None mean any."""
    query = select(looks).where(looks.c.start >= since).order_by(looks.c.start.desc(), looks.c.device).limit(limit)
    if module:
        query = query.where(looks.c.module == module)
    if manifests is not None:
        query = query.where(looks.c.manifest_sha256.in_(manifests))
    if device:
        query = query.where(looks.c.device == device)
    if devices is not None:
        query = query.where(among(looks.c.device, devices))
    return [_summary(row) for row in await connection.execute(query)]


def _summary(row: Row[Any]) -> LookSummary:
    latency = _integers(row.latency)
    return LookSummary(
        module=row.module,
        manifest_sha256=row.manifest_sha256,
        device=row.device,
        start=row.start,
        windows=row.windows,
        rows=row.rows,
        errors=row.errors,
        refused=row.refused,
        latency_p50_ms=_latency_bound(latency, 0.5),
        latency_p99_ms=_latency_bound(latency, 0.99),
    )


def _latency_bound(latency: IntArray, share: float) -> float:
    """Upper end of the bin in which the quantile lies, in milliseconds; 0 without predictions."""
    total = int(latency.sum())
    if not total:
        return 0.0
    place = min(int(np.searchsorted(np.cumsum(latency), share * total)), LATENCY_BINS - 1)
    return float(2.0 ** (place + 1) / 1000)


def _is(key: LookKey) -> ColumnElement[bool]:
    return and_(
        looks.c.manifest_sha256 == key.manifest_sha256, looks.c.device == key.device, looks.c.start == key.start
    )


def _tally(row: Row[Any]) -> Tally:
    arrays = (_integers(row.counts), _integers(row.moments), _integers(row.latency))
    return Tally(row.windows, row.rows, row.errors, row.refused, *arrays)


def _columns(tally: Tally) -> dict[str, object]:
    return {
        "windows": tally.windows,
        "rows": tally.rows,
        "errors": tally.errors,
        "refused": tally.refused,
        "counts": tally.counts.astype("<i8").tobytes(),
        "moments": tally.moments.astype("<i8").tobytes(),
        "latency": tally.latency.astype("<i8").tobytes(),
    }


def _integers(data: bytes) -> IntArray:
    return np.frombuffer(data, "<i8").astype(np.int64)
