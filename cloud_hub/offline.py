"""What a folder for an offline installation is made of: metadata of both repositories, and which files belong to it.

One transaction reads and signs everything, so that both repositories and every device agree, and the audit trail has
an event for each device. The files themselves are downloaded by their digests. Called by `api.offline`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Final

import msgspec
from sqlalchemy import and_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.events import Events
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import assignments, modules
from cloud_hub.trust.keys import Keys
from cloud_hub.trust.offline import director_metadata, director_roots, image_metadata
from modules.manifest import decode_manifest
from modules.offline import MAX_DEVICES

DAY_S: Final = 86_400.0
DEFAULT_DAYS: Final = 7.0  # as long as the hub's own signatures last
MAX_DAYS: Final = 90.0


class OfflineRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For which devices, and for how many days the metadata shall hold without a hub."""

    devices: Annotated[
        tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=63)], ...],
        msgspec.Meta(min_length=1, max_length=MAX_DEVICES),
    ]
    valid_days: Annotated[float, msgspec.Meta(gt=0, le=MAX_DAYS)] = DEFAULT_DAYS

    @property
    def longer(self) -> bool:
        """Whether the metadata shall outlast what the hub signs by itself."""
        return self.valid_days > DEFAULT_DAYS


class OfflineFile(msgspec.Struct, frozen=True):
    """A file that belongs to it: SHA-256 and size in bytes."""

    sha256: str
    size: int


class OfflineSet(msgspec.Struct, frozen=True):
    """Metadata as signed, by file name, and the files. `director` is by device; its roots are those of all devices."""

    made_at: float
    valid_until: float
    image: dict[str, str]
    director_roots: dict[str, str]
    director: dict[str, dict[str, str]]
    files: tuple[OfflineFile, ...]


class Offline:
    """Signs and names what an offline installation needs."""

    def __init__(self, store: Store, blobs: Blobs, events: Events, keys: Keys, clock: Clock) -> None:
        self._store, self._blobs, self._events, self._keys, self._clock = store, blobs, events, keys, clock

    async def sign(self, request: OfflineRequest, actor: str) -> OfflineSet:
        """Nothing is signed when anything cannot be.

        Raises NotFound `device-not-found`, Conflict `device-retired`, `module-not-signed`, `offline-expires`,
        `offline-key`.
        """
        now, life_s = self._clock(), request.valid_days * DAY_S
        devices = tuple(dict.fromkeys(request.devices))
        async with self._store.write() as connection:
            director = {
                device: _texts(await director_metadata(connection, self._keys, device, life_s, now))
                for device in devices
            }
            image = _texts(await image_metadata(connection, self._keys, life_s, now))
            roots = _texts(await director_roots(connection))
            manifests = await _manifests(connection, devices)
            for device in devices:
                await self._events.record(
                    connection,
                    "device.exported",
                    actor,
                    device,
                    valid_days=request.valid_days,
                    valid_until=now + life_s,
                )
        return OfflineSet(now, now + life_s, image, roots, director, await self._files(manifests))

    async def _files(self, manifests: Collection[str]) -> tuple[OfflineFile, ...]:
        sizes: dict[str, int] = {}
        for manifest in manifests:
            body = await self._blobs.read(manifest)
            sizes[manifest] = len(body)
            sizes.update((entry.sha256, entry.size) for entry in decode_manifest(body).files)
        return tuple(OfflineFile(sha256, sizes[sha256]) for sha256 in sorted(sizes))


async def _manifests(connection: AsyncConnection, devices: Collection[str]) -> set[str]:
    built = and_(
        modules.c.name == assignments.c.module,
        modules.c.version == assignments.c.version,
        modules.c.profile == assignments.c.profile,
    )
    query = select(modules.c.manifest_sha256).select_from(assignments.join(modules, built))
    return set((await connection.execute(query.where(among(assignments.c.device, devices)))).scalars())


def _texts(files: dict[str, bytes]) -> dict[str, str]:
    """Metadata is JSON, so its bytes are text; they come back exactly."""
    return {name: body.decode() for name, body in files.items()}
