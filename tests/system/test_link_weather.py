"""A short sample of the link's torture (tests/soak), over the relay, so that it needs no root and no compiler."""

from __future__ import annotations

import pytest

from support.waiting import until
from system.relay import Relay, Weather
from system.torture import endure, releases
from system.world import DEADLINE_S, OVER_MQTT, World

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIZE = 512 * 1024
# Satellite's tenfold shorter, and worse in its stalls.
WEATHER = Weather(delay_s=0.03, rate=2_000_000.0, stalls=0.02, stall_s=0.3)


@pytest.mark.timeout(180)
async def test_updates_end_and_samples_arrive_once_though_the_link_is_bad_and_broker_and_hub_die(world: World) -> None:
    versions = await releases(world, 3, SIZE)
    async with world.device("weather-1", start=False) as device, Relay(world.mqtt_port) as relay:
        device.configure(mqtt_port=relay.port, fetch=OVER_MQTT)
        await device.start()

        def begin() -> None:
            relay.weather = WEATHER

        async def midway() -> None:
            wanted = relay.received + SIZE // 2
            await until(lambda: relay.received >= wanted, "half of the update to pass", DEADLINE_S)

        async def kill_broker_while_off() -> None:
            await midway()
            relay.off()
            await world.kill_broker()
            relay.on()

        async def kill_hub() -> None:
            await midway()
            await world.kill_hub()
            await world.hub.start()

        await endure(world, device, versions, (kill_broker_while_off, kill_hub), begin)
