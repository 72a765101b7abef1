"""Devices of a rollout as their reports, on a real database: what they say is written down here, nothing runs."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from sqlalchemy import insert, select, update

from cloud_hub.desired import Desired
from cloud_hub.events import Events
from cloud_hub.rollouts.controller import Controller
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.status import RolloutStatus
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices, modules
from firmware_profiles.profile import DeviceProfile
from modules.messages import DeviceReport, ModuleReport, UpdateReport, encode_report
from support.clock import SetClock

PROFILE = "generic-x86_64"
DIGESTS = {1: "1" * 64, 2: "2" * 64}


class Fleet:
    """Five devices of one profile, one of another; digits 1 and 2 built and signed; a bell that is written down."""

    def __init__(self, store: Store, events: Events, clock: SetClock) -> None:
        self.store, self.clock, self.events = store, clock, events
        self.rung: list[tuple[str, int]] = []
        self.desired = Desired(store, clock)
        self.rollouts = self.restarted()
        self.counter = 0

    def restarted(self) -> Controller:
        """Another process on the same database."""
        return Controller(self.store, self.events, self.desired, self._ring, self.clock)

    async def _ring(self, versions: Mapping[str, int]) -> None:
        # The ring comes after the commit: what it announces can be read.
        async with self.store.read() as connection:
            for device, version in versions.items():
                query = select(devices.c.director_version).where(devices.c.id == device)
                assert (await connection.execute(query)).scalar_one() == version
        self.rung += versions.items()

    async def furnish(self) -> None:
        async with self.store.write() as connection:
            for number in range(1, 6):
                await connection.execute(insert(devices).values(**device_row(f"cam-{number}00", PROFILE, "lab")))
            await connection.execute(insert(devices).values(**device_row("pi-100", "raspberry-pi-5", "lab")))
            for version, digest in DIGESTS.items():
                await connection.execute(insert(modules).values(**module_row(version, digest, version)))

    async def create(self, **changes: object) -> RolloutStatus:
        new = NewRollout("digits", 2, f"profile={PROFILE}", groups=("1", "50%", "rest"), device_deadline_s=600)
        return await self.rollouts.create(msgspec.structs.replace(new, **{"start": True, **changes}), "ann")

    def report(self, device: str, **changes: object) -> DeviceReport:
        self.counter += 1
        profile = DeviceProfile(PROFILE, "x86_64")
        idle = UpdateReport("idle")
        report = DeviceReport(device, self.counter, self.clock(), "0.1.0", profile, 2, 1, (), idle, idle)
        return msgspec.structs.replace(report, **changes)

    async def verified(self, device: str, deployment: str, version: int = 2) -> None:
        module = ModuleReport("digits", version, DIGESTS[version], version, deployment, "serving", True)
        await self.say(self.report(device, modules=(module,)))

    async def failed(self, device: str, deployment: str) -> None:
        last = UpdateReport("failed", 99, (deployment,), reason_key="golden-mismatch", reason="case 3 differs")
        await self.say(self.report(device, last=last))

    async def say(self, report: DeviceReport) -> None:
        await self.store_report(report)
        await self.rollouts.on_report(report.device, report)

    async def store_report(self, report: DeviceReport) -> None:
        async with self.store.write() as connection:
            change = update(devices).where(devices.c.id == report.device)
            await connection.execute(change.values(report=encode_report(report), report_counter=report.counter))

    async def assigned(self, device: str) -> list[tuple[int, str]]:
        return [(a.version, a.deployment) for a in await self.desired.of(device)]

    async def stands(self, rollout_id: str) -> dict[str, str]:
        return {e.device: str(e.state) for e in (await self.rollouts.get(rollout_id)).executions}


def device_row(device: str, profile: str, site: str) -> dict[str, object]:
    return {
        "id": device,
        "profile": profile,
        "tags": {"site": site},
        "certificate": "",
        "created_at": 0.0,
        "director_version": 1,
        "report_counter": 0,
    }


def module_row(version: int, digest: str, counter: int | None, profile: str = PROFILE) -> dict[str, object]:
    return {
        "name": "digits",
        "version": version,
        "profile": profile,
        "publisher": "dev",
        "manifest_sha256": digest,
        "manifest_size": 10,
        "size": 100,
        "release_counter": counter,
        "created_at": 0.0,
        "signed_at": None if counter is None else 0.0,
    }
