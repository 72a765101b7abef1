"""A real agent, killed while it does a command: the command's effect is there once at most, and the hub gets a word."""

from __future__ import annotations

import json
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
from modules.commands import (
    DIAGNOSTICS,
    LOGS,
    RESTART,
    AskDiagnostics,
    Asked,
    AskLogs,
    AskRestart,
    Command,
    CommandResult,
    encode_asked,
)
from modules.messages import decode_event, encode
from modules.packed import unpack
from modules.pieces import PIECE_BYTES, decode_piece
from modules.topics import down
from support.agents import AgentProcess, enrolled
from support.built import build_script, install
from support.edge import HubSide
from support.hub import FakeHub
from support.mosquitto import Mosquitto
from support.repository import World
from support.waiting import until

SOURCE = "def init():\n    print('loaded')\ndef run(data):\n    return 1\n"
CHATTY = build_script(SOURCE, name="chatty")
LATER = 4e9


@pytest.fixture
async def hub(broker: Mosquitto, state_dir: StatePaths) -> AsyncIterator[HubSide]:
    world = World()
    world.write_roots(state_dir.roots)
    async with FakeHub(broker, world.files) as hub:
        side = HubSide(world, hub)
        await side.deploy(CHATTY, deployment="first")
        yield side


@pytest.fixture
async def agent(agent_config: AgentConfig, state_dir: StatePaths, broker: Mosquitto) -> AsyncIterator[AgentProcess]:
    """An agent with one module that says each time that it is loaded; not started."""
    enrolled(agent_config, state_dir, broker)
    given = state_dir.root / "given"
    install(Slots(state_dir.slots, given), CHATTY, given)
    shutil.rmtree(given)
    async with AgentStore(state_dir.database) as store:
        held = Installed("chatty", 1, CHATTY.sha256, 1, "first", verified=True)
        await Ledger(store).commit(ModuleSet(0, 0, (held,)))
    process = AgentProcess(state_dir)
    yield process
    await process.kill()


def loads(agent: AgentProcess) -> int:
    return (agent.paths.logs / "chatty.log").read_text().count("Z loaded")


def results(hub: HubSide) -> list[CommandResult]:
    events = [decode_event(item) for item in hub.hub.items("event")]
    return [event.command for event in events if event.command is not None]


async def ask(hub: HubSide, id_: str, kind: str, asked: Asked) -> None:
    command = Command(id_, kind, LATER, encode_asked(asked))
    await hub.hub.say(down(hub.world.device, "command"), encode(command))


async def connected(agent: AgentProcess) -> None:
    await agent.until(lambda: (status := agent.status()) is not None and status.link.connected, "the link")


@pytest.mark.parametrize(
    ("crash_at", "loaded", "outcomes"),
    [
        ("command:begun", 2, ["failed"]),
        ("command:done", 3, ["failed"]),
        ("command:told", 3, ["done", "failed"]),  # the hub takes the first word
    ],
)
async def test_a_restart_that_was_cut_off_is_not_done_again_and_is_answered(
    crash_at: str, loaded: int, outcomes: list[str], agent: AgentProcess, hub: HubSide
) -> None:
    await agent.start(crash_at)
    await agent.serving("chatty")
    await connected(agent)
    await ask(hub, "c-1", RESTART, AskRestart("chatty"))
    assert await agent.exit_code() == -signal.SIGKILL, agent.tail()
    await agent.start()
    await agent.serving("chatty")
    await connected(agent)
    await ask(hub, "c-1", RESTART, AskRestart("chatty"))
    await ask(hub, "c-2", LOGS, AskLogs("chatty"))
    await until(lambda: results(hub)[-1:] != [] and results(hub)[-1].id == "c-2", "the second answer")
    first = [result for result in results(hub) if result.id == "c-1"]
    assert [result.outcome for result in first] == outcomes
    assert first[-1].key == "interrupted"
    assert loads(agent) == loaded
    assert await agent.stop() == 0, agent.tail()


async def test_the_agent_begins_another_life_when_it_is_asked_and_says_so_once(
    agent: AgentProcess, hub: HubSide
) -> None:
    await agent.start()
    await agent.serving("chatty")
    await connected(agent)
    await ask(hub, "c-1", RESTART, AskRestart())
    await until(lambda: loads(agent) == 2, "another life")
    await agent.serving("chatty")
    await ask(hub, "c-1", RESTART, AskRestart())
    await ask(hub, "c-2", LOGS, AskLogs("chatty"))
    await until(lambda: len(results(hub)) == 2, "both answers")
    assert [(result.id, result.outcome) for result in results(hub)] == [("c-1", "done"), ("c-2", "done")]
    assert loads(agent) == 2
    assert await agent.stop() == 0, agent.tail()


async def test_a_device_brings_its_logs_and_how_it_does_unless_its_settings_refuse_that(
    agent: AgentProcess, hub: HubSide
) -> None:
    await agent.start()
    await agent.serving("chatty")
    await connected(agent)
    await ask(hub, "c-1", LOGS, AskLogs("chatty"))
    await ask(hub, "c-2", LOGS, AskLogs(level="info"))
    await ask(hub, "c-3", DIAGNOSTICS, AskDiagnostics())
    await until(lambda: len(results(hub)) == 3, "three answers")
    module, own, whole = results(hub)
    assert unpack(module.data, 10**6).decode().endswith("Z loaded\n")
    assert b'agent.service "confinement"' in unpack(own.data, 10**6)
    packed = whole.data
    if not packed:  # as many bytes as this machine has to tell
        await until(lambda: len(hub.hub.items("blob")) == -(-whole.size // PIECE_BYTES), "all pieces")
        packed = b"".join(decode_piece(item).data for item in hub.hub.items("blob"))
    found = json.loads(unpack(packed, 10**7))
    assert found["status"]["report"]["device"] == hub.world.device
    assert found["logs"]["chatty"][-1].endswith("loaded")
    assert {check["name"]: check["result"] for check in found["checks"]}["broker"] == "ok"
    assert await agent.stop() == 0, agent.tail()
    config = AgentConfig.load(agent.paths)
    commands = msgspec.structs.replace(config.commands, refuse=("logs",))
    agent.paths.config.write_text(msgspec.structs.replace(config, commands=commands).to_toml())
    await agent.start()
    await connected(agent)
    await ask(hub, "c-4", LOGS, AskLogs("chatty"))
    await until(lambda: len(results(hub)) == 4, "a refusal")
    assert (results(hub)[-1].outcome, results(hub)[-1].key) == ("refused", "not-allowed")
