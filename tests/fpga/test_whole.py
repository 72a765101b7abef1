"""An overlay's whole way, with hub, broker and agent in processes of their own: built, registered, signed, rolled out,
proven by its golden answers, asked, and watched. No board is here, and the device says so to everybody.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
import pytest
import pytest_asyncio

from cloud_hub.building.request import BuildRequest
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.context import HubContext
from cloud_hub.operator.demo.fleet import HubProcess
from cloud_hub.operator.errors import Refused
from cloud_hub.registry import NewModel
from fpga.conftest import Made
from modules.manifest import Runtime, decode_manifest
from modules.overlay import EMULATION
from modules.runtime import Provider
from support.predict import get
from system.world import EVERYTHING, HEALTH, PROFILE, World

NAME = "digits"
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]  # the compiler, a hub


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("f")
    hub = HubProcess(folder / "hub")
    await hub.init("--look", "1")
    try:
        await hub.start()
        async with HubClient(HubContext.load(hub.context)) as client:
            yield World(folder, hub, client)
    finally:
        await hub.service.stop()


async def built(world: World, made: Made, runtime: Runtime | None) -> int:
    """The version, built for this machine and signed."""
    files = {path.name: path for path in made.folder.iterdir()}
    version = (await world.client.register(NewModel(NAME), files)).version
    reference = await world.client.upload(made.answers)
    labels = {"probabilities": tuple("0123456789")}
    await world.client.build(
        BuildRequest(
            NAME,
            version,
            PROFILE,
            reference=reference.sha256,
            labels=labels,
            sampling=EVERYTHING,
            health=HEALTH,
            runtime=runtime,
        )
    )
    await world.client.sign(NAME, version, PROFILE)
    return version


async def test_an_overlay_is_rolled_out_asked_and_watched_and_its_emulation_is_reported(
    world: World, made: Made
) -> None:
    version = await built(world, made, Runtime(providers=(Provider("board"), Provider(EMULATION))))
    manifest = decode_manifest(await world.client.manifest(NAME, version, PROFILE))
    assert (manifest.runtime.backend, manifest.runtime.model) == ("fpga", "overlay.json")
    assert (manifest.health.rtol, manifest.health.atol) == (0.0, 0.0)
    assert manifest.requires.agent_version == "0.2.0"
    async with world.device("fpga-1") as device:
        address = await world.roll_out(device, version, NAME)
        answers = [await _asked(address, made, number) for number in range(5)]
        assert (np.stack(answers) == made.emulated(made.x[:5])).all()
        module = device.module(NAME)
        assert module is not None
        assert (module.state, module.verified) == ("serving", True)
        assert "emulated" in module.execution
        assert "no FPGA on this device" in module.execution

        async def counted() -> bool:
            return await world.counted(device, version, NAME) == 5

        await world.until("a window of five rows to arrive", counted)
        reported = await world.client.device(device.name)
        assert "emulated" in json.dumps(msgspec.to_builtins(reported))


async def test_a_module_that_asks_for_a_board_is_reverted_where_there_is_none(world: World, made: Made) -> None:
    version = await built(world, made, None)
    async with world.device("fpga-2") as device:
        _, execution = await world.ended(await world.order(device, version, NAME))
    assert execution.reason_key == "load-failed"
    assert "no FPGA on this device" in execution.reason


async def test_an_overlay_without_a_file_that_it_names_is_not_built(world: World, made: Made) -> None:
    version = (await world.client.register(NewModel(NAME), {"overlay.json": made.folder / "overlay.json"})).version
    reference = await world.client.upload(made.answers)
    with pytest.raises(Refused, match=r"emulation-.*\.so named but not among the model's files; register the folder"):
        await world.client.build(BuildRequest(NAME, version, PROFILE, reference=reference.sha256))


async def _asked(address: str, made: Made, number: int) -> Any:
    tensor = {"name": "X", "shape": [1, 64], "datatype": "FP32", "data": made.x[number].tolist()}
    answer = await get(f"{address}/v2/models/{NAME}/infer", json.dumps({"inputs": [tensor]}).encode())
    return np.array(answer["outputs"][0]["data"], np.float32)
