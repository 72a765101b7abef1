"""What a shadow costs the version that serves: latency with one beside it against none, in turns.

Real workers under a real keeper; the load, RATE requests a second, is a process of its own (`_load.py`), open loop, so
that a request that waits counts from when it was due. Both versions are nets of 4 MiB, 0.2 ms a run. In a third kind of
turn the candidate answers half of the requests. All of it shares the machine: load, parent, both workers.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agent.config import ServingSettings, StatePaths
from agent.installed import Installed, ModuleSet
from agent.runtimes.keeper import Keeper
from agent.runtimes.process import ProcessRuntime
from agent.slots import Slots
from agent.store import AgentStore
from benchmarks._load import records
from benchmarks.common import median, report
from benchmarks.handover import NAME, _latencies, _module, _p, _start
from modules.targets import Mode
from support.built import Built, install
from support.waiting import until

RATE = int(os.environ.get("RATE", "300"))
ROUNDS = int(os.environ.get("ROUNDS", "5"))
TURN_S, CALM_S = 5.0, 2.0
KINDS: dict[str, tuple[Mode, float] | None] = {"none": None, "shadow": ("shadow", 1.0), "arm": ("arm", 0.5)}


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        paths = StatePaths(root / "state")
        for path in (paths.root, paths.slots, paths.endpoints):
            path.mkdir(mode=0o755)
        async with AgentStore(paths.database) as store:
            slots = Slots(paths.slots)
            runtime = ProcessRuntime(paths, ServingSettings(ping_every_s=1.0), store, slots, lambda *_: None)
            keeper = Keeper(runtime, ServingSettings(ping_every_s=1.0), lambda: None)
            try:
                await _measure(root, keeper, runtime, slots)
            finally:
                await keeper.close()


async def _measure(root: Path, keeper: Keeper, runtime: ProcessRuntime, slots: Slots) -> None:
    main_, other = (_installed(slots, runtime._paths.staging, _module(version)) for version in (1, 2))
    await _run(keeper, main_)
    load = _start(root, runtime.address(NAME), runtime._paths.endpoints / f"{NAME}.sock", RATE)
    spans: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    fed: list[float] = []
    for _ in range(ROUNDS):
        for kind, wanted in KINDS.items():
            await _run(keeper, main_, *([] if wanted is None else [_beside(other, *wanted)]))
            await asyncio.sleep(CALM_S)
            begun = time.monotonic()
            await asyncio.sleep(TURN_S)
            spans[kind].append((begun, time.monotonic()))
            fed += await _fed(keeper) if kind == "shadow" else []
    reasons = json.loads(load.communicate()[0])
    seen = list(records(root / "load.bin"))
    _tell(seen, spans, fed, reasons)


def _tell(
    seen: list[tuple[float, float]], spans: dict[str, list[tuple[float, float]]], fed: list[float], reasons: object
) -> None:
    metrics: dict[str, float] = {"failed": sum(latency < 0 for _, latency in seen), "fed_share": median(fed)}
    for kind, turns in spans.items():
        found = [_latencies(seen, begin, end) for begin, end in turns]
        for share in (50, 99):
            metrics[f"{kind}_p{share}_ms"] = median([_p(latencies, share) for latencies in found])
    for kind in ("shadow", "arm"):
        for share in (50, 99):
            metrics[f"{kind}_p{share}_over_none"] = metrics[f"{kind}_p{share}_ms"] / metrics[f"none_p{share}_ms"]
    print(f"{len(seen)} requests at {RATE} a second, {metrics['failed']:.0f} failed {reasons or ''}")
    report("shadow", metrics)


async def _run(keeper: Keeper, *modules: Installed) -> None:
    await keeper.switch(ModuleSet(1, 1, modules), {})
    units = [keeper.unit(module.key) for module in modules]
    await until(lambda: all(unit is not None and unit.state == "serving" for unit in units), "workers", 60.0)


async def _fed(keeper: Keeper) -> list[float]:
    """Which share of what was offered reached the shadow."""
    counts = (await keeper.poll(NAME)).beside
    return [counts.get("fed", 0) / counts["offered"]] if counts.get("offered") else []


def _installed(slots: Slots, staging: Path, built: Built) -> Installed:
    install(slots, built, staging)
    return Installed(NAME, built.manifest.version, built.sha256, built.manifest.version, "d", verified=True)


def _beside(module: Installed, mode: Mode, share: float) -> Installed:
    import msgspec

    return msgspec.structs.replace(module, mode=mode, share=share, salt="bench")


if __name__ == "__main__":
    asyncio.run(main())
