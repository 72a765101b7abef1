"""A stick from a real hub: exported by command, installed on a device that was never online, which then goes online."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from agent.config import AgentConfig
from cloud_hub.operator.demo.processes import command, once
from cloud_hub.rollouts.states import RolloutState
from modules.offline import NOTE_FILE, read_note
from system.world import Device, World

pytestmark = pytest.mark.asyncio(loop_scope="session")
NOWHERE = 1  # a port where no broker listens


async def export(world: World, folder: Path, *arguments: str) -> dict[str, object]:
    hub = (command("mooring"), "--context", str(world.hub.context))
    said = await once([*hub, "device", "export", *arguments, str(folder), "-o", "json"])
    found: dict[str, object] = json.loads(said)
    return found


async def install(device: Device, folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(await device.ask("install", str(folder), "--json"))
    return found


@pytest.mark.parametrize("days", ["7", "30"])
async def test_a_device_without_a_network_is_updated_from_a_stick_and_goes_on_with_the_hub(
    world: World, tmp_path: Path, days: str
) -> None:
    async with world.device(f"far-{days}", start=False) as device:
        online = AgentConfig.load(device.paths).mqtt_port
        device.configure(mqtt_port=NOWHERE)
        first = await world.order(device, 1)
        await world.until("the assignment", lambda: directed(world, device))
        stick = tmp_path / "stick"
        made = await export(world, stick, device.name, "--valid-days", days)
        assert (made["modules"], made["devices"]) == (1, [device.name])
        assert read_note((stick / NOTE_FILE).read_bytes()).complete
        assert (await install(device, stick))["state"] == "installed"
        await device.start()
        await device.serves(1)
        status = device.status()
        assert status is not None
        assert not status.link.connected
        await device.service.stop()
        device.configure(mqtt_port=online)
        await device.start()
        state, execution = await world.ended(first)
        assert state is RolloutState.FINISHED, execution
        await world.roll_out(device, 2)
        assert device.attacks() == {}


async def directed(world: World, device: Device) -> bool:
    found = await world.client.device(device.name)
    return bool(msgspec.to_builtins(found.desired))
