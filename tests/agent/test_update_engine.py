"""The update machine on a real broker with real modules: where each update ends, and what serves meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import msgspec
import pytest

from agent.config import AgentConfig, StatePaths
from agent.installed import ModuleSet
from agent.store import AgentStore
from agent.update.states import State
from firmware_profiles.profile import Requirements
from modules.manifest import SamplingPolicy
from modules.messages import Answer, Get
from support.built import QUICK, Built, build, build_script
from support.edge import Edge, HubSide, running_edge
from support.hub import FakeHub, Reply
from support.mosquitto import Mosquitto
from support.predict import predict, served_version, status_of
from support.repository import World
from support.waiting import until, until_async

CRASHES = (
    "import os, threading\n"
    "def init():\n    threading.Timer(0.6, lambda: os._exit(7)).start()\n"
    "def predict(inputs):\n    return {}\n"
)
SOMETIMES = (
    "def init():\n    pass\n"
    "def predict(inputs):\n"
    "    rows = len(inputs['X'])\n"
    "    if rows > 2:\n        raise ValueError('no')\n"
    "    return {'label': [1] * rows, 'probabilities': [[1.0, 0.0, 0.0]] * rows}\n"
)
FAILS = "def init():\n    pass\ndef predict(inputs):\n    raise ValueError('always')\n"
SLOW_TO_LOAD = "import time\ndef init():\n    time.sleep(600)\ndef predict(inputs):\n    return {}\n"
CONFIGURED = (
    "import json, os\n"
    "wanted = json.loads(os.environ['MOORING_CONFIG'])\n"
    "def init():\n    assert wanted.get('ok', True)\n"
    "def predict(inputs):\n"
    "    rows = len(inputs['X'])\n"
    "    return {'label': [wanted.get('label', 7)] * rows, 'probabilities': [[0.0, 0.0, 1.0]] * rows}\n"
)
LONG = msgspec.structs.replace(QUICK, probation_s=3600.0, probation_deadline_s=7200.0)


@pytest.fixture
async def hub(broker: Mosquitto, state_dir: StatePaths) -> AsyncIterator[HubSide]:
    world = World()
    world.write_roots(state_dir.roots)
    async with FakeHub(broker, world.files) as hub:
        yield HubSide(world, hub)


@pytest.fixture
async def edge(
    hub: HubSide, agent_config: AgentConfig, state_dir: StatePaths, agent_store: AgentStore, broker: Mosquitto
) -> AsyncIterator[Edge]:
    async with running_edge(agent_config, state_dir, agent_store, broker) as edge:
        yield edge


@pytest.fixture
async def updated(edge: Edge, hub: HubSide) -> Edge:
    """A device that runs version 1."""
    assert await edge.ended(await hub.deploy(build(version=1))) == "committed"
    assert await served_version(await edge.address()) == 1
    edge.states.clear()
    return edge


async def _asked(edge: Edge, address: str, version: int) -> bool:
    await status_of(address, count=3)
    return edge.ledger.last.director_version >= version


async def refused(edge: Edge, hub: HubSide, module: Built, state: str, key: str) -> None:
    """Deploys what must not stay; the old version serves at the end, and the reason is kept."""
    assert await edge.ended(await hub.deploy(module, deployment="bad")) == state
    assert edge.ledger.last.reason_key == key, edge.ledger.last.reason
    assert edge.ledger.last.deployments == ("bad",)
    assert await served_version(await edge.address()) == 1
    assert [m.version for m in edge.ledger.current.modules] == [1]
    assert not list(edge.paths.staging.iterdir())


async def test_a_first_module_arrives_proves_itself_and_is_committed(edge: Edge, hub: HubSide) -> None:
    version = await hub.deploy(build())
    assert await edge.ended(version) == "committed"
    assert edge.states == [
        State.FETCHING, State.VERIFYING, State.STAGING, State.TRYING, State.ACTIVATING, State.PROBATION,
        State.COMMITTED, State.IDLE,
    ]  # fmt: skip
    assert await predict(await edge.address()) == [0]
    report = edge.keeper.reports()[0]
    assert (report.verified, report.deployment, report.release_counter) == (True, "rollout-1", 1)
    assert await edge.ledger.counters() == {"iris": 1}
    assert edge.ledger.record.director_version == version
    assert not list(edge.paths.staging.iterdir())


async def test_a_new_version_takes_over_without_a_failed_request(updated: Edge, hub: HubSide) -> None:
    address = await updated.address()
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            await predict(address)

    asking = asyncio.create_task(ask())
    assert await updated.ended(await hub.deploy(build(version=2))) == "committed"
    stop.set()
    await asking
    assert await served_version(address) == 2
    assert updated.slots.has(build(version=1).sha256), "the version before is kept for a way back"


async def test_a_golden_mismatch_fails_and_is_not_tried_again(updated: Edge, hub: HubSide) -> None:
    await refused(updated, hub, build(version=2, spoil_golden=True), "failed", "golden-mismatch")
    assert updated.states.count(State.TRYING) == 1


async def test_a_module_that_loads_too_long_fails_at_its_deadline(updated: Edge, hub: HubSide) -> None:
    health = msgspec.structs.replace(QUICK, load_deadline_s=1.0)
    await refused(updated, hub, build_script(SLOW_TO_LOAD, version=2, health=health), "failed", "worker-timeout")
    assert updated.states.count(State.TRYING) == 2, "a busy machine deserves a second attempt"


async def test_a_worker_that_crashes_in_probation_is_taken_back(updated: Edge, hub: HubSide) -> None:
    await refused(updated, hub, build_script(CRASHES, version=2, health=LONG), "reverting", "crashed")
    assert updated.states[-4:] == [State.PROBATION, State.REVERTING, State.FAILED, State.IDLE]


async def test_a_module_that_answers_with_errors_in_probation_is_taken_back(updated: Edge, hub: HubSide) -> None:
    address = await updated.address()
    version = await hub.deploy(build_script(FAILS, version=2, health=LONG))

    async def fails() -> bool:
        return await status_of(address) >= 500 and await status_of(address) >= 500

    await until_async(fails, "the bad module to serve, and to fail")
    assert await updated.ended(version) == "reverting"
    assert updated.ledger.last.reason_key == "error-rate"
    assert await served_version(address) == 1


async def test_a_module_that_fails_more_often_than_the_one_before_is_taken_back_with_both_numbers(
    updated: Edge, hub: HubSide
) -> None:
    address = await updated.address()
    for _ in range(40):
        await status_of(address, count=3)
    health = msgspec.structs.replace(LONG, max_error_rate=1.0)  # so that only the one before speaks against it
    version = await hub.deploy(build_script(SOMETIMES, version=2, health=health))

    await until(lambda: State.PROBATION in updated.states, "probation")
    assert updated.ledger.record.before["iris"].lived.requests >= 40, "it is written down, for a power cut"
    await until_async(lambda: _asked(updated, address, version), "the verdict")
    assert await updated.ended(version) == "reverting"
    assert updated.ledger.last.reason_key == "more-errors"
    assert "of version 1 before it 0 of" in updated.ledger.last.reason


async def test_a_module_for_other_hardware_is_rejected_before_anything_is_fetched(updated: Edge, hub: HubSide) -> None:
    await refused(updated, hub, build(version=2, requires=Requirements(arch=("sparc",))), "rejected", "requirements")
    assert "expected sparc" in updated.ledger.last.reason
    assert State.FETCHING not in updated.states


async def test_a_rejected_version_is_not_looked_at_again_but_a_newer_one_is(updated: Edge, hub: HubSide) -> None:
    await refused(updated, hub, build(version=2, requires=Requirements(arch=("sparc",))), "rejected", "requirements")
    ended = len(updated.states)
    updated.bell._looked = 0
    await hub.hub.ring(hub.world.device, updated.ledger.record.director_version)
    assert await updated.ended(await hub.deploy(build(version=3))) == "committed"
    assert updated.states[ended] is State.FETCHING
    assert await served_version(await updated.address()) == 3


async def test_tampered_chunks_are_reported_as_such_and_never_run(updated: Edge, hub: HubSide) -> None:
    module = build(version=2)
    digest = module.manifest.file("model.onnx").sha256

    def tampered(get: Get) -> Reply:
        reply = hub.hub.from_files(get)
        if isinstance(reply, Answer) and get.name == digest:
            return Answer(reply.total, reply.offset, bytes(len(reply.data)))
        return reply

    hub.hub.answer = tampered
    await refused(updated, hub, module, "failed", "chunk-mismatch")
    assert [attack.key for attack in updated.attacks.all()] == ["chunk-mismatch"]


async def test_an_update_without_room_fails_with_the_numbers_before_anything_is_fetched_and_ends_well_once_there_is(
    hub: HubSide, agent_config: AgentConfig, state_dir: StatePaths, agent_store: AgentStore, broker: Mosquitto
) -> None:
    fetch = msgspec.structs.replace(agent_config.fetch, disk_margin_bytes=2**60)
    config = msgspec.structs.replace(agent_config, fetch=fetch)
    async with running_edge(config, state_dir, agent_store, broker) as edge:
        version = await hub.deploy(build())
        assert await edge.ended(version) == "failed"
        assert edge.ledger.last.reason_key == "disk-budget"
        assert "1099511627776.0 MiB to spare on the disk, got" in edge.ledger.last.reason
        assert edge.ledger.last.attempt == 2
        assert State.FETCHING not in edge.states
        assert not list(state_dir.staging.iterdir())
        assert not list(state_dir.slots.iterdir())
    async with running_edge(agent_config, state_dir, agent_store, broker) as edge:
        await until(lambda: edge.ledger.last.state == "committed", "room to be found at the next look")
        assert edge.ledger.last.director_version == version


async def test_an_older_release_is_refused_and_reported_and_the_newer_one_serves_on(
    updated: Edge, hub: HubSide
) -> None:
    assert await updated.ended(await hub.deploy(build(version=2))) == "committed"
    hub.counter = 0
    version = await hub.deploy(build(version=1))
    assert await updated.ended(version) == "rejected"
    assert updated.ledger.last.reason_key == "older-release"
    assert updated.attacks.all()[0].key == "older-release"
    assert await served_version(await updated.address()) == 2
    hub.counter = 2
    assert await updated.ended(await hub.deploy(build(version=1))) == "committed", "signed again, it may come back"
    assert await served_version(await updated.address()) == 1


async def test_a_set_is_applied_as_a_whole_or_not_at_all(updated: Edge, hub: HubSide) -> None:
    version = await hub.deploy(build(version=2), build("other", spoil_golden=True))
    assert await updated.ended(version) == "failed"
    assert await served_version(await updated.address()) == 1
    assert [(m.name, m.version) for m in updated.ledger.current.modules] == [("iris", 1)]
    assert await updated.ended(await hub.deploy(build(version=2), build("other"))) == "committed"
    assert await served_version(await updated.address("other"), "other") == 1


async def test_one_bad_module_of_two_takes_both_back_from_probation(updated: Edge, hub: HubSide) -> None:
    version = await hub.deploy(build(version=2, health=LONG), build_script(CRASHES, name="other", health=LONG))
    assert await updated.ended(version) == "reverting"
    assert updated.ledger.last.reason_key == "crashed"
    assert await served_version(await updated.address()) == 1
    assert [(m.name, m.version) for m in updated.ledger.current.modules] == [("iris", 1)]
    assert [report.name for report in updated.keeper.reports()] == ["iris"]


async def test_what_stays_in_the_set_is_not_touched(updated: Edge, hub: HubSide) -> None:
    unit = updated.keeper.unit("iris")
    assert await updated.ended(await hub.deploy(build(version=1), build("other"))) == "committed"
    assert updated.keeper.unit("iris") is unit


async def test_only_a_new_policy_needs_no_trial(updated: Edge, hub: HubSide) -> None:
    version = await hub.deploy(build(version=1), sampling=SamplingPolicy(rate=0.5))
    assert await updated.ended(version) == "committed"
    assert updated.states == [State.COMMITTED, State.IDLE]


async def test_a_new_configuration_is_tried_and_reaches_the_script(edge: Edge, hub: HubSide) -> None:
    module = build_script(CONFIGURED)
    assert await edge.ended(await hub.deploy(module)) == "committed"
    assert await predict(await edge.address()) == [7]
    edge.states.clear()
    assert await edge.ended(await hub.deploy(module, config={"label": 3})) == "committed"
    assert State.TRYING in edge.states
    assert await predict(await edge.address()) == [3]
    assert await edge.ended(await hub.deploy(module, config={"ok": False})) == "failed"
    assert edge.ledger.last.reason_key == "load-failed"
    assert await predict(await edge.address()) == [3], "the old configuration serves on"


async def test_how_each_update_ended_is_told_with_the_reason(updated: Edge, hub: HubSide) -> None:
    await refused(updated, hub, build(version=2, spoil_golden=True), "failed", "golden-mismatch")
    await refused(updated, hub, build_script(CRASHES, version=3, health=LONG), "reverting", "crashed")
    ended = [(key, text) for key, text in updated.told if key.startswith("update-")]
    assert [key for key, _ in ended] == ["update-committed", "update-failed", "update-reverted"]
    assert "iris 2" in ended[1][1]
    assert "golden-mismatch" in ended[1][1]
    assert any(key == "worker-crashed" and "exit status 7" in text for key, text in updated.told)


async def test_off_stops_a_module_and_on_tries_it_no_second_time(updated: Edge, hub: HubSide) -> None:
    assert await updated.ended(await hub.deploy(build(version=1), mode="off")) == "committed"
    assert updated.keeper.reports()[0].state == "off"
    assert await updated.ended(await hub.deploy(build(version=1))) == "committed"
    assert await served_version(await updated.address()) == 1
    assert State.TRYING not in updated.states


async def test_wanting_nothing_stops_everything(updated: Edge, hub: HubSide) -> None:
    address = await updated.address()
    assert await updated.ended(await hub.deploy()) == "committed"
    assert updated.keeper.reports() == ()
    with pytest.raises(OSError, match="refused"):
        await predict(address)


async def test_a_newer_wish_during_a_download_replaces_it(updated: Edge, hub: HubSide) -> None:
    second = build(version=2)
    digest = second.manifest.file("model.onnx").sha256
    hub.hub.answer = lambda get: None if get.name == digest else hub.hub.from_files(get)
    await hub.deploy(second)
    await until(lambda: State.FETCHING in updated.states, "the download that does not end")
    assert await updated.ended(await hub.deploy(build(version=3))) == "committed"
    assert await served_version(await updated.address()) == 3


async def withdraw(hub: HubSide) -> int:
    """Back to version 1, as an operator does who aborts a rollout."""
    hub.counter = 0
    return await hub.deploy(build(version=1), deployment="rollout-1")


@pytest.mark.parametrize("state", [State.FETCHING, State.VERIFYING, State.STAGING, State.TRYING])
async def test_what_the_hub_wants_no_more_is_left_before_it_serves_and_leaves_nothing_behind(
    state: State, updated: Edge, hub: HubSide
) -> None:
    module = build_script(SLOW_TO_LOAD, version=2) if state is State.TRYING else build(version=2)
    held = updated.hold(state) if state is not State.TRYING else None
    bad = await hub.deploy(module, deployment="aborted")
    await until(lambda: state in updated.states, str(state))
    newer = await withdraw(hub)
    await until(lambda: updated.ledger.record.director_version >= newer, "the withdrawal to be seen")
    assert State.ACTIVATING not in updated.states
    assert updated.ledger.last.director_version < bad, "nobody is blamed"
    await until(lambda: updated.ledger.record.state is State.IDLE, "the machine to be idle")
    assert await served_version(await updated.address()) == 1
    assert not list(updated.paths.staging.iterdir())
    assert {path.name for path in updated.paths.slots.iterdir()} == {updated.slots.path(build(version=1).sha256).name}
    if held is not None:
        assert held.cancelled, "it was ended, not waited for"
    assert await updated.ended(await hub.deploy(build(version=3))) == "committed", "and it goes on with what is wanted"


async def test_newer_metadata_that_still_wants_the_module_does_not_disturb_its_trial(
    updated: Edge, hub: HubSide
) -> None:
    held = updated.hold(State.TRYING)
    module = build(version=2)
    await hub.deploy(module)
    await until(lambda: State.TRYING in updated.states, "the trial")
    newer = await hub.publish()
    await until(lambda: not updated.bell.news(0), "the newer metadata to be looked at")
    held.release.set()
    await until(lambda: updated.ledger.record.director_version >= newer, "the newer version to be noted")
    assert updated.states.count(State.TRYING) == 1
    assert await served_version(await updated.address()) == 2


async def test_what_the_hub_wants_no_more_leaves_probation_early(updated: Edge, hub: HubSide) -> None:
    bad = await hub.deploy(build(version=2, health=LONG), deployment="aborted")
    await until(lambda: State.PROBATION in updated.states, "probation")
    newer = await withdraw(hub)
    assert await updated.ended(bad) == "reverting"
    assert updated.ledger.last.reason_key == "superseded"
    await until(lambda: updated.ledger.record.director_version >= newer, "the newer wish to be seen")
    assert await served_version(await updated.address()) == 1


async def test_probation_waits_for_the_predictions_that_were_asked_for(updated: Edge, hub: HubSide) -> None:
    health = msgspec.structs.replace(QUICK, probation_s=0.05, probation_inferences=3)
    version = await hub.deploy(build(version=2, health=health))
    await until(lambda: State.PROBATION in updated.states, "probation")
    address = await updated.address()
    for _ in range(2):
        await predict(address)
    assert State.COMMITTED not in updated.states
    await predict(address)
    assert await updated.ended(version) == "committed"


async def test_a_damaged_slot_is_fetched_again(
    hub: HubSide, agent_config: AgentConfig, state_dir: StatePaths, agent_store: AgentStore, broker: Mosquitto
) -> None:
    async with running_edge(agent_config, state_dir, agent_store, broker) as edge:
        await edge.ended(await hub.deploy(build()))
    model = edge.slots.path(build().sha256) / "model.onnx"
    model.chmod(0o600)
    model.write_bytes(b"")
    async with running_edge(agent_config, state_dir, agent_store, broker) as edge:
        assert await served_version(await edge.address()) == 1
        assert isinstance(edge.ledger.current, ModuleSet)


async def test_a_file_that_rots_on_the_disk_is_noticed_when_the_module_does_not_start_and_fetched_again(
    updated: Edge, hub: HubSide
) -> None:
    model = updated.slots.path(build(version=1).sha256) / "model.onnx"
    model.chmod(0o600)
    data = model.read_bytes()
    model.write_bytes(bytes(len(data)))  # of the size that was signed
    unit = updated.keeper.unit("iris")
    assert unit is not None
    assert unit._worker is not None
    os.kill(unit._worker.pid, signal.SIGKILL)
    await until(lambda: State.FETCHING in updated.states, "the module to be fetched again")
    await until(lambda: updated.states[-1:] == [State.IDLE], "the update to end")
    assert await served_version(await updated.address()) == 1
    assert (updated.slots.path(build(version=1).sha256) / "model.onnx").read_bytes() == data
    assert any(key == "slot-damaged" for key, _ in updated.told)


async def test_a_device_that_is_offline_serves_what_it_has(
    hub: HubSide, agent_config: AgentConfig, state_dir: StatePaths, agent_store: AgentStore, broker: Mosquitto
) -> None:
    async with running_edge(agent_config, state_dir, agent_store, broker) as edge:
        await edge.ended(await hub.deploy(build()))
    await broker.kill()
    async with running_edge(agent_config, state_dir, agent_store, broker, online=False) as edge:
        assert await predict(await edge.address()) == [0]
        assert not edge.link.connected.is_set()
