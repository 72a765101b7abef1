"""What a device may fetch over MQTT, and the bytes of it: metadata of both repositories, and its modules' files.

A device gets only the files of modules that are assigned to it, and patches to these. What it says it runs opens
nothing, because that is its own claim. Called by `link` for each request; says no with a Refusal, never with an
exception for what a device asked wrongly.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256

from sqlalchemy import and_, select

from cloud_hub.blobs import Blobs
from cloud_hub.errors import HubError, NotFound
from cloud_hub.patches.choose import leading_to
from cloud_hub.permits import Permits
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import assignments, devices, modules
from cloud_hub.store.together import Together
from cloud_hub.trust.director import Director
from cloud_hub.trust.director_sign import TIMESTAMP_FILE
from cloud_hub.trust.image import ImageRepository
from modules.errors import ModuleError
from modules.manifest import decode_manifest
from modules.messages import MAX_BLOCK_BYTES, Answer, Get, Refusal

MAX_REMEMBERED_MANIFESTS = 256
SMALL_BYTES = 64 * 1024
MAX_SMALL = 64
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
        self._small: dict[str, bytes] = {}
        self._assigned = Together(self._manifests_of)

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
        manifests = await self._assigned.find(device)
        return frozenset() if manifests is None else await self._permitted(manifests, digests)

    async def _answer(self, device: str, get: Get) -> Answer | Refusal:
        if get.repository == "blob" and self._permits.holds(device, get.name, get.grant) and self._still(get):
            return await self._blob(get)
        manifests = await self._assigned.find(device)
        if manifests is None:
            return Refusal("not-allowed", f"device {device} is not enrolled or has been retired")
        if get.repository == "blob":
            if not await self._may_have(manifests, get):
                return Refusal("not-allowed", f"{get.name[:80]} belongs to no module that is assigned to {device}")
            self._permits.keep(device, get.name, get.grant)
            return await self._blob(get)
        length = min(get.length, MAX_BLOCK_BYTES)
        body = await self._metadata(device, get, get.name)
        return Answer(len(body), get.offset, body[get.offset : get.offset + length])

    def _still(self, get: Get) -> bool:
        """A grant ends when it says, however lately it was good; to ask is cheap."""
        return not get.grant or self._granted(get.name, get.grant)

    async def _blob(self, get: Get) -> Answer:
        """Small files stay in memory: a rollout asks for the same manifest once per device."""
        small = self._small.get(get.name)
        if small is not None:
            return Answer(len(small), get.offset, small[get.offset : get.offset + min(get.length, MAX_BLOCK_BYTES)])
        size = await self._blobs.size(get.name)
        if size <= SMALL_BYTES:
            if len(self._small) >= MAX_SMALL:
                self._small.pop(next(iter(self._small)))
            self._small[get.name] = await self._blobs.read(get.name)
            return await self._blob(get)
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

    async def _may_have(self, manifests: Collection[str], get: Get) -> bool:
        if get.grant:
            # Nothing else counts then: it is a neighbour's, who may not have all that the gateway may have.
            return self._granted(get.name, get.grant)
        return bool(await self._permitted(manifests, (get.name,)))

    async def _permitted(self, manifests: Collection[str], digests: Collection[str]) -> frozenset[str]:
        wanted, found, own = frozenset(digests), frozenset[str](), frozenset[str]()
        for manifest in manifests:
            if wanted == found:
                break
            own |= {manifest, *await self._files_of(manifest)}
            found = wanted & own
        if found == wanted:
            return found
        async with self._store.read() as connection:
            return found | await leading_to(connection, own, wanted - found)

    async def _manifests_of(self, wanted: Collection[str]) -> Mapping[str, frozenset[str]]:
        """The manifests assigned to each of these devices that is enrolled and not retired."""
        query = (
            select(devices.c.id, modules.c.manifest_sha256)
            .select_from(
                devices.outerjoin(assignments, assignments.c.device == devices.c.id).outerjoin(modules, _BUILT)
            )
            .where(among(devices.c.id, wanted), devices.c.retired_at.is_(None))
        )
        found = defaultdict[str, set[str]](set)
        async with self._store.read() as connection:
            for device, manifest in await connection.execute(query):
                found[device].update([manifest] if manifest is not None else ())
        return {device: frozenset(manifests) for device, manifests in found.items()}

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
