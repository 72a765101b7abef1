"""Sites, their devices and the marks of receipts as rows. Every query of this room; on the caller's connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.errors import Conflict, NotFound
from cloud_hub.sites.form import SiteDevice
from cloud_hub.sites.seal import fingerprint
from cloud_hub.store.bulk import upsert
from cloud_hub.store.tables import devices, samples, site_devices, site_marks, sites, windows

STREAMS: Final = {"window": windows, "sample": samples}
SEPARATOR: Final = "."  # between a site and its device: no id of a device holds one


class Site(msgspec.Struct, frozen=True):
    """Another hub. `made_at` is when its newest merged pack was made; `devices` are those that it has told of."""

    name: str
    fingerprint: str
    added_at: float
    merged_at: float | None
    made_at: float | None
    devices: int = 0


async def add(connection: AsyncConnection, name: str, public_key: str, now: float) -> None:
    """Raises Conflict `site-exists`."""
    if (await connection.execute(select(sites.c.name).where(sites.c.name == name))).first() is not None:
        raise Conflict("site-exists", f"there is a site {name} already; remove it first", name=name)
    await connection.execute(insert(sites).values(name=name, public_key=public_key, added_at=now))


async def remove(connection: AsyncConnection, name: str) -> None:
    """What was merged stays. Raises NotFound `site-not-found`."""
    await key_of(connection, name)
    await connection.execute(delete(sites).where(sites.c.name == name))


async def listed(connection: AsyncConnection) -> list[Site]:
    counts = select(site_devices.c.site, func.count()).group_by(site_devices.c.site)
    known: dict[str, int] = dict((await connection.execute(counts)).all())
    rows = await connection.execute(select(sites).order_by(sites.c.name))
    return [
        Site(row.name, fingerprint(row.public_key), row.added_at, row.merged_at, row.made_at, known.get(row.name, 0))
        for row in rows
    ]


async def key_of(connection: AsyncConnection, name: str) -> str:
    """Raises NotFound `site-not-found`."""
    found = (await connection.execute(select(sites.c.public_key).where(sites.c.name == name))).scalar_one_or_none()
    if found is None:
        raise NotFound("site-not-found", f"no site {name[:40]}; `mooring site list` shows them", name=name[:40])
    return str(found)


async def keys(connection: AsyncConnection) -> dict[str, str]:
    """Public keys by name."""
    rows = await connection.execute(select(sites.c.name, sites.c.public_key))
    return {row.name: row.public_key for row in rows}


async def merged(connection: AsyncConnection, name: str, made_at: float, now: float) -> None:
    newest = (await connection.execute(select(sites.c.made_at).where(sites.c.name == name))).scalar_one()
    values = {"merged_at": now, "made_at": max(made_at, newest or made_at)}
    await connection.execute(update(sites).where(sites.c.name == name).values(**values))


async def keep_devices(
    connection: AsyncConnection, site: str, found: Sequence[tuple[str, SiteDevice]], made_at: float
) -> None:
    """Each with its id here. What a newer pack has said stays."""
    ids = [id_ for id_, _ in found]
    query = select(site_devices.c.id).where(site_devices.c.id.in_(ids), site_devices.c.made_at > made_at)
    newer = set((await connection.execute(query)).scalars())
    rows: list[dict[str, Any]] = [
        {
            "id": id_, "site": site, "profile": one.profile, "tags": one.tags, "report": one.report or None,
            "report_at": one.report_at, "made_at": made_at,
        }
        for id_, one in found
        if id_ not in newer
    ]  # fmt: skip
    await upsert(connection, site_devices, rows)


async def devices_of(connection: AsyncConnection, site: str, limit: int, after: str) -> list[Row[Any]]:
    query = select(site_devices).where(site_devices.c.site == site, site_devices.c.id > after)
    return list(await connection.execute(query.order_by(site_devices.c.id).limit(limit)))


# --- on a site ----------------------------------------------------------------------------------------------------
async def own_devices(connection: AsyncConnection, after: str, limit: int) -> list[SiteDevice]:
    query = select(devices.c.id, devices.c.profile, devices.c.tags, devices.c.report, devices.c.report_at)
    query = query.where(devices.c.id > after).order_by(devices.c.id).limit(limit)
    return [
        SiteDevice(row.id, row.profile, dict(row.tags), row.report or b"", row.report_at)
        for row in await connection.execute(query)
    ]


async def marks(connection: AsyncConnection) -> dict[str, int]:
    """Up to which row of each stream another hub has everything."""
    return {row.stream: row.mark for row in await connection.execute(select(site_marks))}


async def rows_behind(connection: AsyncConnection, stream: str, after: int, limit: int) -> list[tuple[int, str, bytes]]:
    """Rows of all devices in their order: number, device, what the device sent."""
    table = STREAMS[stream]
    query = select(table.c.id, table.c.device, table.c.body).where(table.c.id > after).order_by(table.c.id)
    # What other sites have told this one is theirs to carry.
    query = query.where(~table.c.device.contains(SEPARATOR, autoescape=True))
    return [(row.id, row.device, row.body) for row in await connection.execute(query.limit(limit))]


async def move_marks(connection: AsyncConnection, received: Mapping[str, int]) -> None:
    """Only ever forward."""
    now = await marks(connection)
    rows = [{"stream": stream, "mark": mark} for stream, mark in received.items() if mark > now.get(stream, 0)]
    await upsert(connection, site_marks, rows)
