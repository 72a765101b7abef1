"""What is known of scopes before they are weighed: looks, what they are compared with, what makes them suspect.

Read for many scopes of one build at once. Used by `deciding`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.monitoring import looks, problems
from cloud_hub.monitoring.alert_book import ProblemCount
from cloud_hub.monitoring.bases import Bases, Basis
from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.looks import Group
from cloud_hub.monitoring.reference import TRAINING
from cloud_hub.monitoring.references import Watched
from cloud_hub.monitoring.scopes import is_device
from cloud_hub.monitoring.verdict import LookSeries
from modules.windows import ReferenceProfile

NOTHING: Final = Layout(ReferenceProfile(0, ()))


@dataclass(frozen=True)
class Reading:
    """`problems` are those of a device that are told without its counts."""

    watched: Watched | None
    basis: Basis
    looks: LookSeries
    problems: tuple[ProblemCount, ...] = ()


async def read_scopes(
    connection: AsyncConnection,
    bases: Bases,
    watched: Watched | None,
    manifest_sha256: str,
    scopes: Collection[str],
    recent: float,
) -> dict[Group, Reading]:
    """By group, of one build; problems are those since `recent`."""
    groups = [Group(manifest_sha256, scope) for scope in scopes]
    based = {} if watched is None else await bases.of(connection, watched, groups)
    series = {} if watched is None else await _series(connection, watched, based)
    suspect = await _problems(
        connection, manifest_sha256, series, [g.device for g in groups if is_device(g.device)], recent
    )
    nothing = LookSeries.empty(NOTHING if watched is None else watched.layout)
    return {
        group: Reading(
            watched,
            based.get(group, Basis(NOTHING, str(TRAINING))),
            series.get(group.device, nothing),
            suspect.get(group.device, ()),
        )
        for group in groups
    }


async def _series(connection: AsyncConnection, watched: Watched, based: Mapping[Group, Basis]) -> dict[str, LookSeries]:
    """By scope; those before a scope's reference period ended are part of the reference."""
    whole = [group.device for group, basis in based.items() if basis.since is None]
    found = await looks.latest_of(connection, watched.layout, watched.manifest_sha256, whole)
    for group, basis in based.items():
        if basis.since is not None:
            found[group.device] = await looks.series(connection, watched.layout, group, basis.since)
    return found


async def _problems(
    connection: AsyncConnection,
    manifest_sha256: str,
    series: Mapping[str, LookSeries],
    devices: Collection[str],
    recent: float,
) -> dict[str, tuple[ProblemCount, ...]]:
    if not devices:
        return {}
    found = {}
    for device in await problems.with_refusals(connection, devices, recent):
        found[device] = await problems.refused(connection, Group(manifest_sha256, device), recent)
    counting = [device for device in devices if len(series.get(device, ()))]
    for device, more in (await problems.clocks_and_lateness(connection, manifest_sha256, counting, recent)).items():
        found[device] = found.get(device, ()) + more
    return found
