"""A whole Mooring on this machine, as its users run it: a hub with its broker, and devices, each a real process.

Set up by commands, asked over the API, looked at through `status.json`. Modules are small (iris), looks, windows and
probation short. One hub serves all tests of this folder; each test enrols devices of its own.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from agent.config import (
    AgentConfig,
    FetchLimits,
    LinkLimits,
    OutboxLimits,
    ReportLimits,
    ServingSettings,
    StatePaths,
    UpdateLimits,
)
from agent.report import Status, read_status
from cloud_hub.building.request import BuildRequest
from cloud_hub.claims import NewToken
from cloud_hub.config import HubConfig
from cloud_hub.monitoring.samples import SampleQuery
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.demo.fleet import AgentProcess, HubProcess, local_profile
from cloud_hub.operator.demo.processes import command, once, until
from cloud_hub.operator.errors import HubUnreachable
from cloud_hub.registry import NewModel
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.states import ENDED, Execution, RolloutState
from cloud_hub.rollouts.status import RolloutStatus
from modules.manifest import Health, SamplingPolicy
from modules.messages import ModuleReport
from support.built import iris, rows
from support.waiting import until_async

PROFILE = local_profile()
MODEL = "iris"
HEALTH = Health(probation_s=0.5, probation_deadline_s=30.0)
EVERYTHING = SamplingPolicy(rate=1.0, window_s=0.5)
DEADLINE_S = 45.0
# A fleet waits a minute between two tries to reach its hub; a test does not.
LINK = LinkLimits(reconnect_first_s=0.1, reconnect_ceiling_s=0.5, unheard_s=5.0)
FETCH = FetchLimits(chunk_timeout_s=2.0)
OVER_MQTT = FetchLimits(chunk_timeout_s=2.0, transports=("mqtt",))  # where a relay is to see every byte
OUTBOX = OutboxLimits(lazy_commit_s=0.1, forget_s=0.1, ack_timeout_s=2.0)
UPDATE = UpdateLimits(retry_first_s=0.05, retry_ceiling_s=0.2, max_attempts=2)
SERVING = ServingSettings(ping_every_s=0.5, restart_first_s=0.05, restart_ceiling_s=0.5)
REPORT = ReportLimits(debounce_s=0.05)


class Device(AgentProcess):
    """A device of a test, and what it says about itself in its status file. `deadline_s` bounds each wait for it."""

    def __init__(self, name: str, folder: Path, program: Sequence[str] = (), deadline_s: float = DEADLINE_S) -> None:
        super().__init__(name, folder, program)
        self.deadline_s = deadline_s

    @property
    def paths(self) -> StatePaths:
        return StatePaths(self.state)

    def configure(self, **changed: Any) -> None:
        """Changes agent.toml; to be called before a start."""
        config = msgspec.structs.replace(AgentConfig.load(self.paths), **changed)
        self.paths.config.write_text(config.to_toml())

    def status(self) -> Status | None:
        """What this process, not one before it, has last written."""
        status = read_status(self.paths.status)
        return status if status is not None and status.pid == self.service.pid else None

    def module(self, name: str = MODEL) -> ModuleReport | None:
        status = self.status()
        return next((m for m in status.report.modules if m.name == name), None) if status else None

    async def until(self, what: str, condition: Callable[[Status], bool]) -> Status:
        """Waits until the device says so; what it said."""
        found: list[Status] = []

        def so() -> bool:
            status = self.status()
            if status is not None and condition(status):
                found.append(status)
            return bool(found)

        await until(f"{self.name}: {what}", so, self.deadline_s, self.service)
        return found[-1]

    async def serves(self, version: int, name: str = MODEL) -> str:
        """Waits until this version of the module serves; its address."""

        def so(status: Status) -> bool:
            modules = status.report.modules
            return any((m.name, m.version, m.state) == (name, version, "serving") for m in modules)

        status = await self.until(f"{name} version {version} serves", so)
        return next(m.endpoint for m in status.report.modules if m.name == name)

    def waiting(self, stream: str = "") -> list[bytes]:
        """Items of the outbox that are on the device's disk and not acknowledged; also of one that was killed."""
        with closing(sqlite3.connect(f"file:{self.paths.database}?mode=ro", uri=True)) as connection:
            found = connection.execute("select payload from outbox where ? in (stream, '') order by seq", (stream,))
            return [payload for (payload,) in found]

    def attacks(self) -> dict[str, int]:
        status = self.status()
        return {attack.key: attack.count for attack in status.report.attacks} if status else {}

    async def ask(self, *arguments: str) -> str:
        """What `mooring-agent` prints about this device. Raises ProcessFailed unless its status is 0."""
        return await once([command("mooring-agent"), *arguments, "--state", str(self.state)])


class World:
    """The hub, what it is asked to do, and what befalls it. `deadline_s` bounds each wait and each update."""

    def __init__(self, folder: Path, hub: HubProcess, client: HubClient, deadline_s: float = DEADLINE_S) -> None:
        self.folder, self.hub, self.client, self.deadline_s = folder, hub, client, deadline_s

    # --- releases -----------------------------------------------------------------------------------------------
    async def release(
        self, seed: int, *, name: str = MODEL, health: Health = HEALTH, extra: Mapping[str, bytes] | None = None
    ) -> int:
        """A classifier of iris, registered with files beside it, built for this machine and signed; its version."""
        files = {"model.onnx": iris(seed), **(extra or {})}
        folder = self.folder / f"release-{name}-{seed}"
        folder.mkdir(exist_ok=True)
        for path, data in files.items():
            (folder / path).write_bytes(data)
        np.savez(folder / "training.npz", X=rows(150))
        registered = await self.client.register(NewModel(name), {path: folder / path for path in files})
        reference = await self.client.upload(folder / "training.npz")
        request = BuildRequest(
            name, registered.version, PROFILE, reference=reference.sha256, sampling=EVERYTHING, health=health
        )
        await self.client.build(request)
        await self.client.sign(name, registered.version, PROFILE)
        return registered.version

    # --- devices ------------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def device(
        self, name: str, *, start: bool = True, tags: Mapping[str, str] | None = None, program: Sequence[str] = ()
    ) -> AsyncIterator[Device]:
        """Enrolled, with short waits, and running; `program` is another release's agent."""
        device = Device(name, self.folder, program, self.deadline_s)
        token = await self.client.create_token(NewToken(device=device.name, tags=dict(tags or {})))
        await device.enrol(self.client.context.url, token, PROFILE)
        if not program:  # another release knows other settings
            device.configure(link=LINK, fetch=FETCH, outbox=OUTBOX, update=UPDATE, serving=SERVING, report=REPORT)
        try:
            if start:
                await device.start()
                await device.until("connected", lambda status: status.link.connected)
            yield device
        finally:
            await device.service.stop()

    # --- rollouts -----------------------------------------------------------------------------------------------
    async def order(self, device: Device, version: int, name: str = MODEL) -> str:
        """Begins a rollout to this device alone; its id."""
        new = NewRollout(name, version, f"id={device.name}", ("rest",), device_deadline_s=self.deadline_s, start=True)
        return (await self.client.create_rollout(new)).rollout.id

    async def ended(self, rollout: str) -> tuple[RolloutState, Execution]:
        """Waits for the end; how it ended, and for its first device."""
        status = await self.outcome(rollout)
        return status.rollout.state, status.executions[0]

    async def outcome(self, rollout: str) -> RolloutStatus:
        """Waits for the end of the rollout."""
        found: list[RolloutStatus] = []

        async def so() -> bool:
            try:
                found.append(await self.client.rollout(rollout))
            except HubUnreachable:
                return False
            return found[-1].rollout.state in ENDED

        await until_async(so, f"rollout {rollout} to end", self.deadline_s)
        return found[-1]

    async def roll_out(self, device: Device, version: int, name: str = MODEL) -> str:
        """To this device, until it is verified; the address that serves."""
        state, execution = await self.ended(await self.order(device, version, name))
        assert state is RolloutState.FINISHED, execution
        return await device.serves(version, name)

    # --- what came back -----------------------------------------------------------------------------------------
    async def counted(self, device: Device, version: int, name: str = MODEL) -> int:
        """Rows of all windows that the hub has of this version on this device."""
        looks = await self.client.windows(name, version, device.name, limit=500)
        return sum(look.rows for look in looks)

    async def sampled(self, device: Device, name: str = MODEL) -> list[str]:
        """Prediction ids of all samples that the hub has of this device, as often as it has them."""
        ids: list[str] = []
        query = SampleQuery(module=name, device=device.name, limit=500)
        while page := await self.client.samples(query):
            ids += [row.prediction_id for row in page]
            query = msgspec.structs.replace(query, after=page[-1].id)
        return ids

    async def until(self, what: str, condition: Callable[[], Awaitable[bool]]) -> None:
        """Waits; a hub that does not answer is not yet what was wished for."""

        async def so() -> bool:
            try:
                return await condition()
            except HubUnreachable:
                return False

        await until_async(so, what, self.deadline_s)

    async def arrived(self, device: Device, versions: tuple[int, ...], ids: list[str], name: str = MODEL) -> None:
        """Waits until as many rows and samples have come as there are ids, then checks that they are those, once."""

        async def all_there() -> bool:
            counted = [await self.counted(device, version, name) for version in versions]
            return sum(counted) >= len(ids) and len(await self.sampled(device, name)) >= len(ids)

        await self.until(f"{len(ids)} rows and samples of {device.name} to arrive", all_there)
        # What is doubled would come with or after the rest: nothing may be left on the device.
        await until("nothing waits on the device", lambda: not device.waiting(), self.deadline_s, device.service)
        assert sorted(await self.sampled(device, name)) == sorted(ids)
        assert sum([await self.counted(device, version, name) for version in versions]) == len(ids)

    @property
    def mqtt_port(self) -> int:
        return HubConfig.load(self.hub.folder).mqtt_port

    # --- faults -------------------------------------------------------------------------------------------------
    def broker_pid(self) -> int:
        """Raises LookupError while there is none."""
        for pid in _children(self.hub.service.pid):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "mosquitto":
                return pid
        raise LookupError("the hub has no broker now")

    async def kill_broker(self) -> None:
        """As a crash would; returns when the hub has started another."""
        before = self.broker_pid()
        os.kill(before, signal.SIGKILL)

        def another() -> bool:
            try:
                return self.broker_pid() != before
            except (LookupError, FileNotFoundError):
                return False

        await until("the hub restarts its broker", another, self.deadline_s, self.hub.service)

    async def kill_hub(self) -> None:
        """As a power cut would, the broker with it; started again with `hub.start`."""
        await self.hub.service.kill()

    async def ensure_up(self) -> None:
        """For the next test, whatever the last one did."""
        try:
            await self.client.health()
        except HubUnreachable:
            await self.hub.service.kill()
            await self.hub.start()


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]
