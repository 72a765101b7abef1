"""Broker, hub or agent killed, or away for long, while every prediction is sampled: all of it arrives exactly once.

What a device promises. Everything in its outbox survives any death of any process and reaches the hub once. Items get
there within `commit_every_s` of the moment the worker hands them over: a sample at once after its answer, a window
when it closes. So a killed agent may lose the open window and the last moments' samples, and nothing else; one that
was asked to stop loses nothing.
"""

from __future__ import annotations

import pytest

from modules.messages import decode_sample
from modules.windows import decode_window
from support.waiting import until
from system.traffic import Traffic, predict
from system.world import DEADLINE_S, Device, World

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def more(traffic: Traffic, device: Device, count: int = 50) -> None:
    """Waits until the application has had that many more answers."""
    wanted = len(traffic.answered) + count
    await until(lambda: len(traffic.answered) >= wanted, f"{count} more answers on {device.name}", DEADLINE_S)


async def test_every_row_and_sample_arrives_once_though_broker_and_hub_are_killed(world: World) -> None:
    async with world.device("samples-1") as device:
        address = await world.roll_out(device, 1)
        async with Traffic(address, "fault", kept=True) as traffic:
            await more(traffic, device)
            await world.kill_broker()
            await more(traffic, device)
            await world.kill_hub()
            await more(traffic, device)
            await world.hub.start()
            await more(traffic, device)
        assert traffic.failed == []
        await world.arrived(device, (1,), traffic.answered)


async def test_a_killed_agent_loses_nothing_that_was_in_its_outbox_and_doubles_nothing(world: World) -> None:
    async with world.device("samples-2") as device:
        address = await world.roll_out(device, 1)
        first = await predict(address, "before", 100)
        await world.arrived(device, (1,), first)
        await world.kill_hub()
        async with Traffic(address, "during", kept=True) as traffic:
            await until(
                lambda: len(device.waiting("sample")) >= 50 and len(device.waiting("window")) >= 2,
                "the outbox to fill",
                DEADLINE_S,
            )
            await device.service.kill()
        samples = [decode_sample(item).prediction_id for item in device.waiting("sample")]
        rows = sum(decode_window(item).rows for item in device.waiting("window"))
        assert samples == traffic.asked[: len(samples)], "only the last ones may be missing"
        await device.start()
        second = await predict(await device.serves(1), "after", 100)
        await world.hub.start()

        async def all_there() -> bool:
            counted = await world.counted(device, 1)
            return counted >= len(first) + rows + len(second) and len(await world.sampled(device)) >= (
                len(first) + len(samples) + len(second)
            )

        await world.until("the outbox to arrive", all_there)
        await until(lambda: not device.waiting(), "nothing to wait on the device", DEADLINE_S)
        assert sorted(await world.sampled(device)) == sorted([*first, *samples, *second])
        assert await world.counted(device, 1) == len(first) + rows + len(second)


async def test_a_device_serves_and_restarts_without_its_hub_and_tells_everything_later(world: World) -> None:
    async with world.device("samples-3") as device:
        address = await world.roll_out(device, 1)
        await world.kill_hub()
        await device.until("it is offline", lambda status: not status.link.connected)
        offline = await predict(address, "offline", 50)
        await device.service.stop()
        assert len(device.waiting("sample")) == 50, "a stop in order writes everything down"
        assert sum(decode_window(item).rows for item in device.waiting("window")) == 50
        await device.start()
        assert await device.serves(1) == address
        restarted = await predict(address, "restarted", 50)
        await world.hub.start()
        await world.arrived(device, (1,), [*offline, *restarted])
