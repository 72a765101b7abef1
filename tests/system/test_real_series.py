"""Wines of another kind than the model was made with, through a real agent and hub: quiet before, an alarm after.

How many looks it takes, and the same for an office's sensors, is measured by benchmarks/real_series.py.
"""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

from benchmarks._series import INPUT, Series, wine
from cloud_hub.building.request import BuildRequest
from cloud_hub.monitoring.alert_book import Alert
from cloud_hub.registry import NewModel
from modules.manifest import SamplingPolicy
from system.traffic import post
from system.world import HEALTH, PROFILE, World

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]
BEFORE = 6  # looks, of a second each
POLICY = SamplingPolicy(rate=0.0, window_s=0.5)


async def test_wines_of_another_kind_are_noticed_and_those_of_the_same_kind_are_not(world: World) -> None:
    series = wine(before=BEFORE, after=1)
    version = await _release(world, series)
    async with world.device("cellar-1") as device:
        address = await world.roll_out(device, version, series.name)
        for number, rows in enumerate(series.looks[:BEFORE]):
            await _ask(address, series.name, rows)
            await world.until(f"look {number} to be counted", partial(_counted, world, series, version, number + 1))
        assert await _drift(world, series) == []
        strange = series.looks[-1]

        async def noticed() -> bool:
            await _ask(address, series.name, strange)
            return bool(await _drift(world, series))

        await world.until("an alarm", noticed)
        (alert, *_) = await _drift(world, series)
        assert alert.manifest_sha256
        assert any(feature.alarm for feature in alert.evidence.features)


async def _release(world: World, series: Series) -> int:
    model, training = world.folder / f"{series.name}.onnx", world.folder / f"{series.name}.npz"
    model.write_bytes(series.onnx)
    np.savez(training, X=series.reference)
    version = (await world.client.register(NewModel(series.name), {"model.onnx": model})).version
    reference = (await world.client.upload(training)).sha256
    await world.client.build(
        BuildRequest(series.name, version, PROFILE, reference=reference, sampling=POLICY, health=HEALTH)
    )
    await world.client.sign(series.name, version, PROFILE)
    return version


async def _ask(address: str, name: str, rows: np.ndarray) -> None:
    body = {"inputs": [{"name": INPUT, "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}]}
    status, (_, answer) = await post(address, f"/v2/models/{name}/infer", json.dumps(body).encode(), {})
    assert status == 200, answer


async def _counted(world: World, series: Series, version: int, looks: int) -> bool:
    found = await world.client.windows(series.name, version)
    return sum(look.rows for look in found) >= looks * series.per_look


async def _drift(world: World, series: Series) -> list[Alert]:
    return [alert for alert in await world.client.alerts("", series.name) if alert.kind == "drift"]
