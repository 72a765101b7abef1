"""A hub under a simulated fleet: connected, in a rollout, at rest, and after its broker was killed.

A real hub (`mooring-hub serve`) with its own Mosquitto, on SQLite or PostgreSQL; `mooring simulate` in its own process,
with a key and a certificate for each device, over TLS 1.3. All on this machine.

`connect_s`: from the simulator's start until every device is connected. `rollout_s`: a signed module to all of them,
rate unlimited, until every device is verified after a probation of PROBATION_S; `api_p99_ms` are calls to several
routes meanwhile, one after another; `rollout_*_cpu_s` is what it cost, which says more where the machine is busy. Then
at rest: a report every 60 s and a window every 300 s from each device: `hub_pss_mib`, `hub_cores`, `broker_pss_mib`,
`broker_cores`, and the simulator's own. With --storm the broker is killed (SIGKILL): `storm_recovered_s` is when every
device is connected again and has reported. `lost_reports`: devices of which the hub does not have the last report at
the end; `lost_windows` those that were given up or not acknowledged.

    benchmarks/fleet.py [--devices 1000] [--steady 120] [--storm] [--database sqlite|postgres] [--profile-hub FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import msgspec  # noqa: E402
from sqlalchemy import select  # noqa: E402

from benchmarks._processes import Meter, children, cpu_s  # noqa: E402
from benchmarks.common import report  # noqa: E402
from cloud_hub.config import HubConfig, HubPaths  # noqa: E402
from cloud_hub.initialise import free_ports, initialise  # noqa: E402
from cloud_hub.operator.client import HubClient  # noqa: E402
from cloud_hub.operator.context import HubContext  # noqa: E402
from cloud_hub.rollouts.new import NewRollout  # noqa: E402
from cloud_hub.service import open_hub  # noqa: E402
from cloud_hub.simulator.state import DeviceState  # noqa: E402
from cloud_hub.store.address import database_url  # noqa: E402
from cloud_hub.store.engine import Store  # noqa: E402
from cloud_hub.store.tables import devices  # noqa: E402
from support.postgres import running_postgres  # noqa: E402
from support.simulated import MODULE, publish  # noqa: E402

PROBATION_S = 20.0
MODULE_BYTES = 1_000_000
START_S = 60.0
CONNECT_S = 600.0
ROLLOUT_S = 900.0
STORM_S = 600.0
SETTLE_S = 30.0
TELL_S = 20.0
PACE_S = 0.1  # between two calls of the API
PROFILE = """\
report_every_s = 60
window_every_s = 300
"""


class Simulator:
    """`mooring simulate` as a process; `last` is the newest summary that it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.last: dict[str, Any] = {}
        self.ready_s = 0.0
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read(), name="simulator-lines")

    @property
    def pid(self) -> int:
        return self.process.pid

    async def until(self, what: str, deadline_s: float, holds: Any) -> float:
        """Seconds until `holds(last)`."""
        began = time.monotonic()
        while not (self.last and holds(self.last)):
            left = deadline_s - (time.monotonic() - began)
            if left <= 0 or self.process.returncode is not None:
                raise SystemExit(f"{what}: not within {deadline_s:.0f} s; the simulator says {self.last}")
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), min(left, 5.0))
        return time.monotonic() - began

    async def end(self) -> dict[str, Any]:
        self.process.send_signal(signal.SIGINT)
        await asyncio.wait_for(self._reading, START_S)
        await self.process.wait()
        return self.last

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            said = json.loads(line)
            if said["kind"] == "ready":
                self.ready_s = said["ready"]["seconds"]
            else:
                self.last = said[said["kind"]]
            self._news.set()


@asynccontextmanager
async def simulating(paths: HubPaths, count: int, folder: Path) -> AsyncIterator[Simulator]:
    (folder / "profile.toml").write_text(PROFILE)
    command = [
        str(Path(sys.executable).with_name("mooring")), "--context", str(paths.context), "simulate", "-o", "json",
        "--devices", str(count), "--profile", str(folder / "profile.toml"), "--state", str(folder / "fleet.sqlite"),
        "--seed-database", str(paths.root), "--tag", "site=lab",
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, limit=2**20)
    simulator = Simulator(process)
    try:
        yield simulator
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@contextlib.contextmanager
def serving(paths: HubPaths, profile: Path | None) -> Iterator[subprocess.Popen[bytes]]:
    """The hub as a process; with `profile` its functions are counted into that file (cProfile, which slows it)."""
    ready = paths.root / "ready.json"
    hub = str(Path(sys.executable).with_name("mooring-hub"))
    program = [sys.executable, "-m", "cProfile", "-o", str(profile), hub] if profile is not None else [hub]
    with (paths.root / "hub.log").open("ab") as log:
        command = [*program, "serve", str(paths.root), "--ready-file", str(ready)]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        end = time.monotonic() + START_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit((paths.root / "hub.log").read_text()[-3000:])
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(START_S)


async def make_hub(folder: Path, database: str) -> tuple[HubConfig, HubPaths]:
    ports = free_ports(2)
    config = HubConfig(
        dev=True, public_host="localhost", api_host="127.0.0.1", mqtt_host="127.0.0.1", api_port=ports[0],
        mqtt_port=ports[1], database=database,
    )  # fmt: skip
    paths = await initialise(folder, config)
    async with open_hub(paths) as rooms:
        await publish(rooms, size=MODULE_BYTES, probation_s=PROBATION_S)
    return config, paths


async def call_on(client: HubClient, rollout: str, device: str, took_ms: list[float], slow: dict[str, float]) -> None:
    """Calls what an operator looks at during a rollout, until cancelled."""
    calls = {
        "rollout": lambda: client.rollout(rollout),
        "device": lambda: client.device(device),
        "events": lambda: client.events(limit=50),
        "health": lambda: client.health(),
    }
    for name in itertools.cycle(calls):
        began = time.perf_counter()
        await calls[name]()
        took_ms.append(1000 * (time.perf_counter() - began))
        slow[name] = max(slow.get(name, 0.0), took_ms[-1])
        await asyncio.sleep(PACE_S)


async def roll_out(client: HubClient, simulator: Simulator, hub: int) -> dict[str, float]:
    pids = {"hub": hub, "broker": broker_of(hub), "simulator": simulator.pid}
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    began = told = time.monotonic()
    started = await client.create_rollout(NewRollout(MODULE, 1, "all", start=True))
    device = started.executions[0].device
    took_ms: list[float] = []
    slow: dict[str, float] = {}
    calling = asyncio.create_task(call_on(client, started.rollout.id, device, took_ms, slow))
    try:
        while True:
            status = await client.rollout(started.rollout.id)
            if status.rollout.state != "running" or time.monotonic() - began > ROLLOUT_S:
                break
            if time.monotonic() - told > TELL_S:
                told = time.monotonic()
                now = {
                    name: simulator.last[name] for name in ("connected", "questions", "reports", "updates", "errors")
                }
                print(f"{told - began:.0f} s: {now}", flush=True)
            await asyncio.sleep(0.5)
    finally:
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calling
    seconds = time.monotonic() - began
    print(f"rollout {status.rollout.state} after {seconds:.1f} s; slowest calls (ms): {slow}", flush=True)
    p99 = statistics.quantiles(took_ms, n=100)[98] if len(took_ms) > 1 else 0.0
    return {
        "rollout_s": seconds,
        "rollout_finished": float(status.rollout.state == "finished"),
        "api_p99_ms": p99,
        "api_median_ms": statistics.median(took_ms),
    } | {f"rollout_{name}_cpu_s": cpu_s(pid) - before[name] for name, pid in pids.items()}


async def at_rest(hub: int, broker: int, simulator: Simulator, seconds: float) -> dict[str, float]:
    await asyncio.sleep(SETTLE_S)
    meters = {"hub": Meter(hub), "broker": Meter(broker), "simulator": Meter(simulator.pid)}
    before = dict(simulator.last)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for meter in meters.values():
            meter.look()
        await asyncio.sleep(min(5.0, max(0.0, end - time.monotonic())))
    metrics: dict[str, float] = {}
    for name, meter in meters.items():
        metrics |= {f"{name}_cores": meter.cores, f"{name}_pss_mib": meter.most_mib}
    passed = simulator.last["seconds"] - before["seconds"]
    for what in ("reports", "windows"):
        metrics[f"{what}_per_s"] = (simulator.last[what] - before[what]) / passed
    return metrics


async def storm(hub: int, simulator: Simulator, count: int) -> dict[str, float]:
    before = simulator.last["reports"]
    began = time.monotonic()
    os.kill(broker_of(hub), signal.SIGKILL)
    await simulator.until("the broker's end to be noticed", STORM_S, lambda now: now["connected"] < count / 2)
    await simulator.until(
        "everybody to be back", STORM_S, lambda now: now["connected"] == count and now["reports"] >= before + count
    )
    return {"storm_recovered_s": time.monotonic() - began}


def broker_of(hub: int) -> int:
    return next(pid for pid, name in children(hub).items() if name == "mosquitto")


async def lost(config: HubConfig, paths: HubPaths, state: Path) -> float:
    """Devices whose last report is not what the hub has."""
    with contextlib.closing(sqlite3.connect(state)) as book:
        rows = book.execute("SELECT device, state FROM devices").fetchall()
    sent = {name: msgspec.msgpack.decode(body, type=DeviceState).counter for name, body in rows}
    store = await Store.open(database_url(config, paths), migrate=False)
    try:
        async with store.read() as connection:
            query = select(devices.c.id, devices.c.report_counter)
            known = {row.id: row.report_counter for row in await connection.execute(query)}
    finally:
        await store.close()
    return float(sum(known[name] < counter for name, counter in sent.items()))


async def measure(folder: Path, database: str, chosen: argparse.Namespace) -> dict[str, float]:
    config, paths = await make_hub(folder / "hub", database)
    count = chosen.devices
    with serving(paths, chosen.profile_hub) as hub:
        async with simulating(paths, count, folder) as simulator, HubClient(HubContext.load(paths.context)) as client:
            await simulator.until("devices to be seeded", CONNECT_S, lambda _: True)
            connect_s = await simulator.until(
                "devices to connect", CONNECT_S, lambda now: now["connected"] == count and now["reports"] >= count
            )
            metrics = {"devices": float(count), "seed_s": simulator.ready_s, "connect_s": connect_s}
            print(metrics, flush=True)
            metrics |= await roll_out(client, simulator, hub.pid)
            print({key: round(value, 2) for key, value in metrics.items()}, flush=True)
            if chosen.steady:
                metrics |= await at_rest(hub.pid, broker_of(hub.pid), simulator, chosen.steady)
                print({key: round(value, 2) for key, value in metrics.items()}, flush=True)
            if chosen.storm:
                metrics |= await storm(hub.pid, simulator, count)
            await asyncio.sleep(5.0)  # what is on its way arrives
            said = await simulator.end()
            print({"errors": said["errors"], "late_s": said["late_s"], "updates": said["updates"]}, flush=True)
        await asyncio.sleep(5.0)
    metrics["lost_reports"] = await lost(config, paths, folder / "fleet.sqlite")
    metrics["lost_windows"] = float(said["windows_lost"])
    metrics["hub_dropped"] = float((paths.root / "hub.log").read_text().count(" dropped "))
    return metrics


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--steady", type=float, default=120.0, help="seconds at rest; 0: none")
    parser.add_argument("--storm", action="store_true")
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--profile-hub", type=Path, help="write what cProfile finds in the hub to this file")
    parser.add_argument("--keep", type=Path, help="a folder for the hub, which stays")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        folder = chosen.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mooring-fleet-")))
        folder.mkdir(parents=True, exist_ok=True)
        address = "sqlite"
        if chosen.database == "postgres":
            address = stack.enter_context(running_postgres({})).create("hub")
        metrics = await measure(folder, address, chosen)
    report(f"fleet_{chosen.devices}", metrics)


if __name__ == "__main__":
    asyncio.run(main())
