"""A device in this process: real link, trust, fetch, keeper and update engine, without the service around them.

The hub is a `World` behind a `FakeHub`. Tests deploy modules, spoil one thing, and watch where the update ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from agent.config import AgentConfig, ServingSettings, StatePaths, UpdateLimits
from agent.installed import PROCESS, of_kind
from agent.link import Link
from agent.news import Level
from agent.runtimes.keeper import Keeper
from agent.runtimes.process import ProcessRuntime
from agent.slots import Slots
from agent.store import AgentStore
from agent.transfer.fetch import Fetcher
from agent.trust import Verifier, build_trust
from agent.update.attacks import Attacks
from agent.update.bell import Bell
from agent.update.engine import Engine
from agent.update.kinds import Kinds
from agent.update.processes import Processes
from agent.update.record import Ledger
from agent.update.states import State
from agent.update.steps import Steps
from modules.messages import Doorbell
from support.built import Built
from support.hub import FakeHub
from support.links import make_link, running
from support.mosquitto import Mosquitto
from support.repository import World
from support.waiting import until

SERVING = ServingSettings(confine=False, drain_s=3.0, ping_every_s=0.2, restart_first_s=0.01, restart_ceiling_s=0.05)
UPDATE = UpdateLimits(retry_first_s=0.02, retry_ceiling_s=0.05, max_attempts=2)


_WORK = {State.FETCHING: "fetch", State.VERIFYING: "verify", State.STAGING: "stage", State.TRYING: "try_out"}


class HubSide:
    """What a hub would do: sign, direct, ring."""

    def __init__(self, world: World, hub: FakeHub) -> None:
        self.world, self.hub = world, hub
        self.counter = 0

    async def deploy(self, *modules: Built, deployment: str = "rollout-1", **changed: Any) -> int:
        """Lets the device want exactly these modules; the director's version. `changed` are DirectorCustom's."""
        self.world.director.targets.signed.targets.clear()
        for module in modules:
            self.counter += 1
            path = self.world.add(module.manifest, module.files, self.counter)
            self.world.assign(path, deployment, **changed)
        return await self.publish()

    async def publish(self) -> int:
        self.world.publish()
        self.hub.files.update(self.world.files)
        version: int = self.world.director.targets.signed.version
        await self.hub.ring(self.world.device, version)
        return version


class Held:
    """A state whose work waits before it begins, so that a test can do something meanwhile."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.cancelled = False

    async def wait(self) -> None:
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


class Edge:
    """The rooms of one device; `states` are those that the machine has entered, in order."""

    def __init__(self, config: AgentConfig, paths: StatePaths, store: AgentStore, link: Link) -> None:
        self.link, self.paths = link, paths
        self.states: list[State] = []
        self.slots, self.ledger, self.attacks = Slots(paths.slots), Ledger(store), Attacks(store)
        self.runtime = ProcessRuntime(paths, SERVING, store, self.slots, lambda stream, payload: None)
        self.told: list[tuple[str, str]] = []  # keys and words of what an operator would see
        self.keeper = Keeper(self.runtime, SERVING, lambda: None, self._tell, lambda: self.bell.ask())
        self.verifier = Verifier(build_trust(paths, config.device, config.profile.name, time.time), link)
        self.fetcher = Fetcher(link, paths.staging, config.fetch, self.slots.find)
        kinds = Kinds({PROCESS: Processes(self.keeper, self.slots, UPDATE)})
        self.steps = Steps(config, paths, self.verifier, self.fetcher, self.slots, kinds)
        self.bell = Bell(UPDATE, link.connected)
        self.engine = Engine(self.ledger, self.steps, self.attacks, self.bell, UPDATE, self._changed, tell=self._tell)
        link.on_doorbell(self._ring)

    async def ended(self, version: int, deadline_s: float = 30.0) -> str:
        """Waits for the last word about an update; its state."""
        await until(
            lambda: self.ledger.last.director_version >= version and self.ledger.record.state is State.IDLE,
            f"the update to version {version} to end (it is {self.ledger.record.state}: {self.ledger.record.reason})",
            deadline_s,
        )
        return self.ledger.last.state

    def hold(self, state: State) -> Held:
        """From now on, one time."""
        held, name = Held(), _WORK[state]
        work = getattr(self.steps, name)

        async def held_work(*arguments: Any) -> None:
            setattr(self.steps, name, work)
            await held.wait()
            await work(*arguments)

        setattr(self.steps, name, held_work)
        return held

    async def address(self, name: str = "iris") -> str:
        def serves() -> bool:
            return any(r.name == name and r.state == "serving" for r in self.keeper.reports())

        await until(serves, f"{name} to serve")
        return self.runtime.address(name)

    def _tell(self, level: Level, key: str, text: str, module: str = "") -> None:
        self.told.append((key, text))

    def _changed(self) -> None:
        if self.states[-1:] != [self.ledger.record.state]:
            self.states.append(self.ledger.record.state)

    def _ring(self, doorbell: Doorbell) -> None:
        self.bell.ring(doorbell.director_version)


@asynccontextmanager
async def running_edge(
    config: AgentConfig, paths: StatePaths, store: AgentStore, broker: Mosquitto, *, online: bool = True
) -> AsyncIterator[Edge]:
    """Started as the service would, and drained at the end."""
    async with running(make_link(broker), wait=online) as link:
        edge = Edge(config, paths, store, link)
        await edge.keeper.start(of_kind(await edge.engine.open(), PROCESS))
        task = asyncio.create_task(edge.engine.run(), name="engine")
        try:
            yield edge
        finally:
            task.cancel()
            await asyncio.wait([task])
            await edge.keeper.close()
            edge.verifier.close()
            edge.fetcher.close()
