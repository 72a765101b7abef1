"""What a module requires of the device's confinement, through a whole update: before the download, and after Start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from agent import __version__
from agent.config import AgentConfig, StatePaths
from agent.sandbox.cage import Possible
from agent.service import with_today
from agent.store import AgentStore
from firmware_profiles.confinement import Confinement
from firmware_profiles.profile import DeviceProfile, Requirements
from modules.manifest import Runtime
from support.built import assemble, build
from support.edge import Edge, HubSide, running_edge
from support.hub import FakeHub
from support.mosquitto import Mosquitto
from support.predict import served_version
from support.repository import World

ISOLATED = Requirements(confinement=Confinement.ISOLATED)


@pytest.fixture
async def hub(broker: Mosquitto, state_dir: StatePaths) -> AsyncIterator[HubSide]:
    world = World()
    world.write_roots(state_dir.roots)
    async with FakeHub(broker, world.files) as hub:
        yield HubSide(world, hub)


@pytest.fixture(params=["confined", ""], ids=["known", "unknown"])
async def edge(
    request: pytest.FixtureRequest, hub: HubSide, agent_config: AgentConfig, state_dir: StatePaths,
    agent_store: AgentStore, broker: Mosquitto,
) -> AsyncIterator[Edge]:  # fmt: skip
    """A device whose workers are not confined at all, and whose profile says something better, or nothing."""
    profile = msgspec.structs.replace(agent_config.profile, confinement=request.param)
    config = msgspec.structs.replace(agent_config, profile=profile)
    async with running_edge(config, state_dir, agent_store, broker) as edge:
        assert await edge.ended(await hub.deploy(build())) == "committed"
        edge.states.clear()
        yield edge


async def test_a_level_that_the_device_does_not_have_is_refused_before_or_after_the_download(
    edge: Edge, hub: HubSide, request: pytest.FixtureRequest
) -> None:
    known = "unknown" not in request.node.name
    ended = await edge.ended(await hub.deploy(build(version=2, requires=ISOLATED)))
    assert (ended, edge.ledger.last.reason_key) == (
        ("rejected", "requirements") if known else ("failed", "confine-failed")
    )
    got = "confined" if known else "none"
    assert (
        f"expected at least isolated, got {got}" in edge.ledger.last.reason
        or "requires at least isolated, got none" in (edge.ledger.last.reason)
    )
    assert await served_version(await edge.address()) == 1, "the old version serves on"


async def test_a_format_that_runs_code_is_refused_before_anything_is_downloaded(edge: Edge, hub: HubSide) -> None:
    """Row 44."""
    module = assemble("iris", 2, {"model.onnx": b"m", "weights.pkl": b"\x80\x04."}, Runtime())
    assert await edge.ended(await hub.deploy(module)) == "rejected"
    assert edge.ledger.last.reason_key == "format-refused"
    assert "weights.pkl: expected a format that runs no code" in edge.ledger.last.reason
    assert not list(edge.paths.staging.iterdir())
    assert await served_version(await edge.address()) == 1


@pytest.mark.parametrize("command", ["run", "status", "doctor"])
def test_a_relative_state_folder_is_the_same_from_everywhere(tmp_path: Path, command: str) -> None:
    """Workers have another current folder than the agent."""
    code = (
        "import sys; from agent import cli; "
        "print(cli.build_parser().parse_args([sys.argv[1], '--state', 'state/../here']).state)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, command], cwd=tmp_path, env={"PYTHONPATH": str(Path.cwd())},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.strip() == str(tmp_path / "state/../here")


def test_an_agent_that_was_renewed_counts_as_what_it_is_now() -> None:
    config = AgentConfig(
        "cam-17", "https://hub:8443", "hub", 8883, DeviceProfile("pi", "aarch64", agent_version="0.0.1")
    )
    profile = with_today(config, Possible(Confinement.PROCESS)).profile
    assert (profile.agent_version, profile.confinement) == (__version__, "process")
    assert profile.python == f"{sys.version_info.major}.{sys.version_info.minor}"
