"""A configuration on the device: it is reported by its digest, and one that does a module harm is taken back."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from agent.config import AgentConfig, StatePaths
from agent.store import AgentStore
from modules.configuration import config_digest
from support.built import QUICK, build_script
from support.edge import Edge, HubSide, running_edge
from support.hub import FakeHub
from support.mosquitto import Mosquitto
from support.predict import predict
from support.repository import World

SOURCE = (
    "import json, os, threading\n"
    "wanted = json.loads(os.environ['MOORING_CONFIG'])\n"
    "def init():\n"
    "    if wanted.get('crash'):\n        threading.Timer(0.5, lambda: os._exit(9)).start()\n"
    "def predict(inputs):\n"
    "    rows = len(inputs['X'])\n"
    "    return {'label': [wanted.get('label', 7)] * rows, 'probabilities': [[0.0, 0.0, 1.0]] * rows}\n"
)
SOON = msgspec.structs.replace(QUICK, probation_s=3.0)  # long enough to be seen crashing


@pytest.fixture
async def hub(broker: Mosquitto, state_dir: StatePaths) -> AsyncIterator[HubSide]:
    world = World()
    world.write_roots(state_dir.roots)
    async with FakeHub(broker, world.files) as hub:
        yield HubSide(world, hub)


@pytest.fixture
async def edge(
    agent_config: AgentConfig, state_dir: StatePaths, agent_store: AgentStore, broker: Mosquitto, hub: HubSide
) -> AsyncIterator[Edge]:
    async with running_edge(agent_config, state_dir, agent_store, broker) as edge:
        yield edge


def digest(edge: Edge) -> str:
    return edge.keeper.reports()[0].config_sha256


async def test_a_device_reports_the_digest_of_the_configuration_that_it_has(edge: Edge, hub: HubSide) -> None:
    module = build_script(SOURCE)
    assert await edge.ended(await hub.deploy(module)) == "committed"
    assert digest(edge) == ""
    wanted = {"label": 3, "ratio": 1.0, "names": ["ü", None]}
    assert await edge.ended(await hub.deploy(module, config=wanted)) == "committed"
    assert digest(edge) == config_digest(wanted)
    assert await predict(await edge.address()) == [3]


async def test_a_configuration_under_which_the_module_crashes_in_probation_is_taken_back(
    edge: Edge, hub: HubSide
) -> None:
    module = build_script(SOURCE, health=SOON)
    first = {"label": 3}
    assert await edge.ended(await hub.deploy(module, config=first)) == "committed"
    assert await edge.ended(await hub.deploy(module, config={"crash": True})) == "reverting"
    assert edge.ledger.last.reason_key == "crashed"
    assert digest(edge) == config_digest(first)
    assert await predict(await edge.address()) == [3], "the configuration of before serves"
