"""A policy changed, rows asked for and a large tensor sent, by a real hub and a real device that never restarts its
worker for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud_hub.asking.book import AskedCommand
from cloud_hub.asking.commands import NewSampleRequest
from cloud_hub.asking.policies import PolicyChange
from cloud_hub.building.request import BuildRequest
from cloud_hub.monitoring.samples import SampleQuery, SampleRow
from cloud_hub.operator.errors import Refused
from cloud_hub.registry import NewModel
from modules.commands import AskSamples
from modules.manifest import SamplingPolicy
from support.predict import get
from support.shop import linear
from support.waiting import until
from system.world import DEADLINE_S, HEALTH, MODEL, PROFILE, Device, World

# Several steps, each with a deadline of its own: on a busy machine they take longer together than one test usually may.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]

WIDE = 2100


async def predict(address: str, values: list[float], id_: str, name: str = MODEL) -> None:
    x = {"name": "X" if name == MODEL else "x", "datatype": "FP32", "shape": [1, len(values)], "data": values}
    await get(f"{address}/v2/models/{name}/infer", json.dumps({"id": id_, "inputs": [x]}).encode())


async def change(world: World, device: Device, name: str = MODEL, **fields: Any) -> None:
    assert await world.client.change_sampling(PolicyChange(name, f"id={device.name}", fields))


async def ended(world: World, id_: str) -> AskedCommand:
    found: list[AskedCommand] = []

    async def so() -> bool:
        found.append(await world.client.command(id_))
        return found[-1].state != "pending" and found[-1].arrived >= found[-1].count

    await world.until(f"an answer to {id_}", so)
    return found[-1]


async def samples(world: World, **query: Any) -> list[SampleRow]:
    return await world.client.samples(SampleQuery(limit=500, **query))


async def ask(world: World, device: Device, **asked: Any) -> AskedCommand:
    new = NewSampleRequest(device.name, AskSamples(MODEL, **asked))
    return await ended(world, (await world.client.request_samples(new)).id)


async def test_a_policy_changes_without_a_restart_and_rows_of_the_ring_come_when_asked(world: World) -> None:
    async with world.device("asked-1") as device:
        address = await world.roll_out(device, 1)
        with pytest.raises(Refused, match="keeps no predictions"):
            await ask(world, device)
        strata = {"big": {"rate": 1.0, "when": "between", "feature": "X[0]", "at_least": 50.0}}
        redact = {"X[3]": {"action": "drop"}}
        await change(world, device, rate=0.0, ring_rows=500, strata=strata, redact=redact)

        async def taken() -> bool:
            await predict(address, [99.0, 0.0, 0.0, 5.0], f"big-{len(tried)}")
            tried.append(1)
            return any(row.stratum == "big" for row in await samples(world, device=device.name))

        tried: list[int] = []
        await world.until("a sample of the new stratum", taken)
        for number in range(5):
            await predict(address, [float(number), 1.0, 2.0, 3.0], f"quiet-{number}")
        done = await ask(world, device, id="quiet-3")
        assert (done.state, done.count, done.arrived) == ("done", 1, 1)
        (row,) = await samples(world, request=done.id)
        assert (row.prediction_id, row.stratum, row.redacted) == ("quiet-3", "asked", {"X[3]": "drop"})
        assert row.inputs[0].data == [[3.0, 1.0, 2.0, None]]
        assert (await ask(world, device, stratum="base", limit=3)).count == 3
        assert not [
            row for row in await samples(world, device=device.name, stratum="base") if "quiet" in row.prediction_id
        ]
        module = device.module()
        assert module is not None
        assert module.restarts == 0

        await device.service.kill()  # what the worker has kept outlives it and the agent
        asked = await world.client.request_samples(NewSampleRequest(device.name, AskSamples(MODEL, id="quiet-1")))
        await device.start()
        await device.serves(1)
        done = await ended(world, asked.id)
        if done.key == "not-serving":  # the device was asked before its worker was up
            done = await ask(world, device, id="quiet-1")
        assert (done.state, done.count) == ("done", 1)
        await change(world, device, ring_rows=None)
        events = await world.client.events(kind="sampling.changed")
        assert events[0].details["devices"] == [device.name]


async def test_a_large_tensor_arrives_apart_and_is_what_the_model_saw(world: World, tmp_path: Path) -> None:
    name, folder = "wide", world.folder
    (folder / "wide.onnx").write_bytes(linear(2.0, columns=WIDE))
    registered = await world.client.register(NewModel(name), {"model.onnx": folder / "wide.onnx"})
    np.savez(folder / "golden.npz", x=np.ones((2, WIDE), np.float32))
    golden = await world.client.upload(folder / "golden.npz")
    policy = SamplingPolicy(rate=1.0, window_s=0.5, blob_bytes=8192)
    request = BuildRequest(name, registered.version, PROFILE, golden=golden.sha256, sampling=policy, health=HEALTH)
    built = await world.client.build(request)
    assert built.version == registered.version
    await world.client.sign(name, registered.version, PROFILE)
    async with world.device("asked-2") as device:
        address = await world.roll_out(device, registered.version, name)
        values = np.arange(WIDE, dtype=np.float32)
        await predict(address, values.tolist(), "picture", name)

        async def here() -> bool:
            found = await samples(world, device=device.name, module=name)
            if not found:
                return False
            try:
                await world.client.sample_blob(found[0].id, found[0].withheld[0].sha256, tmp_path / "x.bin")
            except Refused:
                return False
            return True

        await world.until("the blob", here)
        (row,) = await samples(world, device=device.name, module=name)
        assert [(one.name, one.side, one.why, one.size) for one in row.withheld] == [
            ("x", "input", "blob", 4 * WIDE),
            ("y", "output", "blob", 4 * WIDE),
        ]
        assert np.fromfile(tmp_path / "x.bin", "<f4").tolist() == values.tolist()
        await until(lambda: not device.waiting(), "nothing waits on the device", DEADLINE_S)
        with pytest.raises(Refused, match="has no tensor"):
            await world.client.sample_blob(row.id, "0" * 64, tmp_path / "y.bin")
