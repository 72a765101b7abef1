"""What an operator asks of a device and configures on it, from the command line to the module and back."""

from __future__ import annotations

import asyncio
import json

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from agent.config import AgentConfig
from cloud_hub.asking.wanted import NewCommand
from cloud_hub.building.request import BuildRequest
from cloud_hub.operator.cli import app
from cloud_hub.operator.errors import Refused
from cloud_hub.registry import NewModel
from cloud_hub.rollouts.states import RolloutState
from modules.configuration import config_digest
from modules.tensors import TensorSpec
from system.traffic import post
from system.world import EVERYTHING, HEALTH, PROFILE, Device, World

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]
NAME = "scorer"
SCRIPT = b"""
import json, os
wanted = json.loads(os.environ["MOORING_CONFIG"])
def init():
    print("WARNING: loaded with", os.environ["MOORING_CONFIG"], "password=hunter22")
def run(data):
    return [wanted.get("factor", 1.0) * value for value in json.loads(data)["x"]]
"""
SCHEMA = {"type": "object", "properties": {"factor": {"type": "number", "maximum": 10}}, "additionalProperties": False}


async def release(world: World) -> None:
    folder = world.folder / NAME
    folder.mkdir()
    (folder / "notes.txt").write_text("the model is in the script")
    (folder / "entry.py").write_bytes(SCRIPT)
    np.savez(folder / "golden.npz", x=np.ones(1, np.float64), y=np.ones(1, np.float64))
    client = world.client
    await client.register(NewModel(NAME), {"notes.txt": folder / "notes.txt"})
    entry, golden = [(await client.upload(folder / name)).sha256 for name in ("entry.py", "golden.npz")]
    x, y = TensorSpec("x", "FP64", (-1,)), TensorSpec("y", "FP64", (-1,))
    request = BuildRequest(
        NAME, 1, PROFILE, entry=entry, golden=golden, inputs=(x,), outputs=(y,), sampling=EVERYTHING, health=HEALTH,
        config_schema=SCHEMA,
    )  # fmt: skip
    await client.build(request)
    await client.sign(NAME, 1, PROFILE)


async def mooring(world: World, *arguments: str, status: int = 0) -> str:
    """What the command prints on standard output, or on standard error where it fails."""
    environment = {"MOORING_CONTEXT": str(world.hub.context), "COLUMNS": "160"}
    result = await asyncio.to_thread(CliRunner().invoke, app, list(arguments), env=environment)
    assert result.exit_code == status, f"{arguments}: {result.exit_code}\n{result.output}\n{result.exception!r}"
    return result.stderr if status else result.stdout


async def score(device: Device) -> float:
    address = await device.serves(1, NAME)
    status, (_, answer) = await post(address, "/score", b'{"x": [2.0]}', {})
    assert status == 200
    return float(json.loads(answer)[0])


async def test_a_device_is_configured_and_asked_from_the_command_line(world: World) -> None:
    await release(world)
    async with world.device("asked-a", tags={"site": "lab"}) as device:
        await world.roll_out(device, 1, NAME)
        assert await score(device) == 2.0

        text = await mooring(world, "config", "set", NAME, "factor=3", "--target", "site=lab", "-o", "json")
        made = json.loads(text)
        assert (made["revision"], made["devices"]) == (1, 1)
        assert (await world.outcome(made["rollout"])).rollout.state is RolloutState.FINISHED
        assert await score(device) == 6.0
        module = device.module(NAME)
        assert module is not None
        assert module.config_sha256 == config_digest({"factor": 3})
        shown = json.loads(await mooring(world, "config", "show", NAME, "--device", device.name, "-o", "json"))
        assert (shown["applied"], shown["layers"]) == (True, ["target (site=lab)"])
        refused = await mooring(world, "config", "set", NAME, "factor=11", "--device", device.name, status=1)
        assert "$.factor: 11 is greater than the maximum of 10" in refused
        made = json.loads(
            await mooring(world, "config", "set", NAME, "factor=null", "--device", device.name, "-o", "json")
        )
        assert (await world.outcome(made["rollout"])).rollout.state is RolloutState.FINISHED
        assert await score(device) == 2.0
        back = json.loads(await mooring(world, "config", "rollback", NAME, "1", "-o", "json"))
        assert (await world.outcome(back["rollout"])).rollout.state is RolloutState.FINISHED
        assert await score(device) == 6.0

        logs = await mooring(
            world, "device", "logs", device.name, "--module", NAME, "--since", "1h", "--level", "warning"
        )
        assert logs.count("Z WARNING: loaded with") == 4
        assert '{"factor":3}' in logs
        assert "hunter22" not in logs
        assert "agent.update.engine" in await mooring(world, "device", "logs", device.name, "--level", "info")
        restarted = await mooring(world, "device", "restart", device.name, NAME)
        assert "another worker serves" in restarted
        assert await score(device) == 6.0
        refused = await mooring(world, "device", "restart", device.name, "other", status=1)
        assert "not one that serves here" in refused
        target = world.folder / "diagnosis.json"
        await mooring(world, "device", "diagnose", device.name, "--file", str(target))
        found = json.loads(target.read_text())
        assert found["status"]["report"]["device"] == device.name
        assert found["logs"][NAME]
        assert "hunter22" not in target.read_text()
        listed = json.loads(await mooring(world, "command", "list", "--device", device.name, "-o", "json"))
        assert [(one["kind"], one["state"]) for one in listed] == [
            ("diagnostics", "done"), ("restart", "refused"), ("restart", "done"), ("logs", "done"), ("logs", "done"),
        ]  # fmt: skip


async def test_a_device_that_is_away_answers_when_it_is_back_unless_the_command_was_cancelled(world: World) -> None:
    async with world.device("asked-b") as device, world.device("asked-c") as other:
        await device.service.kill()
        new = NewCommand("logs", target="id in (asked-b, asked-c)", lines=5)
        batch = await world.client.ask_devices(new)
        assert [one.device for one in batch.commands] == ["asked-b", "asked-c"]
        away, there = batch.commands

        async def ended(id_: str) -> bool:
            return (await world.client.command(id_)).state != "pending"

        await world.until("the answer of the other", lambda: ended(there.id))
        assert {one.batch for one in await world.client.commands(batch=batch.batch)} == {batch.batch}
        with pytest.raises(Refused, match="has brought nothing"):
            await world.client.command_result(away.id)
        cancelled = (await world.client.ask_devices(NewCommand("restart", device=device.name, module="x"))).commands[0]
        assert (await world.client.cancel_command(cancelled.id)).state == "cancelled"
        with pytest.raises(Refused, match="it has ended"):
            await world.client.cancel_command(cancelled.id)
        config = AgentConfig.load(device.paths)
        device.configure(commands=msgspec.structs.replace(config.commands, refuse=("restart",)))
        await device.start()
        await world.until("the answer of the one that was away", lambda: ended(away.id))
        done = await world.client.command(away.id)
        assert (done.state, done.found > 0) == ("done", True)
        refused = (await world.client.ask_devices(NewCommand("restart", device=device.name))).commands[0]
        await world.until("the refusal", lambda: ended(refused.id))
        assert (await world.client.command(refused.id)).key == "not-allowed"
        assert other.service.pid is not None
