"""How many bytes a device loads to go from the version it has to another: an estimate from manifests and patches.

A file or chunk that the old version has, too, costs nothing; where the hub has a patch from one of the old files, the
smaller of patch and missing chunks counts. What else lies on a device (other modules, what a neighbour has) is not
known here, so it may be less. Called by `preview`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.blobs import Blobs
from cloud_hub.errors import NotFound
from cloud_hub.patches.queue import PatchState
from cloud_hub.store.engine import among
from cloud_hub.store.tables import modules, patches
from modules.bundle import FileEntry
from modules.errors import ManifestError
from modules.manifest import decode_manifest

MAX_PRICED = 64  # pairs of versions whose manifests are compared; further ones count in full


class Step(msgspec.Struct, frozen=True, order=True):
    """From which version of the module to the new one, on devices of a profile; version 0 is none."""

    profile: str
    from_version: int


class Transfer(msgspec.Struct, frozen=True):
    """What `devices` of a profile load each, coming from a version (0: they have none). Sizes are bytes.

    `full` is all files of the new version; `by_patch` says that part of `bytes` are patches.
    """

    profile: str
    from_version: int
    devices: int
    bytes: int
    full: int
    by_patch: bool = False

    @property
    def total(self) -> int:
        return self.devices * self.bytes


async def transfers(
    connection: AsyncConnection, blobs: Blobs, module: str, version: int, steps: Mapping[Step, int], patched: bool
) -> tuple[Transfer, ...]:
    """For each step with its number of devices, the most devices first; `patched` where the hub offers patches."""
    ordered = sorted(steps, key=lambda step: (-steps[step], step))
    manifests = _Manifests(connection, blobs, module)
    sizes = await _sizes(connection, module, version)
    found = []
    for place, step in enumerate(ordered):
        full = sizes.get(step.profile, 0)
        cost, by_patch = full, False
        if step.from_version == version:
            cost = 0
        elif step.from_version and place < MAX_PRICED:
            new = await manifests.files(version, step.profile)
            old = await manifests.files(step.from_version, step.profile)
            if new and old:
                offers = await _patches(connection, new, old) if patched else {}
                cost, by_patch = await asyncio.to_thread(price, new, old, offers)
        found.append(Transfer(step.profile, step.from_version, steps[step], cost, full, by_patch))
    return tuple(found)


def price(new: Sequence[FileEntry], old: Sequence[FileEntry], offers: Mapping[str, int]) -> tuple[int, bool]:
    """Bytes to load, and whether some of them are patches; `offers` are sizes of patches by the file they make."""
    held = {chunk.sha256 for entry in old for chunk in entry.chunks}
    whole = {entry.sha256 for entry in old}
    total, by_patch = 0, False
    for entry in {entry.sha256: entry for entry in new}.values():
        if entry.sha256 in whole:
            continue
        missing = {chunk.sha256: chunk.size for chunk in entry.chunks if chunk.sha256 not in held}
        cost = sum(missing.values())
        offered = offers.get(entry.sha256, cost)
        total, by_patch = total + min(cost, offered), by_patch or offered < cost
    return total, by_patch


class _Manifests:
    """Files of builds, each read once."""

    def __init__(self, connection: AsyncConnection, blobs: Blobs, module: str) -> None:
        self._connection = connection
        self._blobs = blobs
        self._module = module
        self._known: dict[tuple[int, str], tuple[FileEntry, ...]] = {}

    async def files(self, version: int, profile: str) -> tuple[FileEntry, ...]:
        """Empty where the hub no longer has the build, or cannot read it."""
        key = version, profile
        if key not in self._known:
            self._known[key] = await self._read(version, profile)
        return self._known[key]

    async def _read(self, version: int, profile: str) -> tuple[FileEntry, ...]:
        query = select(modules.c.manifest_sha256).where(
            modules.c.name == self._module, modules.c.version == version, modules.c.profile == profile
        )
        digest = (await self._connection.execute(query)).scalar_one_or_none()
        if digest is None:
            return ()
        try:
            body = await self._blobs.read(digest)
            return (await asyncio.to_thread(decode_manifest, body)).files
        except (NotFound, ManifestError):
            return ()


async def _sizes(connection: AsyncConnection, module: str, version: int) -> dict[str, int]:
    query = select(modules.c.profile, modules.c.size).where(modules.c.name == module, modules.c.version == version)
    return {row.profile: row.size for row in await connection.execute(query)}


async def _patches(
    connection: AsyncConnection, new: Collection[FileEntry], old: Collection[FileEntry]
) -> dict[str, int]:
    """The smallest patch to each file of the new version from some file of the old one."""
    query = (
        select(patches.c.target, func.min(patches.c.size).label("size"))
        .where(
            patches.c.state == PatchState.BUILT.value,
            among(patches.c.target, [entry.sha256 for entry in new]),
            among(patches.c.base, [entry.sha256 for entry in old]),
        )
        .group_by(patches.c.target)
    )
    return {row.target: row.size for row in await connection.execute(query)}
