"""A running fleet: makes the devices, turns the timer wheel, verifies the chain once for all, and ends in order.

Called by `run` (the command) and by tests. One process, one loop: everything here is called on it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import msgspec

from cloud_hub.simulator.counts import Summary
from cloud_hub.simulator.device import Device, learn
from cloud_hub.simulator.facts import Untrusted
from cloud_hub.simulator.ground import Asker, Ground
from cloud_hub.simulator.identity import Identity, Tls, new_key
from cloud_hub.simulator.profile import Group, Profile, place
from cloud_hub.simulator.state import DeviceState
from cloud_hub.simulator.trust import Trust
from cloud_hub.simulator.walk import Unanswered
from firmware_profiles.profile import DeviceProfile
from modules.errors import ModuleError
from modules.messages import ModuleReport

LEAVE_S = 5.0
VERIFY_TRIES = 20
VERIFY_PAUSE_S = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """What enrolment tells every device alike: the broker, whom to trust, and the profile that all enrolled with."""

    host: str
    port: int
    server_ca: str
    image_root: str
    director_root: str
    hardware: DeviceProfile


@dataclass
class Member:
    """An enrolled device, and what it knows from an earlier run."""

    identity: Identity
    state: DeviceState


class Fleet:
    """`async with Fleet(place, members, profile)`: the devices connect, and live until the end."""

    def __init__(self, place: Place, members: Sequence[Member], profile: Profile) -> None:
        self._place, self._members, self.profile = place, members, profile
        self._wheel_task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: list[Asker] = []
        self._learning: set[str] = set()
        self._began = self._cpu = 0.0
        self.devices: list[Device] = []

    async def __aenter__(self) -> Self:
        place_, profile = self._place, self.profile
        family, address = await _resolved(place_.host, place_.port)
        trust = Trust(place_.image_root.encode(), place_.director_root.encode())
        self.ground = Ground(profile, place_.hardware, place_.host, address, Tls(place_.server_ca), trust, family)
        self.ground.verify, self.ground.learn = self._verify, self._learn
        self.ground.poller.open()
        self._began, self._cpu = time.monotonic(), time.process_time()
        groups = place(profile, len(self._members))
        for member, group in zip(self._members, groups, strict=True):
            self._add(member, group)
        spread = random.Random(profile.seed)
        for device in self.devices:
            device.start(spread.uniform(0.0, len(self.devices) / profile.connect_per_s))
        self._wheel_task = asyncio.create_task(self._turn(), name="simulator-wheel")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [*self._tasks, *([self._wheel_task] if self._wheel_task is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LEAVE_S)
        for device in self.devices:
            device.leave()
        self.ground.poller.close()
        self.ground.tls.close()

    @property
    def summary(self) -> Summary:
        seconds, cpu = time.monotonic() - self._began, time.process_time() - self._cpu
        return self.ground.counts.summary(len(self.devices), seconds, cpu)

    def changed(self) -> list[Member]:
        """Whose state is another than at the last call."""
        found = []
        for device in self.devices:
            if device.unsaved and not device.clone:
                device.unsaved = False
                found.append(Member(device.identity, device.state))
        return found

    def _add(self, member: Member, group: Group | None) -> None:
        device = Device(self.ground, member.identity, member.state, group)
        self.devices.append(device)
        if group is not None and group.lie == "other-key":
            device.signer = Identity(member.identity.device, member.identity.certificate, new_key())
        if group is not None and group.clone:
            state = msgspec.structs.replace(member.state)
            self.devices.append(Device(self.ground, member.identity, state, group, clone=True))

    async def _turn(self) -> None:
        wheel, counts = self.ground.wheel, self.ground.counts
        asked = 0.0
        while True:
            began = time.monotonic()
            asked = wheel.turn(began)
            await asyncio.sleep(asked)
            counts.late_s = max(counts.late_s, time.monotonic() - began - asked)

    # --- once for all ------------------------------------------------------------------------------------------
    def _verify(self, device: Asker) -> None:
        """Calls `device.verified` when the chain has been verified, over whichever connection."""
        self._waiting.append(device)
        if len(self._waiting) == 1:
            self._spawn(self._verified(), "simulator-verify")

    async def _verified(self) -> None:
        failure = "nobody is connected"
        for _ in range(VERIFY_TRIES):
            asker = next((device for device in self.devices if device.session.up), None)
            try:
                if asker is not None:
                    await self.ground.trust.verify(asker.ask)
                    failure = ""
                    break
            except (Untrusted, Unanswered, TimeoutError) as error:
                failure = str(error) or type(error).__name__
                log.warning("the hub's metadata could not be verified, trying again: %s", failure)
            await asyncio.sleep(VERIFY_PAUSE_S)
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.verified(failure)

    def _learn(self, device: Asker, module: ModuleReport) -> None:
        """Has this device fetch what its module's windows are drawn from, unless another does."""
        digest = module.manifest_sha256
        if digest not in self._learning and digest not in self.ground.draws:
            self._learning.add(digest)
            self._spawn(self._learned(device, module), "simulator-learn")

    async def _learned(self, device: Asker, module: ModuleReport) -> None:
        try:
            self.ground.draws[module.manifest_sha256] = await learn(device.ask, module)
        except (Unanswered, ModuleError) as error:
            self.ground.counts.errors[f"no reference: {error}"[:80]] += 1
        finally:
            self._learning.discard(module.manifest_sha256)

    def _spawn(self, work: object, name: str) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _resolved(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Once for all devices. Raises OSError."""
    loop = asyncio.get_running_loop()
    family, _, _, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
    return family, (str(address[0]), int(address[1]))
