"""A new circuit in the place of the old one: an FPGA has room for one, so the old makes way, and requests wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.backends import Array
from agent.config import ServingSettings, StatePaths
from agent.errors import WorkerError
from agent.fpga.fabric import Fabric
from agent.installed import Installed, ModuleSet
from agent.runtimes.keeper import Keeper
from agent.store import AgentStore
from fpga.conftest import Made
from support.built import Built, install
from support.fpga_kernel import Board
from support.fpga_modules import BITSTREAM, Device, asked, golden_of, module
from support.waiting import until

SETTINGS = ServingSettings(
    confine=False, preload="off", drain_s=3.0, ping_every_s=0.2, restart_first_s=0.01, restart_ceiling_s=0.05
)
OTHER = BITSTREAM + b"another"
DEADLINE_S = 60.0
pytestmark = pytest.mark.timeout(300)  # the first test of a run waits for the compiler


class Machine:
    """A keeper on a played board, and versions of one module with circuits of their own."""

    def __init__(self, made: Made, board: Board, device: Device) -> None:
        self.made, self.board, self.device = made, board, device
        self.keeper = Keeper(device.runtime, SETTINGS, lambda: None)

    def built(self, version: int, bitstream: bytes, off_by: float = 0.0) -> Built:
        answers = self.made.emulated(self.made.x[:4]) + np.float32(off_by)
        golden = golden_of(self.made.overlay, self.made.x[:4], answers)
        return module(self.made.overlay, self.made.files, golden, version=version, bitstream=bitstream)

    def installed(self, built: Built) -> Installed:
        install(self.device.slots, built, self.device.paths.staging)
        return Installed("digits", built.manifest.version, built.sha256, 1, "d", verified=True)

    async def serves(self, version: int) -> None:
        def so() -> bool:
            (report,) = self.keeper.reports()
            return (report.version, report.state) == (version, "serving")

        await until(so, f"version {version} to serve", DEADLINE_S)

    async def ask(self, count: int = 3) -> Array:
        return await asked(self.device.runtime.address("digits"), "digits", self.made.x[:count])


@pytest.fixture
async def machine(tmp_path: Path, made: Made) -> AsyncIterator[Machine]:
    paths = StatePaths(tmp_path / "state")
    for folder in (paths.root, paths.staging, paths.slots, paths.endpoints, paths.root / "logs"):
        folder.mkdir(exist_ok=True)
    with Board(tmp_path / "machine", made.emulated, made.overlay.input.row) as board:
        async with AgentStore(paths.database) as store:
            device = Device(paths, store, SETTINGS, Fabric(root=board.root))
            machine = Machine(made, board, device)
            yield machine
            await machine.keeper.close()


async def test_the_next_version_takes_the_fpga_over_and_requests_wait(machine: Machine) -> None:
    first, second = (machine.installed(machine.built(*what)) for what in ((1, BITSTREAM), (2, OTHER)))
    await machine.keeper.start(ModuleSet(1, 1, (first,)))
    await machine.serves(1)
    trying = asyncio.create_task(machine.keeper.spare(second))
    await until(lambda: machine.keeper.unit("digits") is None, "the old version to make room", DEADLINE_S)
    waiting = asyncio.create_task(machine.ask())
    spare = await trying
    assert machine.board.programmed == [BITSTREAM, OTHER]
    await machine.keeper.switch(ModuleSet(2, 1, (second,)), {"digits": spare})
    await machine.serves(2)
    assert (await waiting == machine.made.emulated(machine.made.x[:3])).all()


async def test_a_circuit_that_fails_its_golden_answers_gives_the_fpga_back(machine: Machine) -> None:
    first, wrong = (machine.installed(machine.built(*what)) for what in ((1, BITSTREAM), (2, OTHER, 1.0)))
    await machine.keeper.start(ModuleSet(1, 1, (first,)))
    await machine.serves(1)
    with pytest.raises(WorkerError, match="golden case 0"):
        await machine.keeper.spare(wrong)
    await machine.serves(1)
    assert (await machine.ask() == machine.made.emulated(machine.made.x[:3])).all()
    assert machine.board.programmed == [BITSTREAM, OTHER, BITSTREAM]


async def test_a_spare_that_is_dropped_gives_the_fpga_back(machine: Machine) -> None:
    first, second = (machine.installed(machine.built(*what)) for what in ((1, BITSTREAM), (2, OTHER)))
    await machine.keeper.start(ModuleSet(1, 1, (first,)))
    await machine.serves(1)
    await machine.keeper.drop(await machine.keeper.spare(second))
    await machine.serves(1)
    assert machine.board.programmed == [BITSTREAM, OTHER, BITSTREAM]


async def test_a_version_that_is_taken_back_makes_room_for_the_one_before(machine: Machine) -> None:
    first, second = (machine.installed(machine.built(*what)) for what in ((1, BITSTREAM), (2, OTHER)))
    await machine.keeper.start(ModuleSet(1, 1, (second,)))
    await machine.serves(2)
    await machine.keeper.switch(ModuleSet(2, 1, (first,)), {})
    await machine.serves(1)
    assert (await machine.ask() == machine.made.emulated(machine.made.x[:3])).all()
    assert machine.board.programmed == [OTHER, BITSTREAM]


async def test_a_new_configuration_of_the_same_circuit_hands_over_as_usual(machine: Machine) -> None:
    first = machine.installed(machine.built(1, BITSTREAM))
    await machine.keeper.start(ModuleSet(1, 1, (first,)))
    await machine.serves(1)
    changed = msgspec.structs.replace(first, config={"threshold": 3})
    spare = await machine.keeper.spare(changed)
    assert machine.keeper.unit("digits") is not None
    await machine.keeper.switch(ModuleSet(2, 1, (changed,)), {"digits": spare})
    await machine.serves(1)
    assert machine.board.programmed == [BITSTREAM]
