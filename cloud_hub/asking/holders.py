"""Which devices hold a module, and by which sampling policy: the director's for the device, or else the manifest's.

Used by `commands` and `policies`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, and_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.agents import agent_version, older
from cloud_hub.blobs import Blobs
from cloud_hub.desired import MAIN, Assignment, to_assignment
from cloud_hub.query import DeviceFacts
from cloud_hub.store.bulk import in_slices
from cloud_hub.store.tables import assignments, devices, modules
from modules.manifest import NEWER_AGENT, Manifest, SamplingPolicy, decode_manifest
from modules.windows import decode_reference


@dataclass(frozen=True)
class Holder:
    """A device that shall have the module. `policy` is what counts there, `own` whether it is the device's own;
    `features` are the names in the module's reference profile.
    """

    device: str
    facts: DeviceFacts
    assignment: Assignment
    manifest: Manifest
    agent_version: str
    features: frozenset[str] = frozenset()

    @property
    def own(self) -> bool:
        return self.assignment.sampling is not None

    @property
    def policy(self) -> SamplingPolicy:
        return self.assignment.sampling or self.manifest.sampling

    @property
    def outdated(self) -> bool:
        """Whether its agent knows nothing of what is new in version 0.2."""
        return older(self.agent_version, NEWER_AGENT)


async def holders(
    connection: AsyncConnection, blobs: Blobs, module: str, wanted: Collection[str] | None = None
) -> list[Holder]:
    """By device id; with `wanted` only those. Devices whose build is gone are left out."""
    found: list[Holder] = []
    manifests: dict[str, tuple[Manifest, frozenset[str]]] = {}
    slices: list[Sequence[str] | None] = [None] if wanted is None else list(in_slices(sorted(wanted)))
    for some in slices:
        query = _query(module)
        for row in await connection.execute(query if some is None else query.where(devices.c.id.in_(some))):
            if row.manifest_sha256 not in manifests:
                manifest = decode_manifest(await blobs.read(row.manifest_sha256))
                manifests[row.manifest_sha256] = manifest, await _features(blobs, manifest)
            manifest, features = manifests[row.manifest_sha256]
            found.append(
                Holder(
                    row.device,
                    DeviceFacts(row.device, row.device_profile, row.tags),
                    to_assignment(row),
                    manifest,
                    agent_version(row.report),
                    features,
                )
            )
    return found


async def _features(blobs: Blobs, manifest: Manifest) -> frozenset[str]:
    if not manifest.reference:
        return frozenset()
    profile = decode_reference(await blobs.read(manifest.file(manifest.reference).sha256))
    return frozenset(feature.name for feature in profile.features)


def _query(module: str) -> Select[Any]:
    built = and_(
        modules.c.name == assignments.c.module,
        modules.c.version == assignments.c.version,
        modules.c.profile == assignments.c.profile,
    )
    return (
        select(
            assignments,
            devices.c.profile.label("device_profile"),
            devices.c.tags,
            devices.c.report,
            modules.c.manifest_sha256,
        )
        .select_from(assignments.join(devices, devices.c.id == assignments.c.device).join(modules, built))
        .where(assignments.c.module == module, assignments.c.role == MAIN, devices.c.retired_at.is_(None))
        .order_by(assignments.c.device)
    )
