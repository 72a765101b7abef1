"""Build edge modules: one model version and one device profile become a manifest and files by digest.

This file knows which modules there are; how one is put together is `building`'s. Signing is the image repository's
(`trust.image`). Called by `api.modules`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from sqlalchemy import ColumnElement, Row, and_, delete, insert, select

from cloud_hub.agent_wheels import is_release
from cloud_hub.blobs import Blobs
from cloud_hub.building.agent_module import agent_manifest
from cloud_hub.building.bench import bench
from cloud_hub.building.container import in_container
from cloud_hub.building.model_module import model_manifest
from cloud_hub.building.request import BuildRequest
from cloud_hub.building.resolve import Resolver
from cloud_hub.clock import Clock
from cloud_hub.errors import Conflict, NotFound, Unprocessable
from cloud_hub.events import Events
from cloud_hub.images.bases import Bases
from cloud_hub.operations.progress import tell
from cloud_hub.registry import Registry
from cloud_hub.store.behind import behind
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules
from firmware_profiles.profile import DeviceProfile
from modules.errors import ModuleError
from modules.manifest import MAX_MANIFEST_BYTES, Manifest, decode_manifest, encode_manifest, manifest_digest
from modules.targets import TargetPath


class ModuleRelease(msgspec.Struct, frozen=True):
    """A built module. `release_counter` and `signed_at` are null until it is signed. Sizes are bytes."""

    name: str
    version: int
    profile: str
    publisher: str
    manifest_sha256: str
    manifest_size: int
    size: int
    release_counter: int | None
    created_at: float
    signed_at: float | None

    @property
    def target(self) -> str:
        """The TUF target path of the manifest."""
        return str(TargetPath(self.publisher, self.name, self.version, self.profile))


class Packaging:
    """Builds modules and knows those that were built."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        events: Events,
        registry: Registry,
        catalog: Mapping[str, DeviceProfile],
        publisher: str,
        clock: Clock,
        resolver: Resolver | None = None,
        bases: Bases | None = None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._events = events
        self._registry = registry
        self._catalog = catalog
        self._publisher = publisher
        self._clock = clock
        self._resolver = resolver or Resolver()
        self._bases = bases or Bases()

    async def build(self, request: BuildRequest, actor: str) -> ModuleRelease:
        """Build the module and remember it, unsigned.

        Raises NotFound (model, version, profile, upload), Unprocessable (the model or its data do not fit) and
        Conflict (`module-signed`: what was signed is never changed; register a new model version).
        """
        model = await self._registry.get(request.model, request.version)
        profile = self._profile(request.profile)
        await self._refuse_signed(request)
        publisher = request.publisher or self._publisher
        try:
            async with bench(self._blobs) as place:
                if is_release(model):
                    manifest = await agent_manifest(request, model, profile, place, publisher)
                else:
                    manifest = await model_manifest(request, model, profile, place, self._resolver)
                    manifest = await in_container(manifest, request, profile, place, self._bases)
        except ModuleError as error:
            raise Unprocessable("module-refused", str(error)) from error
        body = encode_manifest(manifest)
        if len(body) > MAX_MANIFEST_BYTES:
            raise Unprocessable(
                "module-too-large",
                f"module {manifest.name}: its {manifest.size} bytes need a manifest of {len(body)} bytes, expected at "
                f"most {MAX_MANIFEST_BYTES}; nothing was built. About 10 GiB fit in one module",
            )
        tell("writing it down")
        await self._blobs.put(body)
        return await self._remember(manifest, body, publisher, actor)

    async def take_in(self, manifest_sha256: str, publisher: str, actor: str) -> ModuleRelease:
        """A module that was built by another hub, unsigned here; manifest and files have been uploaded. The same module
        again is what is there. Whoever calls has verified it by the other hub's metadata.

        Raises NotFound `blob-not-found` or `profile-not-found`, Unprocessable `module-refused`, Conflict
        `module-differs`.
        """
        body = await self._blobs.read(manifest_sha256)
        try:
            manifest = decode_manifest(body)
        except ModuleError as error:
            raise Unprocessable("module-refused", str(error)) from error
        self._profile(manifest.profile)
        for entry in manifest.files:
            if await self._blobs.size(entry.sha256) != entry.size:
                raise Unprocessable("module-refused", f"{entry.path}: not of the size that the manifest names")
        try:
            known = await self.get(manifest.name, manifest.version, manifest.profile)
        except NotFound:
            return await self._remember(manifest, body, publisher or self._publisher, actor, "module.imported")
        if known.manifest_sha256 != manifest_sha256:
            subject = f"{manifest.name}:{manifest.version}/{manifest.profile}"
            raise Conflict("module-differs", f"module {subject} is here already, with other content; nothing was taken")
        return known

    async def get(self, name: str, version: int, profile: str) -> ModuleRelease:
        """Raises NotFound `module-not-found`."""
        async with self._store.read() as connection:
            row = (await connection.execute(select(modules).where(_key(name, version, profile)))).one_or_none()
        if row is None:
            raise NotFound(
                "module-not-found",
                f"no module {name} version {version} for profile {profile}; build it first",
                name=name,
                version=version,
                profile=profile,
            )
        return _release(row)

    async def list(
        self, name: str = "", limit: int = 200, after: tuple[str, int, str] | None = None
    ) -> list[ModuleRelease]:
        """By name, newest versions first; behind the name, version and profile of `after`."""
        query = select(modules).order_by(modules.c.name, modules.c.version.desc(), modules.c.profile).limit(limit)
        if name:
            query = query.where(modules.c.name == name)
        if after is not None:
            order = ((modules.c.name, False), (modules.c.version, True), (modules.c.profile, False))
            query = query.where(behind(order, after))
        async with self._store.read() as connection:
            return [_release(row) for row in await connection.execute(query)]

    async def manifest(self, name: str, version: int, profile: str) -> bytes:
        """The manifest's bytes, as signed or to be signed."""
        release = await self.get(name, version, profile)
        return await self._blobs.read(release.manifest_sha256)

    def _profile(self, name: str) -> DeviceProfile:
        if name not in self._catalog:
            known = ", ".join(sorted(self._catalog))
            raise NotFound("profile-not-found", f"no device profile {name}; known are {known}", profile=name)
        return self._catalog[name]

    async def _refuse_signed(self, request: BuildRequest) -> None:
        query = select(modules.c.signed_at).where(_key(request.model, request.version, request.profile))
        async with self._store.read() as connection:
            signed_at = (await connection.execute(query)).scalar_one_or_none()
        if signed_at is not None:
            raise Conflict(
                "module-signed",
                f"module {request.model} version {request.version} for {request.profile} is signed and stays as it is; "
                "register a new model version to change it",
            )

    async def _remember(
        self, manifest: Manifest, body: bytes, publisher: str, actor: str, kind: str = "module.built"
    ) -> ModuleRelease:
        release = ModuleRelease(
            name=manifest.name,
            version=manifest.version,
            profile=manifest.profile,
            publisher=publisher,
            manifest_sha256=manifest_digest(body),
            manifest_size=len(body),
            size=manifest.size,
            release_counter=None,
            created_at=self._clock(),
            signed_at=None,
        )
        key = _key(release.name, release.version, release.profile)
        async with self._store.write() as connection:
            # Only an unsigned build may be replaced; one that was signed meanwhile makes the insert fail.
            await connection.execute(delete(modules).where(key, modules.c.signed_at.is_(None)))
            await connection.execute(insert(modules).values(msgspec.structs.asdict(release)))
            subject = f"{release.name}:{release.version}/{release.profile}"
            await self._events.record(
                connection, kind, actor, subject, manifest_sha256=release.manifest_sha256, size=release.size
            )
        return release


def _key(name: str, version: int, profile: str) -> ColumnElement[bool]:
    return and_(modules.c.name == name, modules.c.version == version, modules.c.profile == profile)


def _release(row: Row[tuple[object, ...]]) -> ModuleRelease:
    return ModuleRelease(**row._asdict())
