"""A fleet that runs version 1 of a module and waits at the gate of a rollout of version 2: real counts and alerts."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from sqlalchemy import insert, update

from cloud_hub.arms.comparisons import Comparisons
from cloud_hub.arms.gates import Gates
from cloud_hub.blobs import Blobs
from cloud_hub.desired import Assignment, Desired
from cloud_hub.events import Events
from cloud_hub.rollouts.controller import Controller
from cloud_hub.rollouts.gate import CompareGate
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices, modules
from firmware_profiles.profile import DeviceProfile
from modules.messages import DeviceReport, ModuleReport, UpdateReport
from support.clock import SetClock
from support.monitoring import LOOK_S, Array, Built, Monitored, build_module, make_window

IDS = tuple(f"cam-{number:03}" for number in range(8))
CANARIES = 4


class GatedFleet:
    """Eight devices that run version 1, version 2 signed, and a rollout to the first four with a gate behind them."""

    def __init__(self, store: Store, blobs: Blobs, events: Events, clock: SetClock) -> None:
        self.random = np.random.default_rng(23)
        self.monitored = Monitored(store, blobs, events, clock)
        self.store, self.clock, self.blobs = store, clock, blobs
        self.desired = Desired(store, clock)
        self.comparisons = Comparisons(store, self.monitored.references, clock, LOOK_S)
        self.rollouts = Controller(store, events, self.desired, self._ring, clock)
        self.gates = Gates(store, self.comparisons, self.rollouts, clock, LOOK_S)
        self.builds: dict[int, Built] = {}

    async def _ring(self, _versions: Mapping[str, int]) -> None:
        """Nobody hears it."""

    async def furnish(self) -> None:
        for version in (1, 2):
            self.builds[version] = await build_module(
                self.store, self.blobs, self.random.normal(size=(500, 2)), version
            )
        async with self.store.write() as connection:
            await connection.execute(update(modules).values(release_counter=1, signed_at=0.0))
            for device in IDS:
                row = {"id": device, "profile": "edge", "tags": {}, "certificate": "", "created_at": 0.0}
                await connection.execute(insert(devices).values(**row, director_version=1, report_counter=0))
                await self.desired.assign(connection, device, Assignment("digits", 1, "edge", "r0"))

    async def count(
        self, looks: int, versions: Mapping[str, int], errors: Mapping[int, float], shift: float = 0.0
    ) -> None:
        """So many looks of 200 rows on each device; with a `shift` the inputs of version 2 are other ones."""
        ends = [self.clock() + LOOK_S * (look + 1) for look in range(looks)]
        self.clock.advance(LOOK_S * looks)
        for device, version in versions.items():
            windows = [make_window(self.builds[version], self._rows(version, shift), end) for end in ends]
            failed = self.random.binomial(200, errors[version], looks).tolist()
            await self.monitored.send(
                device, *(msgspec.structs.replace(w, errors=count) for w, count in zip(windows, failed, strict=True))
            )

    def _rows(self, version: int, shift: float) -> Array:
        return self.random.normal(shift if version == 2 else 0.0, size=(200, 2))

    async def canaries(self, gate: CompareGate | None = None, **plan: object) -> str:
        """A rollout whose first group has the candidate, verified."""
        new = NewRollout("digits", 2, "all", groups=(str(CANARIES), "rest"), gate=gate, start=True)
        status = await self.rollouts.create(msgspec.structs.replace(new, **plan), "ann")
        rollout = status.rollout.id
        for part in status.executions:
            if part.group_index == 0:
                await self.verified(part.device, rollout)
        return rollout

    async def verified(self, device: str, rollout: str) -> None:
        module = ModuleReport("digits", 2, self.builds[2].manifest_sha256, 2, rollout, "serving", True)
        idle, profile = UpdateReport("idle"), DeviceProfile("edge", "x86_64")
        await self.rollouts.on_report(
            device, DeviceReport(device, 1, self.clock(), "0.2.0", profile, 2, 1, (module,), idle, idle)
        )

    def running(self, canaries: int = CANARIES) -> dict[str, int]:
        return {device: 2 if place < canaries else 1 for place, device in enumerate(IDS)}
