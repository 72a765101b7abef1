"""Fixtures of the tests of trust: the state directory of a device that has never asked, its world, its trust."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agent.config import StatePaths
from agent.trust import Trust
from support.repository import HARDWARE, World


@pytest.fixture
def state_dir(tmp_path: Path) -> StatePaths:
    paths = StatePaths(tmp_path / "state")
    for folder in (paths.root, paths.roots, paths.metadata):
        folder.mkdir(mode=0o700)
    return paths


@pytest.fixture
def world(state_dir: StatePaths) -> World:
    """One module signed and assigned; everything valid."""
    world = World()
    world.write_roots(state_dir.roots)
    world.install(counter=5)
    return world


@pytest.fixture
def trust(world: World, state_dir: StatePaths) -> Trust:
    return Trust(world.device, HARDWARE, state_dir.roots, state_dir.metadata, time.time)
