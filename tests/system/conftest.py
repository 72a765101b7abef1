"""One hub for all tests of this folder; every test finds it up."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cloud_hub.operator.client import HubClient
from cloud_hub.operator.context import HubContext
from cloud_hub.operator.demo.fleet import HubProcess
from support.libraries import shelve
from system.world import World

LOOK_S = "1"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    # Short, because sockets of endpoints lie below it.
    folder = tmp_path_factory.mktemp("w")
    hub = HubProcess(folder / "hub")
    await hub.init("--look", LOOK_S)
    shelve(hub.folder, folder / "wheels")
    try:
        await hub.start()
        async with HubClient(HubContext.load(hub.context)) as client:
            world = World(folder, hub, client)
            assert await world.release(1) == 1
            assert await world.release(2) == 2
            yield world
    finally:
        await hub.service.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def world(whole: World) -> World:
    """Iris is released as versions 1 and 2."""
    await whole.ensure_up()
    return whole
