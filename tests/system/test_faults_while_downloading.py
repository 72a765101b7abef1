"""Broker, hub or agent killed in the middle of a download: it goes on where it was, and the update ends verified."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from cloud_hub.rollouts.states import RolloutState
from support.waiting import until
from system.relay import Relay
from system.traffic import predict
from system.world import DEADLINE_S, OVER_MQTT, Device, World

pytestmark = pytest.mark.asyncio(loop_scope="session")

NAME = "large"
SIZE = 16 * 2**20
HALF = SIZE // 2
# What may come twice: the chunks under way at the cut, those written since the last sync, and what lay in buffers.
# Everything beyond the files is metadata of the two repositories.
SLACK = 4 * 2**20

Fault = Callable[[World, Device], Awaitable[None]]


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def large(whole: World) -> AsyncIterator[int]:
    """A module with 16 MiB beside its model; its version."""
    await whole.ensure_up()
    yield await whole.release(1, name=NAME, extra={"table.bin": random.Random(1).randbytes(SIZE)})


async def kill_broker(world: World, device: Device) -> None:
    await world.kill_broker()


async def kill_hub(world: World, device: Device) -> None:
    await world.kill_hub()
    await world.hub.start()


async def kill_agent(world: World, device: Device) -> None:
    await device.service.kill()
    await device.start()


@pytest.mark.parametrize("fault", [kill_broker, kill_hub, kill_agent])
async def test_a_download_goes_on_where_it_was(world: World, large: int, fault: Fault) -> None:
    name = f"load-{fault.__name__.removeprefix('kill_')}"
    async with world.device(name, start=False) as device, Relay(world.mqtt_port) as relay:
        device.configure(mqtt_port=relay.port, fetch=OVER_MQTT)
        await device.start()
        address = await world.roll_out(device, 1)
        before = relay.received
        relay.hold_after(HALF)
        rollout = await world.order(device, large, NAME)
        await until(relay.held.is_set, "half of the module to arrive", DEADLINE_S)
        assert await predict(address, f"{name}-held", 1), "the old module serves meanwhile"
        await fault(world, device)
        relay.cut()
        state, execution = await world.ended(rollout)
        assert state is RolloutState.FINISHED, execution
        assert SIZE < relay.received - before < SIZE + SLACK
        assert await predict(await device.serves(large, NAME), f"{name}-after", 1, NAME)
