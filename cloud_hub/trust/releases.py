"""Modules as publishers sign them, against those that were built here. Called by `ceremony`, in its transactions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from tuf.api.metadata import TargetFile

from cloud_hub.blobs import Blobs
from cloud_hub.errors import Conflict, Unprocessable
from cloud_hub.store.tables import assignments, modules
from cloud_hub.trust.image_files import direct_anew
from modules.errors import ModuleError
from modules.manifest import decode_manifest
from modules.targets import ImageCustom, TargetPath, image_custom


async def check_targets(
    connection: AsyncConnection, blobs: Blobs, changed: dict[TargetPath, TargetFile]
) -> dict[TargetPath, int]:
    """Release counters of what is new, each the manifest of a module that was built here.

    Raises Unprocessable `manifest-unknown` or `target-invalid`, Conflict `counter-too-low`.
    """
    found: dict[TargetPath, int] = {}
    highest: dict[str, int] = {}
    for path, target in changed.items():
        await _check_manifest(connection, blobs, path, target)
        custom = _custom(path, target)
        if path.name not in highest:
            highest[path.name] = await _highest_counter(connection, path.name)
        if custom.release_counter <= highest[path.name] or custom.release_counter in found.values():
            raise Conflict(
                "counter-too-low",
                f"{path}: expected a release counter above {highest[path.name]} and used once, got "
                f"{custom.release_counter}; devices would refuse it, nothing was changed",
                expected=highest[path.name] + 1,
                got=custom.release_counter,
            )
        found[path] = custom.release_counter
    return found


async def mark_signed(connection: AsyncConnection, path: TargetPath, counter: int, now: float) -> None:
    """The module has this counter from now on, and its devices are directed to it."""
    change = update(modules).where(*_same(path)).values(release_counter=counter, signed_at=now)
    await connection.execute(change)
    await direct_anew(connection, path.name, path.version, path.profile)


async def devices_with(connection: AsyncConnection, publisher: str) -> int:
    """How many devices are assigned a module of this publisher."""
    query = (
        select(func.count(assignments.c.device.distinct()))
        .select_from(
            assignments.join(
                modules,
                (modules.c.name == assignments.c.module)
                & (modules.c.version == assignments.c.version)
                & (modules.c.profile == assignments.c.profile),
            )
        )
        .where(modules.c.publisher == publisher)
    )
    return int((await connection.execute(query)).scalar_one())


async def _check_manifest(connection: AsyncConnection, blobs: Blobs, path: TargetPath, target: TargetFile) -> None:
    row = (await connection.execute(select(modules).where(*_same(path)))).one_or_none()
    if row is None or row.publisher != path.publisher:
        raise Unprocessable("manifest-unknown", f"{path}: no such module was built here; nothing was changed")
    expected = (row.manifest_size, {"sha256": row.manifest_sha256})
    if (target.length, target.hashes) != expected:
        raise Unprocessable(
            "manifest-unknown",
            f"{path}: expected the manifest {row.manifest_sha256} that was built here, got "
            f"{target.hashes.get('sha256', 'none')[:64]}; nothing was changed",
        )
    manifest = decode_manifest(await blobs.read(row.manifest_sha256))
    if (manifest.name, manifest.version, manifest.profile) != (path.name, path.version, path.profile):
        raise Unprocessable("manifest-unknown", f"{path}: the manifest is that of another; nothing was changed")


async def _highest_counter(connection: AsyncConnection, name: str) -> int:
    query = select(func.coalesce(func.max(modules.c.release_counter), 0)).where(modules.c.name == name)
    return int((await connection.execute(query)).scalar_one())


def _custom(path: TargetPath, target: TargetFile) -> ImageCustom:
    try:
        custom = image_custom(target.custom)
    except ModuleError as error:
        raise Unprocessable("target-invalid", f"{path}: {error}; nothing was changed") from error
    if custom.hardware_ids != (path.profile,):
        ids = ", ".join(custom.hardware_ids)
        raise Unprocessable("target-invalid", f"{path}: expected hardware {path.profile}, got {ids}; nothing changed")
    return custom


def _same(path: TargetPath) -> tuple[Any, ...]:
    return (modules.c.name == path.name, modules.c.version == path.version, modules.c.profile == path.profile)
