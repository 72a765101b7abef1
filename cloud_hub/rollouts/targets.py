"""What a rollout has to know of devices and builds. Only reads; called by `targeting`, `turn` and `controller`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

import msgspec
from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.desired import MAIN
from cloud_hub.store.among import among
from cloud_hub.store.bulk import in_slices
from cloud_hub.store.tables import assignments, devices, modules
from modules.messages import DeviceReport, decode_report

_AT_ONCE: Final = 1000  # devices between two looks at what else there is to do


class Target(msgspec.Struct, frozen=True):
    """A device as a rollout sees it."""

    id: str
    profile: str


class Build(msgspec.Struct, frozen=True):
    """A module for one profile. `release_counter` is 0 until it is signed."""

    manifest_sha256: str
    release_counter: int


async def matching(
    connection: AsyncConnection, *conditions: ColumnElement[bool], only: str | None = None
) -> list[Target]:
    """Devices that meet all conditions and are not retired, by id; of one device where it is named."""
    query = select(devices.c.id, devices.c.profile).where(devices.c.retired_at.is_(None), *conditions)
    if only is not None:
        query = query.where(devices.c.id == only)
    found: list[Target] = []
    for some in in_slices((await connection.execute(query.order_by(devices.c.id))).all(), _AT_ONCE):
        found += [Target(row.id, row.profile) for row in some]
        await asyncio.sleep(0)
    return found


async def holders(connection: AsyncConnection, module: str) -> set[str]:
    """Devices that the module is assigned to as their main version."""
    query = select(assignments.c.device).where(assignments.c.module == module, assignments.c.role == MAIN)
    return set((await connection.execute(query)).scalars())


async def reports(connection: AsyncConnection, ids: Collection[str]) -> dict[str, DeviceReport]:
    """The last report of each device that has one."""
    found: dict[str, DeviceReport] = {}
    for some in in_slices(sorted(ids)):
        query = select(devices.c.id, devices.c.report).where(among(devices.c.id, some), devices.c.report.is_not(None))
        for id_, report in await connection.execute(query):
            found[id_] = decode_report(report)
    return found


async def builds(connection: AsyncConnection, module: str, version: int) -> dict[str, Build]:
    """Builds of the module version, by profile."""
    query = select(modules.c.profile, modules.c.manifest_sha256, modules.c.release_counter).where(
        modules.c.name == module, modules.c.version == version
    )
    rows = await connection.execute(query)
    return {row.profile: Build(row.manifest_sha256, row.release_counter or 0) for row in rows}
