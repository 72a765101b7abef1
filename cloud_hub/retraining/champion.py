"""The version that a candidate has to beat, and how its modules were built: a candidate's are built alike.

Called by `runs` and `candidate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from sqlalchemy import func, select

from cloud_hub.blobs import Blobs
from cloud_hub.building.request import BuildRequest
from cloud_hub.datasets.builds import Build, builds_of
from cloud_hub.errors import Unprocessable
from cloud_hub.registry import ModelFile, ModelVersion, Registry
from cloud_hub.retraining.plan import RetrainPlan
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import assignments, modules
from modules.manifest import Health, Manifest, Runtime


@dataclass(frozen=True)
class Champion:
    """`builds` are its modules by manifest digest, one per profile."""

    model: ModelVersion
    builds: Mapping[str, Build]

    @property
    def manifest(self) -> Manifest:
        """Any: what answers are is the same for all profiles."""
        return next(iter(self.builds.values())).manifest

    @property
    def onnx(self) -> ModelFile:
        """The file that can be run here. Raises Unprocessable `not-comparable` where the module is more than that."""
        runtime = self.manifest.runtime
        plain = (
            runtime.kind == "process"
            and runtime.backend == "onnx"
            and not (runtime.stages or runtime.before or runtime.after or runtime.entry or runtime.container)
        )
        if not plain:
            raise Unprocessable(
                "not-comparable",
                f"{self.model.name}:{self.model.version}: expected a module that is one ONNX model; the hub runs "
                "neither scripts nor chains nor images, so it cannot compare it with a candidate",
            )
        return self.model.file(runtime.model)


class Champions:
    def __init__(self, store: Store, blobs: Blobs, registry: Registry) -> None:
        self._store, self._blobs, self._registry = store, blobs, registry

    async def find(self, plan: RetrainPlan, version: int = 0) -> Champion:
        """The version said, the plan's, the one that most devices are to have, or the newest signed one.

        Raises NotFound (`module-not-found`, `model-not-found`).
        """
        number = version or plan.champion or await self._assigned(plan.module) or await self._signed(plan.module)
        builds = await builds_of(self._store, self._blobs, plan.module, number)
        newest = next(iter(builds.values())).version
        of_version = {sha256: build for sha256, build in builds.items() if build.version == newest}
        return Champion(await self._registry.get(plan.module, newest), of_version)

    async def _assigned(self, module: str) -> int:
        query = (
            select(assignments.c.version)
            .where(assignments.c.module == module, assignments.c.role == "main")
            .group_by(assignments.c.version)
            .order_by(func.count().desc(), assignments.c.version.desc())
            .limit(1)
        )
        async with self._store.read() as connection:
            return int((await connection.execute(query)).scalar_one_or_none() or 0)

    async def _signed(self, module: str) -> int:
        query = select(func.max(modules.c.version)).where(modules.c.name == module, modules.c.signed_at.is_not(None))
        async with self._store.read() as connection:
            return int((await connection.execute(query)).scalar_one() or 0)


def request_like(build: Build, version: int, model: str, reference: str, publisher: str) -> BuildRequest:
    """A build of another version for the same profile, with the champion's policies and labels.

    `model` is the path of the candidate's model, `reference` the digest of a sample of what it was trained on.
    """
    manifest = build.manifest
    health = msgspec.structs.replace(manifest.health, golden="")
    runtime = msgspec.structs.replace(manifest.runtime, model=model)
    labels = {spec.name: spec.labels for spec in (*manifest.inputs, *manifest.outputs) if spec.labels}
    return BuildRequest(
        model=manifest.name,
        version=version,
        profile=build.profile,
        reference=reference,
        labels=labels,
        sampling=manifest.sampling,
        health=None if health == Health() else health,
        resources=manifest.resources,
        runtime=None if runtime == Runtime(model=model) else runtime,
        publisher=publisher,
    )
