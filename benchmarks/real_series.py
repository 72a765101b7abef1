"""Real series through a real agent and hub: how many looks until an alarm, and how many false ones before.

A device serves the models; each look one request brings its rows. Time is 3,600 times as fast as on a hub with hourly
looks, and the promise with it, so that thresholds are those of one false alarm in 12 months. Beside it, on the same
rows: a Kolmogorov-Smirnov test per look and feature with Bonferroni, an alarm at every look, and none at all. A delay
of -1 is none within the stream. An alarm before the change is false; just before the change the operator calls what is
open the new normal, as one would who has looked.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import tempfile
import time
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from agent.config import StatePaths
from agent.report import read_status
from benchmarks._series import DAY, INPUT, THREE_HOURS, Series, occupancy, wine
from benchmarks.common import median, report
from cloud_hub.building.request import BuildRequest
from cloud_hub.claims import NewToken
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.context import HubContext
from cloud_hub.operator.demo.fleet import AgentProcess, HubProcess, local_profile
from cloud_hub.operator.demo.processes import until
from cloud_hub.registry import NewModel
from cloud_hub.rollouts.new import NewRollout
from modules.manifest import Health, SamplingPolicy

LOOK_S = 1.0
HOUR_S = 3600.0
MONTHS = 12.0
POLICY = SamplingPolicy(rate=0.0, window_s=0.5)
DEADLINE_S = 120.0
SETTLE_S = 10.0
DEVICE = "replayed"


class Outcome:
    """Alarms of one series, in looks since the change; those before it are false."""

    def __init__(self, alarms: list[float]) -> None:
        self.false = sum(at < 0 for at in alarms)
        right = [at for at in alarms if at >= 0]
        self.delay = math.ceil(min(right)) if right else math.inf


async def main() -> None:
    os.environ["MOORING_HUB_FALSE_ALARM_MONTHS"] = repr(MONTHS * LOOK_S / HOUR_S)
    every = [
        *(wine(seed) for seed in range(3)),
        occupancy("occupancy-day", DAY),
        occupancy("occupancy-3h", THREE_HOURS),
    ]
    with tempfile.TemporaryDirectory(prefix="mooring-series-") as folder:
        found = await _replayed(every, Path(folder))
    metrics = {}
    for name, part in (("wine", every[:3]), ("occupancy_day", every[3:4]), ("occupancy_3h", every[4:])):
        rules = {
            "": [found[series.name] for series in part],
            "_ks": [Outcome(_ks_alarms(series)) for series in part],
            "_always": [Outcome([float(i - s.looks_before) for i in range(len(s.looks))]) for s in part],
            "_never": [Outcome([]) for _ in part],
        }
        for rule, outcomes in rules.items():
            delay = median([outcome.delay for outcome in outcomes])
            metrics[f"{name}_delay_looks{rule}"] = -1.0 if math.isinf(delay) else delay
            metrics[f"{name}_false_alarms{rule}"] = float(sum(outcome.false for outcome in outcomes))
    for key, value in metrics.items():
        print(f"{key:32} {value:g}")
    report("real_series", metrics)


async def _replayed(every: list[Series], folder: Path) -> dict[str, Outcome]:
    hub = HubProcess(folder / "hub")
    await hub.init("--look", str(LOOK_S))
    async with AsyncExitStack() as stack:
        await hub.start()
        stack.push_async_callback(hub.service.stop)
        client = await stack.enter_async_context(HubClient(HubContext.load(hub.context)))
        device = AgentProcess(DEVICE, folder)
        token = await client.create_token(NewToken(device=DEVICE))
        await device.enrol(client.context.url, token, local_profile())
        device.show_at_once()
        await device.start()
        stack.push_async_callback(device.service.stop)
        for series in every:
            await _release(client, series, folder)
        addresses = await _addresses(device, every)
        changes = await asyncio.gather(*(_replay(client, addresses[series.name], series) for series in every))
        await asyncio.sleep(SETTLE_S)
        opened = [
            event for kind in ("opened", "reopened") for event in await client.events(f"alert.{kind}", limit=1000)
        ]
    alarms = [event for event in opened if event.details["alert_kind"] == "drift"]
    return {
        series.name: Outcome([(e.at - change) / LOOK_S for e in alarms if e.details["module"] == series.name])
        for series, change in zip(every, changes, strict=True)
    }


async def _release(client: HubClient, series: Series, folder: Path) -> None:
    """Registered, built with its reference, signed, and on its way to the device."""
    model, training = folder / f"{series.name}.onnx", folder / f"{series.name}.npz"
    model.write_bytes(series.onnx)
    np.savez(training, **{INPUT: series.reference})
    version = (await client.register(NewModel(series.name), {"model.onnx": model})).version
    reference = (await client.upload(training)).sha256
    health = Health(probation_s=0.5, probation_inferences=0)
    await client.build(
        BuildRequest(series.name, version, local_profile(), reference=reference, sampling=POLICY, health=health)
    )
    await client.sign(series.name, version, local_profile())
    await client.create_rollout(NewRollout(series.name, version, "all", ("rest",), start=True))


async def _addresses(device: AgentProcess, every: list[Series]) -> dict[str, str]:
    found: dict[str, str] = {}

    def all_serve() -> bool:
        status = read_status(StatePaths(device.state).status)
        found.update({m.name: m.endpoint for m in status.report.modules if m.verified} if status else {})
        return len(found) == len(every)

    await until("every model serves", all_serve, DEADLINE_S, device.service)
    return found


async def _replay(client: HubClient, address: str, series: Series) -> float:
    """One request in the middle of each look; when the first rows of the other kind were sent."""
    changed = math.inf
    start = math.ceil(time.time() / LOOK_S) * LOOK_S + LOOK_S / 4
    for number, rows in enumerate(series.looks):
        await asyncio.sleep(max(0.0, start + number * LOOK_S - time.time()))
        if number == series.looks_before:
            for alert in await client.alerts("live", series.name, 1000):
                await client.resolve_alert(alert.id, "seen", normal=True)
            changed = time.time()
        await asyncio.to_thread(_ask, address, series.name, rows)
    return changed


def _ask(address: str, name: str, rows: np.ndarray) -> None:
    tensor = {"name": INPUT, "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
    request = urllib.request.Request(
        f"{address}/v2/models/{name}/infer",
        json.dumps({"inputs": [tensor]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        answer.read()


def _ks_alarms(series: Series) -> list[float]:
    """Looks in which a test per feature says p < 0.05 after Bonferroni over the features."""
    from scipy.stats import ks_2samp

    features = series.reference.shape[1]
    alarms = []
    for number, rows in enumerate(series.looks):
        values = [ks_2samp(series.reference[:, i], rows[:, i]).pvalue for i in range(features)]
        if min(values) < 0.05 / features:
            alarms.append(float(number - series.looks_before))
    return alarms


if __name__ == "__main__":
    asyncio.run(main())
