"""What the agent's parent process costs: memory when idle, seconds to its connection, growth with a module loaded.

A real hub and broker run beside it; agents run one at a time, because processes that share pages make each other's
proportional share (PSS) smaller. The hub shares some too, so the resident size (RSS) stands beside it: it counts shared
pages in full and is the most that an agent alone on its device can cost.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from agent.report import Status, read_status
from benchmarks.common import median, report
from cloud_hub.building.request import BuildRequest
from cloud_hub.claims import NewToken
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.context import HubContext
from cloud_hub.operator.demo.fleet import AgentProcess, HubProcess, local_profile
from cloud_hub.operator.demo.processes import until
from cloud_hub.registry import NewModel
from cloud_hub.rollouts.new import NewRollout
from modules.manifest import Health

AGENTS = 3
STARTS = 3  # of each agent
SETTLE_S = 4.0
LOOKS, LOOK_EVERY_S = 5, 0.5
DEADLINE_S = 60.0
MIB = 1024.0  # smaps speaks of KiB


async def main() -> None:
    os.environ["MOORING_ALLOW_DUMPS"] = "1"  # the memory is looked at from outside
    with tempfile.TemporaryDirectory() as folder:
        hub = HubProcess(Path(folder) / "hub")
        await hub.init()
        await hub.start()
        try:
            async with HubClient(HubContext.load(hub.context)) as client:
                await _measure(Path(folder), client)
        finally:
            await hub.service.stop()


async def _measure(folder: Path, client: HubClient) -> None:
    await _release(folder, client)
    connected: list[float] = []
    idle: list[dict[str, float]] = []
    loaded: list[dict[str, float]] = []
    workers: list[dict[str, float]] = []
    for number in range(AGENTS):
        agent = AgentProcess(f"bench-{number}", folder)
        token = await client.create_token(NewToken(device=agent.name))
        await agent.enrol(client.context.url, token, local_profile())
        try:
            for _ in range(STARTS):
                await agent.service.stop()
                connected.append(await _start(agent))
            idle.append(await _memory(agent.service.pid))
            await _load(agent, client)
            loaded.append(await _memory(agent.service.pid))
            workers.append(await _memory(*_below(agent.service.pid)))
        finally:
            await agent.service.stop()
    print(f"start to connected, s: {', '.join(f'{seconds:.2f}' for seconds in connected)}")
    for name, values in (("idle", idle), ("with a module", loaded), ("worker", workers)):
        print(f"{name:14} MiB: {'; '.join(_words(value) for value in values)}")
    report(
        "agent_footprint",
        {
            "idle_pss_mib": median(value["Pss"] for value in idle),
            "idle_rss_mib": median(value["Rss"] for value in idle),
            "connected_s": median(connected),
            "parent_extra_mib": median(b["Pss"] - a["Pss"] for a, b in zip(idle, loaded, strict=True)),
            "parent_extra_rss_mib": median(b["Rss"] - a["Rss"] for a, b in zip(idle, loaded, strict=True)),
            "worker_pss_mib": median(value["Pss"] for value in workers),
        },
    )


async def _start(agent: AgentProcess) -> float:
    """Seconds from starting the process until the broker has accepted it, by the agent's own note of when."""
    began = time.time()
    await agent.service.start()
    status = await _status(agent, lambda status: status.link.connected)
    return status.link.since - began


async def _status(agent: AgentProcess, wanted: Callable[[Status], bool]) -> Status:
    found: list[Status] = []

    def there() -> bool:
        status = read_status(agent.state / "status.json")
        if status is not None and status.pid == agent.service.pid and wanted(status):
            found.append(status)
        return bool(found)

    await until(f"{agent.name} is as wanted", there, DEADLINE_S, agent.service)
    return found[-1]


async def _load(agent: AgentProcess, client: HubClient) -> None:
    """Rolls the module out to this agent."""
    await client.create_rollout(NewRollout("bench", 1, f"id={agent.name}", ("rest",), start=True))
    await _status(agent, lambda status: any(module.verified for module in status.report.modules))


async def _memory(*pids: int) -> dict[str, float]:
    """MiB by name of all these processes, medians of a few looks once they have settled."""
    await asyncio.sleep(SETTLE_S)
    looks = []
    for _ in range(LOOKS):
        each = [_smaps(pid) for pid in pids]
        looks.append({name: sum(smaps[name] for smaps in each) for name in each[0]})
        await asyncio.sleep(LOOK_EVERY_S)
    return {name: median(look[name] for look in looks) for name in looks[0]}


def _smaps(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    fields = {name: float(rest.split()[0]) / MIB for name, _, rest in (line.partition(":") for line in lines)}
    return {name: fields[name] for name in ("Pss", "Rss", "Pss_Anon", "Pss_File")}


def _below(pid: int) -> list[int]:
    """All processes that descend from this one: the worker, and what it is wrapped in."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return children + [one for child in children for one in _below(child)]


def _words(value: Mapping[str, float]) -> str:
    return f"PSS {value['Pss']:.1f} (anonymous {value['Pss_Anon']:.1f}), RSS {value['Rss']:.1f}"


async def _release(folder: Path, client: HubClient) -> None:
    """A classifier of iris, registered, built and signed."""
    model, sample = folder / "model.onnx", folder / "training.npz"
    model.write_bytes(_model(sample))
    await client.register(NewModel("bench"), {"model.onnx": model})
    reference = await client.upload(sample)
    request = BuildRequest("bench", 1, local_profile(), reference=reference.sha256, health=Health(probation_s=0.5))
    await client.build(request)
    await client.sign("bench", 1, local_profile())


def _model(sample: Path) -> bytes:
    from skl2onnx import to_onnx
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    features, labels = load_iris(return_X_y=True)
    rows = features.astype(np.float32)
    np.savez(sample, X=rows)
    model = LogisticRegression(max_iter=500).fit(rows, labels)
    converted = to_onnx(model, rows[:1], options={id(model): {"zipmap": False}}, target_opset=17)
    return bytes(converted.SerializeToString())


if __name__ == "__main__":
    asyncio.run(main())
