"""Which way files come, with real agents and a real hub: over HTTPS, by a gateway next door, and without either."""

import re
from pathlib import Path

import pytest

from agent.config import FetchLimits, GatewaySettings
from cloud_hub.initialise import free_ports
from system.world import Device, World

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]


def came(device: Device) -> set[str]:
    """The transports by which its last download came, as it logged."""
    log = (device.state.parent / f"{device.name}.log").read_text()
    return set(re.findall(r"'(\w+)': \d+", re.findall(r"fetched: files=\d+ bytes=\d+ by=(\{.*?\})", log)[-1]))


async def test_a_device_fetches_over_https_and_falls_back_to_mqtt_where_that_is_shut(world: World) -> None:
    async with world.device("web-1") as device:
        await world.roll_out(device, 1)
        assert came(device) == {"https"}
        await device.service.stop()
        config = (device.paths.config).read_text()
        Path(device.paths.config).write_text(re.sub(r"(?m)^hub = .*$", 'hub = "https://localhost:1"', config))
        await device.start()
        await world.roll_out(device, 2)
        assert "mqtt" in came(device)
        assert "https" not in came(device)


async def test_a_neighbour_gets_its_module_from_the_gateway_which_has_none_of_its_own(world: World) -> None:
    """The gateway's own rights do not matter: it fetches with the neighbour's grant."""
    port = free_ports(1)[0]
    async with (
        world.device("box-1", start=False) as box,
        world.device("near-1", start=False) as near,
    ):
        box.configure(gateway=GatewaySettings(f"127.0.0.1:{port}"))
        near.configure(fetch=FetchLimits(transports=("gateway", "mqtt"), gateways=(f"box-1@127.0.0.1:{port}",)))
        await box.start()
        await box.until("connected", lambda status: status.link.connected)
        await near.start()
        await world.roll_out(near, 1)
        assert came(near) == {"gateway"}
        kept = list(box.paths.gateway.iterdir())
        assert kept, "what was fetched for the neighbour"
        await box.service.stop()
        await world.roll_out(near, 2)
        assert came(near) >= {"mqtt"}
