"""An agent of the previous release with this hub, and this agent with a hub of the previous release."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cloud_hub.operator.client import HubClient
from cloud_hub.operator.context import HubContext
from cloud_hub.operator.demo.fleet import HubProcess
from support.releases import PREVIOUS, OtherRelease, previous_release
from system.conftest import LOOK_S
from system.traffic import predict
from system.world import World

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> OtherRelease:
    return previous_release(tmp_path_factory.mktemp("previous"))


@pytest_asyncio.fixture(loop_scope="session")
async def old_world(tmp_path_factory: pytest.TempPathFactory, previous: OtherRelease) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("o")
    hub = HubProcess(folder / "hub", previous.hub)
    await hub.init("--look", LOOK_S)
    try:
        await hub.start()
        async with HubClient(HubContext.load(hub.context)) as client:
            world = World(folder, hub, client)
            await world.release(1)
            await world.release(2)
            yield world
    finally:
        await hub.service.stop()


async def test_an_agent_of_the_previous_release_is_updated_by_this_hub(world: World, previous: OtherRelease) -> None:
    async with world.device("old-agent", program=previous.agent) as device:
        await world.roll_out(device, 1)
        address = await world.roll_out(device, 2)
        status = device.status()
        assert status is not None
        assert status.report.agent_version == PREVIOUS
        ids = await predict(address, "old-agent", 20)
        await world.arrived(device, (1, 2), ids)


async def test_this_agent_is_updated_by_a_hub_of_the_previous_release(old_world: World) -> None:
    async with old_world.device("new-agent") as device:
        await old_world.roll_out(device, 1)
        address = await old_world.roll_out(device, 2)
        ids = await predict(address, "new-agent", 20)
        await old_world.arrived(device, (1, 2), ids)


async def test_this_hub_goes_on_with_the_folder_of_the_previous_release(old_world: World) -> None:
    """An upgrade of the hub in place: what was enrolled, released and rolled out is still there."""
    async with old_world.device("stays") as device:
        await old_world.roll_out(device, 1)
        await old_world.hub.service.stop()
        hub = HubProcess(old_world.hub.folder)
        try:
            await hub.start()
            world = World(old_world.folder, hub, old_world.client)
            address = await world.roll_out(device, 2)
            ids = await predict(address, "stays", 5)
            await world.arrived(device, (1, 2), ids)
        finally:
            await hub.service.stop()
