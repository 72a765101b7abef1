"""Windows and samples per second that one hub process commits from MQTT, exactly once, on SQLite and on PostgreSQL.

A real hub (`mooring-hub serve`) with its own broker; 200 devices in another process, over TLS with certificates of
their own, each with an outbox of hourly windows of 20 features (or of samples of 20 numbers) that it sends batch by
batch, as an agent that was without a connection does. A tenth of all batches is sent twice. `windows_per_s_*` and
`samples_per_s_*` count from the first batch to the last acknowledgement; `*_singly` has one window per batch. At the
end everything in the database is counted: rows, looks of the fleet, of groups and of every device, and marks; `exact`
is true only if all of it is what was sent, once. Then the hub is killed (SIGKILL) in the middle of another such run
and started again; `exact_after_kill` says the same of that.

PostgreSQL runs here too, with its own settings (fsync on), over a socket. `disk_commits_per_s` is what the disk does.

    benchmarks/ingest.py [--devices 200] [--windows 100] [--samples 250] [--databases sqlite,postgres]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import serialization

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from sqlalchemy import func, insert, select  # noqa: E402
from sqlalchemy.ext.asyncio import AsyncConnection  # noqa: E402

from benchmarks._fleet import Device, context  # noqa: E402
from benchmarks.common import report  # noqa: E402
from cloud_hub.blobs import FolderBlobs  # noqa: E402
from cloud_hub.config import HubConfig, HubPaths  # noqa: E402
from cloud_hub.initialise import free_ports, initialise  # noqa: E402
from cloud_hub.monitoring.integers import unpack  # noqa: E402
from cloud_hub.store.address import database_url  # noqa: E402
from cloud_hub.store.engine import Store  # noqa: E402
from cloud_hub.store.tables import devices, looks, samples, streams, windows  # noqa: E402
from modules.messages import encode  # noqa: E402
from modules.windows import Window, decode_window, encode_window, unpack_counts  # noqa: E402
from support.certificates import Pair, make_client  # noqa: E402
from support.monitoring import Built, build_module, make_sample, make_window  # noqa: E402
from support.postgres import running_postgres  # noqa: E402

FEATURES = 20
ROWS = 100
LOOK_S = 3600.0
POOL = 64  # windows that differ; the others are these at other times
BATCH = {"window": 8, "sample": 32}
START_S = 60
SITES = 5
RANDOM = np.random.default_rng(17)


@dataclass
class World:
    """A hub directory with devices and a module, and the process that serves it."""

    paths: HubPaths
    config: HubConfig
    built: Built
    names: list[str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        ready = self.paths.root / "ready.json"
        command = [
            Path(sys.executable).with_name("mooring-hub"),
            "serve",
            str(self.paths.root),
            "--ready-file",
            str(ready),
        ]
        ready.unlink(missing_ok=True)
        log = (self.paths.root / "hub.log").open("ab")
        self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        end = time.monotonic() + START_S
        while not ready.exists():
            running = self.process.poll() is None and time.monotonic() < end
            assert running, (self.paths.root / "hub.log").read_text()
            time.sleep(0.05)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(START_S)
            self.process = None

    def cpu_s(self) -> float:
        """What the hub's process has used of the processor so far."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def make_world(folder: Path, database: str, count: int) -> World:
    ports = free_ports(2)
    config = HubConfig(
        dev=True, api_host="127.0.0.1", mqtt_host="127.0.0.1", api_port=ports[0], mqtt_port=ports[1],
        look_s=LOOK_S, database=database,
    )  # fmt: skip
    paths = await initialise(folder, config)
    store = await Store.open(database_url(config, paths), migrate=False)
    built = await build_module(store, FolderBlobs(paths.blobs), RANDOM.normal(size=(2000, FEATURES)))
    names = [f"edge-{number}" for number in range(count)]
    row = {"profile": "edge", "certificate": "", "created_at": 0.0, "director_version": 0, "report_counter": 0}
    async with store.write() as connection:
        rows = [{"id": name, "tags": {"site": f"s{i % SITES}"}, **row} for i, name in enumerate(names)]
        await connection.execute(insert(devices), rows)
    await store.close()
    return World(paths, config, built, names)


def bodies_of(world: World, stream: str, count: int, epoch: str) -> list[list[bytes]]:
    """An outbox for each device: hourly windows up to now, or samples."""
    now = time.time()
    if stream == "sample":
        pool = [make_sample(world.built, "x", now, RANDOM.normal(size=FEATURES)) for _ in range(POOL)]
        return [
            [
                encode(msgspec.structs.replace(pool[(d + i) % POOL], prediction_id=f"{epoch}-{d}-{i}"))
                for i in range(count)
            ]
            for d in range(len(world.names))
        ]
    windows = [make_window(world.built, RANDOM.normal(size=(ROWS, FEATURES)), now, LOOK_S) for _ in range(POOL)]

    def one(device: int, number: int) -> Window:
        end = now - LOOK_S * (count - number)
        changes = {"start": end - LOOK_S, "end": end, "id": f"{epoch}-{number}"}
        return msgspec.structs.replace(windows[(device + number) % POOL], **changes)

    return [[encode_window(one(d, i)) for i in range(count)] for d in range(len(world.names))]


def fleet(world: World, stream: Any, count: int, size: int, epoch: str) -> list[Device]:
    key = serialization.load_pem_private_key(world.paths.device_ca_key.read_bytes(), None)
    authority = Pair(key, x509.load_pem_x509_certificate(world.paths.device_ca_crt.read_bytes()))
    folder = world.paths.root / "devices"
    made = []
    for name, bodies in zip(world.names, bodies_of(world, stream, count, epoch), strict=True):
        if not (folder / f"{name}.crt").exists():
            make_client(authority, name).write(folder, name)
        tls = context(world.paths.server_ca_crt, folder / f"{name}.crt", folder / f"{name}.key")
        made.append(Device(name, tls, stream, bodies, size, epoch))
    return made


async def send(world: World, fleet: list[Device], kill_after: float = 0.0) -> float:
    """All of it, until the last acknowledgement; seconds. The hub may be killed and started again on the way."""
    begin, connected = asyncio.Event(), asyncio.Semaphore(0)
    port = world.config.mqtt_port
    tasks = [asyncio.create_task(device.run(port, begin, connected)) for device in fleet]
    for _ in fleet:
        await connected.acquire()
    started = time.perf_counter()
    begin.set()
    if kill_after:
        total = sum(len(device.bodies) for device in fleet)
        while sum(device.acked for device in fleet) < kill_after * total:  # noqa: ASYNC110 - of many devices
            await asyncio.sleep(0.005)
        world.stop(signal.SIGKILL)
        await asyncio.to_thread(world.start)
    await asyncio.gather(*tasks)
    return time.perf_counter() - started


async def is_exact(world: World, fleets: list[list[Device]]) -> bool:
    """Whether the database holds what these devices sent, once."""
    sent = [device for fleet in fleets for device in fleet]
    wanted = Counter[str]()
    cells = np.zeros(world.built.profile.cells, np.int64)
    packed: dict[bytes, int] = Counter()
    for device in sent:
        wanted[device.stream] += len(device.bodies)
        if device.stream == "window":
            packed.update(decode_window(body).counts for body in device.bodies)
    for counts, times in packed.items():
        cells += times * np.array(unpack_counts(counts, world.built.profile.cells), np.int64)
    store = await Store.open(database_url(world.config, world.paths), migrate=False)
    try:
        async with store.read() as connection:
            found = await _found(connection)
            marks = {(r.device, r.stream, r.epoch): r.mark for r in await connection.execute(select(streams))}
            fleet = await connection.execute(select(looks.c.counts).where(looks.c.device == "*"))
            merged = sum((unpack(row.counts) for row in fleet), np.zeros_like(cells))
    finally:
        await store.close()
    rows = wanted["window"] * ROWS
    expected = {
        "windows": wanted["window"], "rows": rows, "fleet": rows, "sites": rows, "devices": rows,
        "samples": wanted["sample"], "predictions": wanted["sample"],
    }  # fmt: skip
    exact = found == expected and (merged == cells).all()
    exact = exact and marks == {(d.name, d.stream, d.epoch): len(d.bodies) for d in sent if d.bodies}
    if not exact:
        print("not exact: expected", expected, "found", found, "cells", bool((merged == cells).all()), flush=True)
    return bool(exact)


async def _found(connection: AsyncConnection) -> dict[str, int]:
    async def number(column: Any, *where: Any) -> int:
        return int((await connection.execute(select(column).where(*where))).scalar_one() or 0)

    rows, scope = func.sum(looks.c.rows), looks.c.device
    return {
        "windows": await number(func.count(windows.c.id)),
        "rows": await number(func.sum(windows.c.rows)),
        "fleet": await number(rows, scope == "*"),
        "sites": await number(rows, scope.like("site=%")),
        "devices": await number(rows, scope != "*", scope.not_like("%=%")),
        "samples": await number(func.count(samples.c.id)),
        "predictions": await number(func.count(func.distinct(samples.c.prediction_id))),
    }


async def measure(folder: Path, name: str, address: str, chosen: argparse.Namespace) -> dict[str, float]:
    """All runs on one database."""
    world = await make_world(folder, address, chosen.devices)
    metrics: dict[str, float] = {}
    fleets: list[list[Device]] = []
    exact = True
    world.start()
    try:
        runs = (
            ("windows", "window", chosen.windows, BATCH["window"]),
            ("samples", "sample", chosen.samples, BATCH["sample"]),
            ("windows_singly", "window", chosen.windows // 4, 1),
        )
        for what, stream, count, size in runs:
            fleets.append(fleet(world, stream, count, size, what))
            before = world.cpu_s()
            seconds = await send(world, fleets[-1])
            cpu = world.cpu_s() - before
            exact = exact and await is_exact(world, fleets)
            key = f"{what.partition('_')[0]}_per_s_{name}" + ("_singly" if what.endswith("singly") else "")
            metrics[key] = chosen.devices * count / seconds
            metrics[f"cpu_us_per_{what}_{name}"] = 1e6 * cpu / (chosen.devices * count)
            print(f"{name:<9} {what:<15} {metrics[key]:8.0f} /s, hub {cpu / seconds:4.0%} of a core", flush=True)
        fleets.append(fleet(world, "window", chosen.windows // 4, BATCH["window"], "killed"))
        await send(world, fleets[-1], kill_after=0.4)
        metrics[f"exact_after_kill_{name}"] = float(await is_exact(world, fleets))
        metrics[f"exact_{name}"] = float(exact)
    finally:
        world.stop()
    return metrics


def disk_commits(folder: Path) -> float:
    """Small appends per second, each brought to the disk."""
    with (folder / "sync").open("wb") as file:
        begin = time.perf_counter()
        for _ in range(100):
            file.write(b"x" * 4096)
            file.flush()
            os.fdatasync(file.fileno())
        return 100 / (time.perf_counter() - begin)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--windows", type=int, default=100, help="of each device")
    parser.add_argument("--samples", type=int, default=256, help="of each device")
    parser.add_argument("--databases", default="sqlite,postgres")
    chosen = parser.parse_args()
    metrics: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="mooring-ingest-") as name, ExitStack() as servers:
        folder = Path(name)
        metrics["disk_commits_per_s"] = disk_commits(folder)
        for database in chosen.databases.split(","):
            address = "sqlite"
            if database == "postgres":
                address = servers.enter_context(running_postgres({})).create("hub")
            metrics |= await measure(folder / database, database, address, chosen)
    metrics["exact"] = min(value for key, value in metrics.items() if key.startswith("exact_"))
    report("ingest", metrics)


if __name__ == "__main__":
    asyncio.run(main())
