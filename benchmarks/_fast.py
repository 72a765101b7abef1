"""What a client over shared memory pays beyond the raw run, in one process with it: called by `serving.py`.

The client is a process of its own, as an application is. Raw runs and requests are interleaved, so that a busy moment
meets both; the overhead is the difference of their medians. `near` is the client that keeps its thread on one
processor, which is what a loop that asks a small model is for; `far` the default; then asyncio and HTTP by the same
package. As a program it measures by itself, with a worker of its own:

    benchmarks/_fast.py [--model mlp] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._slots import MODELS, model, rows, session, write_slot
from benchmarks.common import median, report
from mooring_client import AsyncClient, Client

RUNS = 2000  # of each kind per round
ROUND_S = 2.0
WARM_RUNS = 300
DEADLINE_S = 300.0


def measure(path: str, name: str, rounds: int = 5) -> dict[str, float]:
    """`path` is the worker's Unix socket, which has that for shared memory beside it; `name` one of MODELS.

    Gives shm_overhead_us, and shm_{raw,near,far,async,http}_p50_us with p99 for near and far.
    """
    command = [sys.executable, str(Path(__file__)), "--client", path, "--model", name, "--rounds", str(rounds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=DEADLINE_S, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _client(path: str, name: str, rounds: int) -> dict[str, float]:
    raw = session(model(name))
    row = rows(raw, 1)
    names = [node.name for node in raw.get_outputs()]
    times: dict[str, list[float]] = defaultdict(list)
    with (
        Client(path, model="bench", near=True) as near,
        Client(path, model="bench") as far,
        Client(path, model="bench", transport="http") as web,
    ):
        assert near.transport == "shared-memory", near.transport
        kinds: dict[str, Callable[[], object]] = {
            "raw": lambda: raw.run(names, {"x": row}),
            "far": lambda: far.predict(x=row),
            "http": lambda: web.predict(x=row),
            "near": lambda: near.predict(x=row),
        }
        for ask in kinds.values():
            _timed(ask, WARM_RUNS)
        for _ in range(rounds):
            for kind, ask in kinds.items():
                if kind != "near":
                    near.close()  # which lets the thread go where it likes
                times[kind] += _timed(ask, RUNS)
            near.close()
            times["async"] += asyncio.run(_timed_async(path, row))
    found = {f"shm_{kind}_p50_us": median(values) for kind, values in times.items()}
    found |= {f"shm_{kind}_p99_us": sorted(times[kind])[len(times[kind]) * 99 // 100] for kind in ("near", "far")}
    return {**found, "shm_overhead_us": found["shm_near_p50_us"] - found["shm_raw_p50_us"]}


def _timed(ask: Callable[[], object], runs: int) -> list[float]:
    times, end = [], time.monotonic() + ROUND_S
    while len(times) < runs and time.monotonic() < end:
        started = time.perf_counter_ns()
        ask()
        times.append((time.perf_counter_ns() - started) / 1000)
    return times


async def _timed_async(path: str, row: Any) -> list[float]:
    times = []
    async with AsyncClient(path, model="bench") as client:
        end = time.monotonic() + ROUND_S
        while len(times) < RUNS and time.monotonic() < end:
            started = time.perf_counter_ns()
            await client.predict(x=row)
            times.append((time.perf_counter_ns() - started) / 1000)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mlp", choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--client", default="", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.client:
        print(json.dumps(_client(chosen.client, chosen.model, chosen.rounds)))
        return
    from benchmarks._servers import Ours, requests

    with tempfile.TemporaryDirectory(prefix="mooring-fast-") as folder:
        place = Path(folder)
        place.chmod(0o755)
        raw = session(model(chosen.model))
        server = Ours(place, write_slot(place / "slot", chosen.model, raw), place / "slot")
        server.requests = requests(server.name, rows(raw, 1), place)
        server.start()
        try:
            metrics = measure(server.address, chosen.model, chosen.rounds)
        finally:
            server.stop()
    report("fast", metrics)


if __name__ == "__main__":
    main()
