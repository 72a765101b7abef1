"""A hub with modules whose weights differ a little from version to version, and devices that report what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import insert

from cloud_hub.patch_settings import PatchSettings
from cloud_hub.patches import queue
from cloud_hub.patches.queue import Patch
from cloud_hub.patches.wishes import Wish, Wishes
from cloud_hub.store.tables import model_versions
from firmware_profiles.catalog import built_in
from firmware_profiles.profile import DeviceProfile
from modules.bundle import sha256_hex
from modules.messages import ModuleReport
from support.devices import EnrolledDevice, make_report
from support.trust import TrustWorld

MODULE = "digits"
_WEIGHTS = np.random.default_rng(7).normal(size=30_000).astype(np.float32)


def weights(version: int) -> bytes:
    """120 kB; from one version to the next every element moves by a thousandth."""
    return (_WEIGHTS * np.float32(1.001**version)).tobytes()


def digest(version: int) -> str:
    return sha256_hex(weights(version))


@dataclass
class Fleet:
    """Over the rooms of `world`; `manifests` by version."""

    world: TrustWorld
    settings: PatchSettings
    catalog: Mapping[str, DeviceProfile] = field(default_factory=built_in)
    manifests: dict[int, str] = field(default_factory=dict)
    devices: dict[str, EnrolledDevice] = field(default_factory=dict)
    counter: int = 0

    @property
    def wishes(self) -> Wishes:
        return Wishes(self.world.store, self.world.blobs, self.settings)

    async def release(self, version: int, content: bytes | None = None) -> None:
        """Registered, built and signed."""
        row = {"name": MODULE, "version": version, "datasets": [], "tags": {}, "created_at": 0.0}
        row |= dict.fromkeys(("description", "author", "git_commit", "training_run"), "")
        async with self.world.store.write() as connection:
            await connection.execute(insert(model_versions).values(**row))
        self.manifests[version] = await self.world.add_signed(MODULE, version, content or weights(version))

    async def device(self, name: str, holds: int) -> None:
        """Enrolled, and its report says what it holds."""
        self.devices[name] = await self.world.enrol(name)
        await self.report(name, holds)

    async def report(self, name: str, holds: int) -> None:
        self.counter += 1
        manifest = self.manifests.get(holds, "f" * 64)
        held = ModuleReport(MODULE, holds, manifest, holds, "r-1", "serving", verified=True)
        report = make_report(name, self.counter, modules=(held,))
        await self.world.devices.accept_report(name, self.devices[name].sign(report))

    async def wished(self) -> list[tuple[int, int, int, int]]:
        """Base version, version, devices, holders; in order."""
        return [(w.base_version, w.version, w.devices, w.holders) for w in await self.wishes.now()]

    async def patches(self) -> list[Patch]:
        async with self.world.store.read() as connection:
            return await queue.listed(connection, "", 100)

    async def take_in(self, wishes: list[Wish]) -> None:
        async with self.world.store.write() as connection:
            await queue.take_in(connection, wishes, 0.0)
