"""Fixtures of the agent's tests: a state directory with a configuration, a store, a broker and a hub on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.config import AgentConfig, FetchLimits, OutboxLimits, StatePaths
from agent.store import AgentStore
from firmware_profiles.catalog import built_in
from support.links import QUICK
from support.mosquitto import Mosquitto
from support.repository import World

DEVICE = "cam-17"


@pytest.fixture
def state_dir(tmp_path: Path) -> StatePaths:
    """An empty state directory of an agent (its folders made)."""
    paths = StatePaths(tmp_path / "state")
    for folder in (
        paths.root,
        paths.identity,
        paths.roots,
        paths.metadata,
        paths.staging,
        paths.slots,
        paths.endpoints,
    ):
        folder.mkdir(mode=0o700)
    return paths


@pytest.fixture
def agent_config(state_dir: StatePaths) -> AgentConfig:
    """A configuration with quick reconnects, written to the state directory. No hub behind it."""
    config = AgentConfig(
        device=DEVICE,
        hub="https://localhost:1",
        mqtt_host="localhost",
        mqtt_port=1,
        profile=built_in()["generic-x86_64"],
        link=QUICK,
        fetch=FetchLimits(disk_margin_bytes=0, stall_s=20.0, chunk_timeout_s=3.0),
        outbox=OutboxLimits(commit_every_s=0.01, lazy_commit_s=0.01, forget_s=0.01, ack_timeout_s=1.0),
    )
    state_dir.config.write_text(config.to_toml())
    return config


@pytest.fixture
async def agent_store(state_dir: StatePaths) -> AsyncIterator[AgentStore]:
    async with AgentStore(state_dir.database) as store:
        yield store


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A running Mosquitto. A test may kill and start it."""
    folder = tmp_path / "broker"
    folder.mkdir()
    mosquitto = Mosquitto(folder)
    await mosquitto.start()
    try:
        yield mosquitto
    finally:
        await mosquitto.kill()


@pytest.fixture
def world(state_dir: StatePaths) -> World:
    """One module installed by one assignment, everything valid."""
    world = World()
    world.write_roots(state_dir.roots)
    world.install(counter=5)
    return world
