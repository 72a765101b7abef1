"""A real agent, killed in each state of the update table: it comes back with the old or the new module, and ends."""

from __future__ import annotations

import shutil
import signal
from collections.abc import AsyncIterator

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.config import AgentConfig, StatePaths
from agent.installed import Installed, ModuleSet
from agent.slots import Slots
from agent.store import AgentStore
from agent.update.record import Ledger
from agent.update.states import MAX_WRITES
from firmware_profiles.profile import Requirements
from modules.messages import decode_report
from support.agents import AgentProcess, enrolled
from support.built import Built, build, install
from support.edge import HubSide
from support.hub import FakeHub
from support.mosquitto import Mosquitto
from support.predict import predict, served_version
from support.repository import World
from support.waiting import until_async

OLD = build(version=1)
GOOD = build(version=2)
BAD = build(version=2, spoil_golden=True)
ALIEN = build(version=2, requires=Requirements(arch=("sparc",)))

# Where power is cut, in which update, how it ends, and what serves then.
CASES = [
    *((f"{state}:{moment}", GOOD, "committed", 2)
      for state in ("resolving", "fetching", "verifying", "staging", "trying", "probation", "committed")
      for moment in ("before", "after")),
    ("activating:before", GOOD, "reverting", 1),
    ("activating:after", GOOD, "reverting", 1),
    ("failed:before", BAD, "failed", 1),
    ("failed:after", BAD, "failed", 1),
    ("rejected:before", ALIEN, "rejected", 1),
    ("rejected:after", ALIEN, "rejected", 1),
]  # fmt: skip


@pytest.fixture
async def hub(broker: Mosquitto, state_dir: StatePaths) -> AsyncIterator[HubSide]:
    world = World()
    world.write_roots(state_dir.roots)
    async with FakeHub(broker, world.files) as hub:
        side = HubSide(world, hub)
        side.counter = 1
        yield side


@pytest.fixture
async def agent(agent_config: AgentConfig, state_dir: StatePaths, broker: Mosquitto) -> AsyncIterator[AgentProcess]:
    """An agent that has version 1 installed; not started."""
    enrolled(agent_config, state_dir, broker)
    given = state_dir.root / "given"
    install(Slots(state_dir.slots, given), OLD, given)
    shutil.rmtree(given)  # as after an update: the slot's is the only name of each file
    async with AgentStore(state_dir.database) as store:
        held = Installed("iris", 1, OLD.sha256, 1, "first", verified=True)
        await Ledger(store).commit(ModuleSet(0, 0, (held,)))
    process = AgentProcess(state_dir)
    yield process
    await process.kill()


def last(agent: AgentProcess) -> str:
    status = agent.status()
    ended = status is not None and status.report.current.state == "idle"
    return status.report.last.state if ended and status is not None else ""


@pytest.mark.parametrize(("crash_at", "module", "ending", "version"), CASES, ids=[case[0] for case in CASES])
async def test_an_agent_killed_in_any_state_serves_again_and_ends_its_update(
    crash_at: str, module: Built, ending: str, version: int, agent: AgentProcess, hub: HubSide
) -> None:
    await hub.deploy(module)
    await agent.start(crash_at)
    assert await agent.exit_code() == -signal.SIGKILL, agent.tail()
    await agent.start()
    address = await agent.serving()
    assert await served_version(address) in (1, 2), "never neither"
    await agent.until(lambda: last(agent) == ending, f"the update to end as {ending}")
    assert await served_version(await agent.serving()) == version
    assert await predict(address) == [0]
    assert await agent.stop() == 0, agent.tail()


async def test_an_agent_killed_while_it_reverts_serves_the_old_module(agent: AgentProcess, hub: HubSide) -> None:
    await hub.deploy(GOOD)
    await agent.start("activating:before")
    assert await agent.exit_code() == -signal.SIGKILL
    await agent.start("reverting:after")
    assert await agent.exit_code() == -signal.SIGKILL
    await agent.start()
    await agent.until(lambda: last(agent) == "reverting", "the update to end")
    assert await served_version(await agent.serving()) == 1


async def test_an_agent_that_keeps_dying_in_a_state_gives_the_update_up(agent: AgentProcess, hub: HubSide) -> None:
    await hub.deploy(GOOD)
    await agent.start("verifying:before")
    assert await agent.exit_code() == -signal.SIGKILL
    async with AgentStore(agent.paths.database) as store:  # as if that had happened as often as is allowed
        ledger = Ledger(store)
        await ledger.open()
        await ledger.enter(msgspec.structs.replace(ledger.record, writes=MAX_WRITES))
    await agent.start("verifying:before")
    await agent.until(lambda: last(agent) == "failed", "the update to be given up")
    status = agent.status()
    assert status is not None
    assert status.report.last.reason_key == "loop"
    assert await served_version(await agent.serving()) == 1


async def test_a_report_goes_to_the_hub_signed_with_a_counter_that_grows_over_restarts(
    agent: AgentProcess, hub: HubSide, broker: Mosquitto
) -> None:
    counters: list[int] = []
    for _ in range(2):
        before = len(hub.hub.reports)
        await agent.start()
        await agent.until(lambda seen=before: len(hub.hub.reports) > seen, "a report")  # type: ignore[misc]
        assert await agent.stop() == 0
    certificate = x509.load_pem_x509_certificate(agent.paths.certificate.read_bytes())
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    for signed in hub.hub.reports:
        key.verify(signed.signature, signed.body, ec.ECDSA(hashes.SHA256()))
        counters.append(decode_report(signed.body).counter)
    assert counters == sorted(set(counters))


async def test_a_second_agent_on_the_same_state_directory_is_refused(agent: AgentProcess, hub: HubSide) -> None:
    await hub.deploy(OLD, deployment="first")  # a hub that wants nothing would have it stopped
    await agent.start()
    await agent.serving()
    second = AgentProcess(agent.paths)
    await second.start()
    assert await second.exit_code() == 1
    assert "another agent runs" in second.tail()


async def test_workers_end_with_an_agent_that_is_killed(agent: AgentProcess, hub: HubSide) -> None:
    await hub.deploy(OLD, deployment="first")  # a hub that wants nothing would have it stopped
    await agent.start()
    address = await agent.serving()
    await agent.kill()

    async def refused() -> bool:
        try:
            await predict(address)
        except OSError:
            return True
        return False

    await until_async(refused, "the worker to end")
