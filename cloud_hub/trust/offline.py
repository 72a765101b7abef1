"""Metadata for devices that cannot ask: both repositories as they stand, good for as long as the export was asked for.

History stays one line. What is good for no longer than the hub's own signatures is signed as for everybody, kept
and handed out. What is to last longer gets a version of its own, and the version after it, which lasts as usual, is
what the hub serves from then on: who can ask is never held to the longer freeze, and a device that took the long one
goes on with the online one, whose version is higher. Called by `cloud_hub.offline`, in its transaction.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection
from tuf.api.metadata import Metadata

from cloud_hub.errors import Conflict
from cloud_hub.store.tables import director_files, image_files
from cloud_hub.trust.director import ALL_DEVICES, put_files, set_versions, standing_of, targets_of
from cloud_hub.trust.director_sign import (
    FRESH_LIFE_S,
    SNAPSHOT_FILE,
    TARGETS_FILE,
    TIMESTAMP_FILE,
    DeviceSet,
    sign_freshness,
    sign_set,
)
from cloud_hub.trust.image_files import body_of, online, publish_online
from cloud_hub.trust.keys import Keys
from cloud_hub.trust.signing import SHORT_LIFE_S

_ROOT = ".root.json"


async def image_metadata(connection: AsyncConnection, keys: Keys, life_s: float, now: float) -> dict[str, bytes]:
    """Every file that a client of the image repository needs, good until `now + life_s`.

    Raises Conflict `offline-expires` when a role that is signed elsewhere ends before, `offline-key`.
    """
    stamp, snapshot = await online(connection)
    expires = min(stamp.expires.timestamp(), snapshot.expires.timestamp())
    if expires < int(now + life_s):
        versions = snapshot.version + 1, stamp.version + 1
        await publish_online(connection, keys, snapshot.meta, versions, now, max(life_s, SHORT_LIFE_S))
    files = await _image_files(connection, now + life_s)
    if expires < int(now + life_s) and life_s > SHORT_LIFE_S:
        versions = snapshot.version + 2, stamp.version + 2
        await publish_online(connection, keys, snapshot.meta, versions, now)
    return files


async def director_metadata(
    connection: AsyncConnection, keys: Keys, device: str, life_s: float, now: float
) -> dict[str, bytes]:
    """The three files of one device, good until `now + life_s`.

    Raises NotFound `device-not-found`, Conflict `device-retired`, `module-not-signed`, `offline-key`.
    """
    standing = await standing_of(connection, device)
    if standing.needs_set(now) or standing.set_expires_at < now + life_s:
        wanted = DeviceSet(device, standing.next_set, await targets_of(connection, device))
        stamp = max(wanted.version, standing.timestamp_version + 1)
        await put_files(connection, [(device, file) for file in sign_set(keys, wanted, stamp, now)])
        await set_versions(connection, [wanted])
        standing = await standing_of(connection, device)
    files = await _director_files(connection, device)
    if standing.timestamp_expires_at >= int(now + life_s):
        return files
    version = standing.timestamp_version + 1
    kept = made = sign_freshness(keys, standing.set_version, version, now, max(life_s, FRESH_LIFE_S))
    if life_s > FRESH_LIFE_S:
        kept = sign_freshness(keys, standing.set_version, version + 1, now)
    await put_files(connection, [(device, kept)])
    return files | {TIMESTAMP_FILE: made.body}


async def director_roots(connection: AsyncConnection) -> dict[str, bytes]:
    """The chain of roots that all devices share."""
    query = select(director_files.c.filename, director_files.c.body).where(director_files.c.device == ALL_DEVICES)
    return {row.filename: bytes(row.body) for row in await connection.execute(query)}


async def _image_files(connection: AsyncConnection, until: float) -> dict[str, bytes]:
    stamp, snapshot = await online(connection)
    names = [TIMESTAMP_FILE, f"{stamp.snapshot_meta.version}.snapshot.json"]
    names += [f"{meta.version}.{role}" for role, meta in snapshot.meta.items()]
    query = select(image_files.c.filename).where(image_files.c.filename.endswith(_ROOT, autoescape=True))
    names += (await connection.execute(query)).scalars().all()
    files = {name: await body_of(connection, name) for name in names}
    _check_ends(files, until)
    return files


async def _director_files(connection: AsyncConnection, device: str) -> dict[str, bytes]:
    query = select(director_files.c.filename, director_files.c.body).where(director_files.c.device == device)
    wanted = (TIMESTAMP_FILE, SNAPSHOT_FILE, TARGETS_FILE)
    rows = await connection.execute(query.where(director_files.c.filename.in_(wanted)))
    return {row.filename: bytes(row.body) for row in rows}


def _check_ends(files: Mapping[str, bytes], until: float) -> None:
    """Roots and lists that are signed elsewhere cannot be made to last by this hub."""
    newest = max((name for name in files if name.endswith(_ROOT)), key=lambda name: int(name.partition(".")[0]))
    for name, body in files.items():
        if name.endswith(_ROOT) and name != newest:
            continue
        expires = Metadata.from_bytes(body).signed.expires
        if expires.timestamp() < int(until):
            raise Conflict(
                "offline-expires",
                f"image repository, {name} ends at {expires:%Y-%m-%d %H:%M}Z, before the export would; ask for fewer "
                "days, or have it signed anew; nothing was exported",
                file=name,
            )
