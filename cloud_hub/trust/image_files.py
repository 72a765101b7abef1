"""The rows of the image repository: files as they are served, and the two online roles that announce a change.

Every function works in the transaction that it is given. Called by `image` (signing with the hub's keys) and by
`ceremony` (what was signed elsewhere).
"""

from __future__ import annotations

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from tuf.api.metadata import MetaFile, Snapshot, Timestamp

from cloud_hub.errors import NotFound
from cloud_hub.store.tables import assignments, devices, image_files
from cloud_hub.trust.keys import IMAGE_SNAPSHOT, IMAGE_TIMESTAMP, Keys
from cloud_hub.trust.signing import SHORT_LIFE_S, Payload, SignedFile, expiry, payload_of, sign

TIMESTAMP_FILE = "timestamp.json"
# Superseded snapshots and publisher files stay for devices that are in the middle of a refresh.
KEPT_VERSIONS = 16


async def online(connection: AsyncConnection) -> tuple[Timestamp, Snapshot]:
    """What is announced now."""
    stamp = payload_of(await body_of(connection, TIMESTAMP_FILE), Timestamp)
    body = await body_of(connection, f"{stamp.snapshot_meta.version}.snapshot.json")
    return stamp, payload_of(body, Snapshot)


async def publish_online(
    connection: AsyncConnection,
    keys: Keys,
    meta: dict[str, MetaFile],
    versions: tuple[int, int],
    now: float,
    life_s: float = SHORT_LIFE_S,
) -> None:
    """A snapshot that lists `meta` and a timestamp that names it, in these `versions`."""
    expires = expiry(now, life_s)
    snapshot = Snapshot(version=versions[0], expires=expires, meta=meta)
    await put(connection, sign(keys, snapshot, f"{versions[0]}.snapshot.json", IMAGE_SNAPSHOT))
    await prune(connection, "snapshot.json", versions[0])
    stamp = Timestamp(version=versions[1], expires=expires, snapshot_meta=MetaFile(versions[0]))
    await put(connection, sign(keys, stamp, TIMESTAMP_FILE, IMAGE_TIMESTAMP))


async def announce(connection: AsyncConnection, keys: Keys, file: SignedFile, role: str, now: float) -> None:
    """Puts a new version of `role` (its file name without the version) and publishes snapshot and timestamp."""
    stamp, snapshot = await online(connection)
    await put(connection, file)
    await prune(connection, role, file.version)
    snapshot.meta[role] = MetaFile(file.version)
    await publish_online(connection, keys, snapshot.meta, (snapshot.version + 1, stamp.version + 1), now)


async def load(connection: AsyncConnection, snapshot: Snapshot, role: str, kind: type[Payload]) -> Payload:
    return payload_of(await body_of(connection, f"{snapshot.meta[role].version}.{role}"), kind)


async def body_of(connection: AsyncConnection, filename: str) -> bytes:
    """Raises NotFound `metadata-not-found`."""
    query = select(image_files.c.body).where(image_files.c.filename == filename)
    body = (await connection.execute(query)).scalar_one_or_none()
    if body is None:
        raise missing(filename)
    return bytes(body)


def missing(filename: str) -> NotFound:
    text = f"the image repository has no file {filename[:80]!r}"
    return NotFound("metadata-not-found", text, filename=filename[:80])


async def put(connection: AsyncConnection, file: SignedFile) -> None:
    await connection.execute(delete(image_files).where(image_files.c.filename == file.filename))
    await connection.execute(
        insert(image_files).values(filename=file.filename, body=file.body, expires_at=file.expires_at)
    )


async def prune(connection: AsyncConnection, role: str, newest: int) -> None:
    if role != "targets.json" and newest > KEPT_VERSIONS:
        old = f"{newest - KEPT_VERSIONS}.{role}"
        await connection.execute(delete(image_files).where(image_files.c.filename == old))


async def direct_anew(connection: AsyncConnection, name: str, version: int, profile: str) -> None:
    """The directors of devices with this module assigned must sign its new counter."""
    holders = select(assignments.c.device).where(
        assignments.c.module == name, assignments.c.version == version, assignments.c.profile == profile
    )
    change = update(devices).where(devices.c.id.in_(holders))
    await connection.execute(change.values(director_version=devices.c.director_version + 1))
