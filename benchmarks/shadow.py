"""What a shadow costs the version that serves: latency with one beside it against none, in turns.

Real workers under a real keeper; the load, RATE requests a second, is a process of its own (`_load.py`), open loop, so
that a request that waits counts from when it was due. Both versions are nets of 4 MiB, 0.2 ms a run. In a third kind of
turn the candidate answers half of the requests. All of it shares the machine: load, parent, both workers. The time
that one prediction takes of the serving worker to be given away is measured apart, without any of these.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from agent.candidates.beside import Beside
from agent.candidates.terms import Terms
from agent.config import ServingSettings, StatePaths
from agent.endpoint.recorder import Prediction
from agent.endpoint.regions import Regions
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
GIVEN = 20  # predictions at once, which the kernel has room for
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
    _tell(seen, spans, fed, reasons, await _given_us())


async def _given_us() -> dict[str, float]:
    """Processor time of the serving worker for each prediction, without a shadow and with one: the best of many."""
    ours, theirs = socket.socketpair()
    tap = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    manifest = _module(1).manifest
    beside = Beside(manifest, tap[1].detach(), Regions(allowed=False), lambda _: None, lambda _: 0.0)
    arrays = np.zeros((1, 20), np.float32), np.zeros((1, 3), np.float32)
    prediction = Prediction("0123456789abcdef", 1, {"x": arrays[0]}, {"y": arrays[1]})
    found = {"given_none_us": _best_us(lambda: beside.observe(prediction), lambda: None)}
    await beside._open(Terms(2, "0" * 64, "shadow", 1.0), ours)
    theirs.setblocking(False)
    found["given_us"] = _best_us(lambda: beside.observe(prediction), lambda: _read(theirs))
    await beside.stop()
    for one in (theirs, tap[0]):
        one.close()
    return found


def _best_us(work: Callable[[], None], between: Callable[[], None]) -> float:
    best = float("inf")
    for _ in range(500):
        started = time.process_time_ns()
        for _ in range(GIVEN):
            work()
        best = min(best, (time.process_time_ns() - started) / GIVEN / 1000)
        between()
    return best


def _read(pipe: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while pipe.recv(1 << 20):
            pass


def _tell(
    seen: list[tuple[float, float]],
    spans: dict[str, list[tuple[float, float]]],
    fed: list[float],
    reasons: object,
    given: dict[str, float],
) -> None:
    metrics: dict[str, float] = {"failed": sum(latency < 0 for _, latency in seen), "fed_share": median(fed)}
    metrics |= given
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
