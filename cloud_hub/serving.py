"""What a device may fetch over MQTT, and the bytes of it: metadata of both repositories, and its modules' files.

A device gets only the files of modules that are assigned to it, and patches to these. What it says it runs opens
nothing, because that is its own claim. Called by `link` for each request; says no with a Refusal, never with an
exception for what a device asked wrongly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from hashlib import sha256

from sqlalchemy import and_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.blobs import Blobs
from cloud_hub.errors import HubError, NotFound
from cloud_hub.patches.choose import leading_to
from cloud_hub.permits import Permits
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import assignments, devices, modules
from cloud_hub.trust.director import Director
from cloud_hub.trust.director_sign import TIMESTAMP_FILE
from cloud_hub.trust.image import ImageRepository
from modules.errors import ModuleError
from modules.manifest import decode_manifest
from modules.messages import MAX_BLOCK_BYTES, Answer, Get, Refusal

MAX_REMEMBERED_MANIFESTS = 256
log = logging.getLogger(__name__)
_BUILT = and_(
    modules.c.name == assignments.c.module,
    modules.c.version == assignments.c.version,
    modules.c.profile == assignments.c.profile,
)


class Serving:
    """Answers one request at a time; keeps nothing about devices between them but what they may have, for a moment.

    `granted(digest, grant)` says whether a grant that came with a request opens that file.
    """

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        image: ImageRepository,
        director: Director,
        granted: Callable[[str, str], bool] = lambda _digest, _grant: False,
    ) -> None:
        self._granted = granted
        self._store = store
        self._blobs = blobs
        self._image = image
        self._director = director
        # A manifest's bytes never change under their digest, so what was read once holds.
        self._files: dict[str, frozenset[str]] = {}
        self._permits = Permits()

    def forget(self, device: str) -> None:
        """What the device may have has changed: its next request is looked up anew."""
        self._permits.forget(device)

    async def answer(self, device: str, get: Get) -> Answer | Refusal:
        """The bytes asked for, at most MAX_BLOCK_BYTES; fewer than asked, also none, at the end of the file."""
        if get.offset < 0 or get.length < 1:
            return Refusal(
                "bad-request", f"{get.name[:80]}: expected an offset of at least 0 and a length of at least 1"
            )
        try:
            return await self._answer(device, get)
        except NotFound as error:
            return await self._not_found(device, get, error)
        except HubError as error:
            return Refusal("bad-request" if error.status < 500 else "busy", error.message)

    async def permitted(self, device: str, digests: Collection[str]) -> frozenset[str]:
        """Those of these files that the device may have; none where it is not enrolled, or retired."""
        async with self._store.read() as connection:
            if not await _is_welcome(connection, device):
                return frozenset()
            return await self._permitted(connection, device, digests)

    async def _answer(self, device: str, get: Get) -> Answer | Refusal:
        if get.repository == "blob" and self._permits.holds(device, get.name, get.grant) and self._still(get):
            return await self._blob(get)
        async with self._store.read() as connection:
            if not await _is_welcome(connection, device):
                return Refusal("not-allowed", f"device {device} is not enrolled or has been retired")
            if get.repository == "blob" and not await self._may_have(connection, device, get):
                return Refusal("not-allowed", f"{get.name[:80]} belongs to no module that is assigned to {device}")
        if get.repository == "blob":
            self._permits.keep(device, get.name, get.grant)
            return await self._blob(get)
        length = min(get.length, MAX_BLOCK_BYTES)
        body = await self._metadata(device, get, get.name)
        return Answer(len(body), get.offset, body[get.offset : get.offset + length])

    def _still(self, get: Get) -> bool:
        """A grant ends when it says, however lately it was good; to ask is cheap."""
        return not get.grant or self._granted(get.name, get.grant)

    async def _blob(self, get: Get) -> Answer:
        size = await self._blobs.size(get.name)
        return Answer(size, get.offset, await self._blobs.read(get.name, get.offset, min(get.length, MAX_BLOCK_BYTES)))

    async def assigned(self) -> frozenset[str]:
        """The files of every module that some device is to have now."""
        query = select(modules.c.manifest_sha256).distinct().select_from(assignments.join(modules, _BUILT))
        async with self._store.read() as connection:
            manifests = (await connection.execute(query)).scalars().all()
        return frozenset(manifests).union(*[await self._files_of(manifest) for manifest in manifests])

    async def _not_found(self, device: str, get: Get, error: NotFound) -> Refusal:
        """With the timestamp, when a root was asked for that does not exist and the device says what it holds.

        The root was looked up first and the timestamp now, in the order in which the device would have asked.
        """
        if get.held is None or error.key != "metadata-not-found" or not get.name.endswith(".root.json"):
            return Refusal("not-found", error.message)
        try:
            body = await self._metadata(device, get, TIMESTAMP_FILE)
        except HubError:
            return Refusal("not-found", error.message)  # the device asks for it, and hears why
        return Refusal("not-found", f"no {get.name[:20]}", b"" if sha256(body).digest() == get.held else body)

    async def _metadata(self, device: str, get: Get, name: str) -> bytes:
        if get.repository == "image":
            return await self._image.metadata(name)
        return await self._director.metadata(device, name)

    async def _may_have(self, connection: AsyncConnection, device: str, get: Get) -> bool:
        if get.grant:
            # Nothing else counts then: it is a neighbour's, who may not have all that the gateway may have.
            return self._granted(get.name, get.grant)
        return bool(await self._permitted(connection, device, (get.name,)))

    async def _permitted(self, connection: AsyncConnection, device: str, digests: Collection[str]) -> frozenset[str]:
        query = select(modules.c.manifest_sha256).select_from(assignments.join(modules, _BUILT))
        manifests = await connection.execute(query.where(assignments.c.device == device))
        wanted, found, own = frozenset(digests), frozenset[str](), frozenset[str]()
        for manifest in manifests.scalars().all():
            if wanted == found:
                break
            own |= {manifest, *await self._files_of(manifest)}
            found = wanted & own
        return found if wanted == found else found | await leading_to(connection, own, wanted - found)

    async def _files_of(self, manifest: str) -> frozenset[str]:
        """None of one that is damaged on the hub's disk: whoever asks for it finds out and says so."""
        if manifest not in self._files:
            try:
                files = decode_manifest(await self._blobs.read(manifest)).files
            except (ModuleError, NotFound) as error:
                log.warning("manifest %s cannot be read: %s", manifest, error)
                return frozenset()
            if len(self._files) >= MAX_REMEMBERED_MANIFESTS:
                self._files.pop(next(iter(self._files)))
            self._files[manifest] = frozenset(entry.sha256 for entry in files)
        return self._files[manifest]


async def _is_welcome(connection: AsyncConnection, device: str) -> bool:
    query = select(devices.c.id).where(devices.c.id == device, devices.c.retired_at.is_(None))
    return (await connection.execute(query)).scalar_one_or_none() is not None
