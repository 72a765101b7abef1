"""Build edge modules: one model version and one device profile become a manifest and files by digest.

Looking at the model happens in a child process (`model_probe`), cutting files in a thread (`chunking`). Signing is the
image repository's (`trust.image`). Called by `api.modules`.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
from sqlalchemy import ColumnElement, Row, and_, delete, insert, select

from cloud_hub.agent_wheels import check_release, is_release
from cloud_hub.blobs import Blobs
from cloud_hub.building.request import BuildRequest
from cloud_hub.chunking import file_entry
from cloud_hub.clock import Clock
from cloud_hub.errors import Conflict, NotFound, Unprocessable
from cloud_hub.events import Events
from cloud_hub.manifests import (
    ENTRY_PATH,
    lineage,
    model_path,
    release_requirements,
    requirements,
    runtime,
    understood,
)
from cloud_hub.model_probe import ProbeRequest, ProbeResult, probe
from cloud_hub.registry import ModelVersion, Registry
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules
from firmware_profiles.profile import DeviceProfile
from modules.bundle import FileEntry
from modules.errors import ModuleError
from modules.manifest import (
    MAX_MANIFEST_BYTES,
    Health,
    Manifest,
    Resources,
    Runtime,
    SamplingPolicy,
    encode_manifest,
    manifest_digest,
)
from modules.targets import AGENT_PUBLISHER, TargetPath

# Formats that carry weights and tables, never code that runs on loading.
ALLOWED_SUFFIXES = frozenset({".onnx", ".data", ".bin", ".safetensors", ".npy", ".json", ".txt", ".csv", ".md"})
GOLDEN_PATH = "golden.msgpack"
REFERENCE_PATH = "reference.json"


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
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._events = events
        self._registry = registry
        self._catalog = catalog
        self._publisher = publisher
        self._clock = clock

    async def build(self, request: BuildRequest, actor: str) -> ModuleRelease:
        """Build the module and remember it, unsigned.

        Raises NotFound (model, version, profile, upload), Unprocessable (the model or its data do not fit) and
        Conflict (`module-signed`: what was signed is never changed; register a new model version).
        """
        model = await self._registry.get(request.model, request.version)
        profile = self._profile(request.profile)
        await self._refuse_signed(request)
        work = Path(tempfile.mkdtemp(prefix="mooring-build-"))
        try:
            if is_release(model):
                manifest = await self._release_manifest(request, model, profile, work)
            else:
                manifest = await self._manifest(request, model, profile, work)
        except ModuleError as error:
            raise Unprocessable("module-refused", str(error)) from error
        finally:
            await asyncio.to_thread(shutil.rmtree, work, True)
        body = encode_manifest(manifest)
        if len(body) > MAX_MANIFEST_BYTES:
            raise Unprocessable(
                "module-too-large",
                f"module {manifest.name}: its {manifest.size} bytes need a manifest of {len(body)} bytes, expected at "
                f"most {MAX_MANIFEST_BYTES}; nothing was built. About 10 GiB fit in one module",
            )
        await self._blobs.put(body)
        return await self._remember(manifest, body, request.publisher or self._publisher, actor)

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

    async def list(self, name: str = "", limit: int = 200) -> list[ModuleRelease]:
        """Newest versions first."""
        query = select(modules).order_by(modules.c.name, modules.c.version.desc(), modules.c.profile).limit(limit)
        if name:
            query = query.where(modules.c.name == name)
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

    async def _manifest(
        self, request: BuildRequest, model: ModelVersion, profile: DeviceProfile, work: Path
    ) -> Manifest:
        sources = await self._gather(request, model, work)
        result = await probe(self._probe_request(request, sources, work))
        sources |= _written(result, work)
        files = await self._entries(sources)
        size = sum(entry.size for entry in files)
        return Manifest(
            name=request.model,
            version=request.version,
            profile=profile.name,
            lineage=lineage(model),
            inputs=result.inputs,
            outputs=result.outputs,
            files=files,
            runtime=runtime(sources, bool(request.entry)),
            requires=understood(request.requires or requirements(profile, size), request.health),
            resources=request.resources or Resources(),
            health=msgspec.structs.replace(request.health or Health(), golden=GOLDEN_PATH if result.golden else ""),
            sampling=request.sampling or SamplingPolicy(),
            reference=REFERENCE_PATH if result.reference else "",
        )

    async def _release_manifest(
        self, request: BuildRequest, model: ModelVersion, profile: DeviceProfile, work: Path
    ) -> Manifest:
        """A release of the agent. Its wheels are looked at, never run: devices try them out."""
        if request.publisher != AGENT_PUBLISHER:
            text = f"expected the publisher {AGENT_PUBLISHER}, got {request.publisher or self._publisher}"
            raise Unprocessable("agent-publisher", f"a release of the agent: {text}; no device would run it")
        sources = {file.path: work / "model" / file.path for file in model.files}
        for file in model.files:
            await self._copy(file.sha256, sources[file.path])
        unpacked = await asyncio.to_thread(check_release, sources, profile)
        files = await self._entries(sources)
        return Manifest(
            name=request.model,
            version=request.version,
            profile=profile.name,
            lineage=lineage(model),
            inputs=(),
            outputs=(),
            files=files,
            runtime=Runtime(kind="agent", backend="script", model=""),
            requires=request.requires or release_requirements(profile, sum(entry.size for entry in files), unpacked),
            health=request.health or Health(),
        )

    async def _entries(self, sources: Mapping[str, Path]) -> tuple[FileEntry, ...]:
        """Puts the files among the blobs and cuts them into chunks."""
        digests = {path: await self._blobs.put_file(source) for path, source in sources.items()}
        return tuple(
            [await asyncio.to_thread(file_entry, path, sources[path], digests[path]) for path in sorted(sources)]
        )

    async def _gather(self, request: BuildRequest, model: ModelVersion, work: Path) -> dict[str, Path]:
        """Copies of the model's files under their own names (external data is found by name), by module path."""
        sources: dict[str, Path] = {}
        for file in model.files:
            if Path(file.path).suffix.lower() not in ALLOWED_SUFFIXES:
                allowed = ", ".join(sorted(ALLOWED_SUFFIXES))
                raise Unprocessable("format-refused", f"{file.path}: expected one of {allowed} in a module")
            if file.path in (GOLDEN_PATH, REFERENCE_PATH, ENTRY_PATH):
                raise Unprocessable("path-reserved", f"{file.path}: this name is kept for what the build writes")
            sources[file.path] = work / "model" / file.path
            await self._copy(file.sha256, sources[file.path])
        if request.entry:
            sources[ENTRY_PATH] = work / ENTRY_PATH
            await self._copy(request.entry, sources[ENTRY_PATH])
        return sources

    async def _copy(self, sha256: str, target: Path) -> None:
        self._blobs.size(sha256)  # a digest that is not stored is a 404 with its name
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(shutil.copyfile, self._blobs.path(sha256), target)

    def _probe_request(self, request: BuildRequest, sources: Mapping[str, Path], work: Path) -> ProbeRequest:
        if not request.reference and not request.golden:
            raise Unprocessable(
                "golden-missing",
                "expected a training sample (reference) or golden inputs: without known answers no device can tell "
                "whether the module works",
            )
        if request.entry and not (request.inputs and request.outputs and request.golden):
            raise Unprocessable(
                "tensors-missing",
                "expected `inputs`, `outputs` and golden arrays for both with an entry script: the hub runs no scripts",
            )
        for digest in filter(None, (request.reference, request.golden)):
            self._blobs.size(digest)
        return ProbeRequest(
            model="" if request.entry else str(sources[model_path(sources)]),
            inputs=request.inputs,
            outputs=request.outputs,
            training=str(self._blobs.path(request.reference)) if request.reference else "",
            golden=str(self._blobs.path(request.golden)) if request.golden else "",
            output_folder=str(work),
            labels=request.labels,
        )

    async def _remember(self, manifest: Manifest, body: bytes, publisher: str, actor: str) -> ModuleRelease:
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
                connection, "module.built", actor, subject, manifest_sha256=release.manifest_sha256, size=release.size
            )
        return release


def _key(name: str, version: int, profile: str) -> ColumnElement[bool]:
    return and_(modules.c.name == name, modules.c.version == version, modules.c.profile == profile)


def _release(row: Row[tuple[object, ...]]) -> ModuleRelease:
    return ModuleRelease(**row._asdict())


def _written(result: ProbeResult, work: Path) -> dict[str, Path]:
    files = {GOLDEN_PATH: result.golden, REFERENCE_PATH: result.reference}
    return {path: work / path for path, there in files.items() if there}
