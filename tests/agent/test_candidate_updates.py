"""A candidate on its way to a device: tried, fed and committed like any module, while what serves is not touched."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator

import msgspec
import pytest

from agent.config import AgentConfig, StatePaths
from agent.installed import Installed, ModuleSet
from agent.slots import Slots
from agent.store import AgentStore
from agent.update.record import Ledger
from modules.messages import ModuleReport
from modules.targets import Mode
from modules.tensors import TensorSpec
from support.agents import AgentProcess, enrolled
from support.built import QUICK, Built, assemble, build, build_script, install
from support.edge import Edge, HubSide, running_edge
from support.hub import FakeHub
from support.mosquitto import Mosquitto
from support.predict import predict, served_version
from support.repository import World
from support.waiting import until

OLD, NEW = build(version=1), build(version=2)
CRASHES = "import os\ndef init():\n    pass\ndef predict(inputs):\n    os._exit(3)\n"


class Both(HubSide):
    """Directs the device to a version that serves, and to a candidate beside it."""

    async def beside(
        self, candidate: Built, mode: Mode = "shadow", share: float = 1.0, main: Built | None = OLD
    ) -> int:
        self.world.director.targets.signed.targets.clear()
        if main is not None:
            self.world.assign(self.world.add(main.manifest, main.files, main.manifest.version), "first")
        path = self.world.add(candidate.manifest, candidate.files, candidate.manifest.version)
        self.world.assign(path, "beside", mode=mode, share=share, salt="s")
        return await self.publish()

    async def alone(self, main: Built) -> int:
        self.world.director.targets.signed.targets.clear()
        self.world.assign(self.world.add(main.manifest, main.files, main.manifest.version), "first")
        return await self.publish()


@pytest.fixture
async def hub(broker: Mosquitto, state_dir: StatePaths) -> AsyncIterator[Both]:
    world = World()
    world.write_roots(state_dir.roots)
    async with FakeHub(broker, world.files) as hub:
        yield Both(world, hub)


@pytest.fixture
async def edge(
    hub: Both, agent_config: AgentConfig, state_dir: StatePaths, agent_store: AgentStore, broker: Mosquitto
) -> AsyncIterator[Edge]:
    """A device that runs version 1."""
    async with running_edge(agent_config, state_dir, agent_store, broker) as edge:
        assert await edge.ended(await hub.alone(OLD)) == "committed"
        yield edge


def pid(edge: Edge, key: str = "iris") -> int:
    unit = edge.keeper.unit(key)
    assert unit is not None
    assert unit._worker is not None
    return unit._worker.pid


def candidates(edge: Edge) -> list[ModuleReport]:
    return [report for report in edge.keeper.reports() if report.candidate]


async def test_a_shadow_is_verified_once_it_was_fed_enough_and_raises_no_counter(edge: Edge, hub: Both) -> None:
    before = pid(edge)
    asked = msgspec.structs.replace(QUICK, probation_inferences=20)
    version = await hub.beside(build(version=2, health=asked), share=0.5)
    address = await edge.address()

    async def traffic() -> None:
        while True:
            assert await predict(address) == [0]

    busy = asyncio.create_task(traffic())
    try:
        assert await edge.ended(version) == "committed"
    finally:
        busy.cancel()
        await asyncio.wait([busy])
    (report,) = candidates(edge)
    assert (report.version, report.verified, report.deployment, report.mode) == (2, True, "beside", "shadow")
    assert report.requests >= 10
    assert pid(edge) == before
    assert await served_version(address) == 1
    assert await edge.ledger.counters() == {"iris": 1}
    assert await edge.ended(await hub.alone(OLD)) == "committed"
    assert candidates(edge) == []
    assert not edge.attacks.all()


@pytest.mark.parametrize(
    ("candidate", "state", "key"),
    [
        (build(version=2, spoil_golden=True), "failed", "golden-mismatch"),
        (build_script(CRASHES, version=2), "reverting", "crashed"),
    ],
    ids=["golden", "crash"],
)
async def test_a_candidate_that_is_not_healthy_goes_and_what_serves_is_not_touched(
    edge: Edge, hub: Both, candidate: Built, state: str, key: str
) -> None:
    before, address = pid(edge), await edge.address()
    version = await hub.beside(candidate)
    answers = set[int]()

    async def traffic() -> None:
        while True:
            answers.update(await predict(address))

    busy = asyncio.create_task(traffic())
    try:
        assert await edge.ended(version) == state
    finally:
        busy.cancel()
        await asyncio.wait([busy])
    assert edge.ledger.last.reason_key == key
    assert edge.ledger.last.deployments == ("beside",)
    assert candidates(edge) == []
    assert pid(edge) == before
    assert answers <= {0}


async def test_what_cannot_run_beside_is_rejected_before_anything_is_fetched(edge: Edge, hub: Both) -> None:
    other = assemble("iris", 2, NEW.files, NEW.manifest.runtime, health=QUICK)
    inputs = (TensorSpec("X", "FP32", (-1, 5)),)
    manifest = msgspec.structs.replace(other.manifest, inputs=inputs)
    wide = Built(manifest, msgspec.json.encode(manifest, order="sorted"), other.files)
    assert await edge.ended(await hub.beside(wide)) == "rejected"
    assert edge.ledger.last.reason_key == "unlike-candidate"
    assert "X FP32 [-1, 4], got X FP32 [-1, 5]" in edge.ledger.last.reason
    assert await edge.ended(await hub.beside(NEW, main=None)) == "rejected"
    assert edge.ledger.last.reason_key == "lone-candidate"
    assert await served_version(await edge.address()) == 1


async def test_a_promoted_candidate_is_tried_again_as_what_serves(edge: Edge, hub: Both) -> None:
    assert await edge.ended(await hub.beside(NEW, "arm", 0.0)) == "committed"
    address = await edge.address()
    assert await served_version(address) == 1
    edge.states.clear()
    assert await edge.ended(await hub.alone(NEW)) == "committed"
    assert [state.value for state in edge.states][-4:] == ["activating", "probation", "committed", "idle"]
    assert await served_version(address) == 2
    assert candidates(edge) == []


async def test_another_share_or_mode_needs_no_trial(edge: Edge, hub: Both) -> None:
    assert await edge.ended(await hub.beside(NEW, "shadow")) == "committed"
    before = pid(edge), pid(edge, "iris.candidate")
    edge.states.clear()
    assert await edge.ended(await hub.beside(NEW, "arm", 0.25)) == "committed"
    assert "trying" not in [state.value for state in edge.states]
    assert (pid(edge), pid(edge, "iris.candidate")) == before
    (report,) = candidates(edge)
    assert (report.mode, report.share) == ("arm", 0.25)


@pytest.fixture
async def agent(agent_config: AgentConfig, state_dir: StatePaths, broker: Mosquitto) -> AsyncIterator[AgentProcess]:
    """An agent that has version 1 installed; not started."""
    enrolled(agent_config, state_dir, broker)
    given = state_dir.root / "given"
    install(Slots(state_dir.slots, given), OLD, given)
    shutil.rmtree(given)
    async with AgentStore(state_dir.database) as store:
        held = Installed("iris", 1, OLD.sha256, 1, "first", verified=True)
        await Ledger(store).commit(ModuleSet(0, 0, (held,)))
    process = AgentProcess(state_dir)
    yield process
    await process.kill()


@pytest.mark.parametrize(
    ("crash_at", "ending"),
    [
        ("trying:after", "committed"),
        ("activating:after", "reverting"),
    ],
)
async def test_a_power_cut_while_a_candidate_is_installed_leaves_what_serves(
    agent: AgentProcess, hub: Both, crash_at: str, ending: str
) -> None:
    await hub.beside(NEW)
    await agent.start(crash_at)
    assert await agent.exit_code() == -signal.SIGKILL, agent.tail()
    await agent.start()

    def main() -> ModuleReport | None:
        status = agent.status()
        found = [m for m in status.report.modules if not m.candidate] if status is not None else []
        return next((m for m in found if m.state == "serving"), None)

    await agent.until(lambda: main() is not None, "version 1 to serve")
    serving = main()
    assert serving is not None
    assert await served_version(serving.endpoint) == 1

    def ended() -> bool:
        status = agent.status()
        if status is None or status.report.current.state != "idle" or status.report.last.state != ending:
            return False
        beside = [m.state for m in status.report.modules if m.candidate]
        return beside == (["serving"] if ending == "committed" else [])

    await agent.until(ended, f"the update to end as {ending}")
    assert await predict(serving.endpoint) == [0]
    await until(lambda: main() is not None, "version 1 to serve still")
    assert await agent.stop() == 0, agent.tail()
