"""Looks: windows merged per period, per module and scope: each device, the whole fleet, and groups of devices.

A window belongs to the look in which it ended. Everything kept is an integer, so the sum is exact and does not
depend on the order in which windows come. Written by `tallies`, read by `alerts` and the API.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from sqlalchemy import Row, Select, and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.monitoring.evidence import MAX_LOOKS, IntArray
from cloud_hub.monitoring.integers import unpack, unpack_rows
from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.scopes import FLEET, named
from cloud_hub.monitoring.tallies import TICK, moment_ticks
from cloud_hub.monitoring.verdict import LookSeries
from cloud_hub.store.behind import behind
from cloud_hub.store.engine import among
from cloud_hub.store.tables import look_scopes, looks
from modules.windows import LATENCY_BINS

__all__ = ["FLEET", "TICK", "moment_ticks"]


_NUMBERS: Final = ("windows", "rows", "errors", "refused", "noise")
_NAMES: Final = ("device", "start", *_NUMBERS, "counts", "moments", "joint", "still", "latency")


class Group(NamedTuple):
    """What is watched together: one module on one device, on a group of devices, or on the fleet.

    `device` is a scope (`scopes`): a device id, "key=value" or "*".
    """

    manifest_sha256: str
    device: str

    @property
    def scope(self) -> str:
        return named(self.device)


class LookSummary(msgspec.Struct, frozen=True):
    """One look without its cells. Times are seconds since the epoch; latencies are upper bounds in milliseconds.

    `device` is a scope: a device id, "key=value" for a group of devices, or "*" for the fleet. `late` are rows whose
    period was over when they came.
    """

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
    late: int = 0
    clock_jumps: int = 0


def look_start(end: float, look_s: float) -> float:
    """Start of the look that a window which ended at `end` belongs to; a look holds its own end."""
    return (math.ceil(end / look_s) - 1) * look_s


async def series(
    connection: AsyncConnection, layout: Layout, group: Group, since: float = -math.inf, limit: int = MAX_LOOKS
) -> LookSeries:
    """The latest looks of a group that start at `since` or later, oldest first."""
    query = _looks_of(group.manifest_sha256, since).where(looks.c.device == group.device)
    query = query.order_by(looks.c.start.desc()).limit(limit)
    return _series(layout, (await connection.execute(query)).all()[::-1])


async def series_of(
    connection: AsyncConnection, layout: Layout, manifest_sha256: str, scopes: Collection[str], since: float
) -> dict[str, LookSeries]:
    """As `series` of each scope, read at once; without those that have no looks since then."""
    query = _looks_of(manifest_sha256, since).where(among(looks.c.device, scopes))
    return _by_scope(layout, (await connection.execute(query.order_by(looks.c.device, looks.c.start))).all())


async def latest_of(
    connection: AsyncConnection, layout: Layout, manifest_sha256: str, scopes: Collection[str]
) -> dict[str, LookSeries]:
    """As `series` of each scope with all its looks, read at once; without those that have none."""
    if not scopes:
        return {}
    other = looks.alias()
    same = and_(other.c.manifest_sha256 == look_scopes.c.manifest_sha256, other.c.device == look_scopes.c.device)
    # Found per scope by its key: a device that is a year old has ten thousand looks.
    oldest = select(other.c.start).where(same).order_by(other.c.start.desc()).limit(1).offset(MAX_LOOKS - 1)
    joined = look_scopes.join(
        looks,
        and_(
            looks.c.manifest_sha256 == look_scopes.c.manifest_sha256,
            looks.c.device == look_scopes.c.device,
            looks.c.start >= func.coalesce(oldest.scalar_subquery(), 0.0),
        ),
    )
    query = select(*(looks.c[name] for name in _NAMES)).select_from(joined)
    query = query.where(look_scopes.c.manifest_sha256 == manifest_sha256, among(look_scopes.c.device, scopes))
    return _by_scope(layout, (await connection.execute(query.order_by(looks.c.device, looks.c.start))).all())


def _by_scope(layout: Layout, rows: Sequence[Row[Any]]) -> dict[str, LookSeries]:
    """`rows` stand by scope and time."""
    together = _series(layout, rows)
    found: dict[str, LookSeries] = {}
    begin = 0
    for scope, count in Counter(row.device for row in rows).items():  # in the order of the rows
        begin += count
        found[scope] = _part(together, begin - min(count, MAX_LOOKS), begin)
    return found


def _looks_of(manifest_sha256: str, since: float) -> Select[Any]:
    query = select(*(looks.c[name] for name in _NAMES)).where(looks.c.manifest_sha256 == manifest_sha256)
    return query.where(looks.c.start >= since) if math.isfinite(since) else query


def _series(layout: Layout, rows: Sequence[Row[Any]]) -> LookSeries:
    columns = zip(*rows, strict=True) if rows else iter([()] * len(_NAMES))
    of: dict[str, tuple[Any, ...]] = dict(zip(_NAMES, columns, strict=True))
    return LookSeries(
        starts=of["start"],
        counts=unpack_rows(of["counts"], layout.cells),
        moments=unpack_rows(of["moments"], 2 * layout.numeric).astype(np.float64) * TICK,
        joint=unpack_rows(of["joint"]),
        still=unpack_rows(of["still"], layout.numeric),
        windows=np.array(of["windows"], np.int64),
        rows=np.array(of["rows"], np.int64),
        errors=np.array(of["errors"], np.int64),
        refused=np.array(of["refused"], np.int64),
        latency=unpack_rows(of["latency"], LATENCY_BINS),
        noise=np.array(of["noise"], np.float64) * TICK,
    )


def _part(series: LookSeries, begin: int, end: int) -> LookSeries:
    return LookSeries(**{field.name: getattr(series, field.name)[begin:end] for field in fields(series)})


async def devices_of(connection: AsyncConnection, manifest_sha256: str, since: float, limit: int) -> list[str]:
    """Devices with looks at `since` or later, those with most rows ever first."""
    devices = select(look_scopes.c.device).where(look_scopes.c.device != FLEET, look_scopes.c.device.not_like("%=%"))
    query = devices.where(look_scopes.c.manifest_sha256 == manifest_sha256, look_scopes.c.last >= since)
    query = query.order_by(look_scopes.c.rows.desc(), look_scopes.c.device).limit(limit)
    return list((await connection.execute(query)).scalars())


async def scopes_since(connection: AsyncConnection, manifest_sha256: str, since: float) -> list[str]:
    """Every group of devices with looks at `since` or later, without single devices and the fleet."""
    groups = select(look_scopes.c.device).where(look_scopes.c.device.like("%=%"), look_scopes.c.last >= since)
    query = groups.where(look_scopes.c.manifest_sha256 == manifest_sha256).order_by(look_scopes.c.device)
    return list((await connection.execute(query)).scalars())


async def count_groups(connection: AsyncConnection, since: float) -> int:
    """How many groups have looks at `since` or later."""
    query = select(func.count()).select_from(look_scopes).where(look_scopes.c.last >= since)
    return int((await connection.execute(query)).scalar_one())


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
    after: tuple[float, str, str] | None = None,
) -> list[LookSummary]:
    """Newest first, behind the start, device and manifest of `after`; empty texts and None mean any."""
    order = ((looks.c.start, True), (looks.c.device, False), (looks.c.manifest_sha256, False))
    query = select(looks).where(looks.c.start >= since).limit(limit)
    query = query.order_by(*(column.desc() if down else column for column, down in order))
    if after is not None:
        query = query.where(behind(order, after))
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
    latency = unpack(row.latency)
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
        late=row.late,
        clock_jumps=row.clock_jumps,
    )


def _latency_bound(latency: IntArray, share: float) -> float:
    """Upper end of the bin in which the quantile lies, in milliseconds; 0 without predictions."""
    total = int(latency.sum())
    if not total:
        return 0.0
    place = min(int(np.searchsorted(np.cumsum(latency), share * total)), LATENCY_BINS - 1)
    return float(2.0 ** (place + 1) / 1000)
