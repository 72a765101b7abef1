"""A hundred thousand devices as rows of PostgreSQL: what planning, gates and reports cost the hub, by its own code.

No broker and no sockets but the database's: a whole hub is opened (`service.open_hub`) with a clock of its own, devices
are inserted as rows that share one key, and their reports, signed with it, go the way of reports (`intake`), in groups
of 256 as the link brings them. The processor's time is this process's; `postgres_cores` is what the server used beside
it while reports came.

`create_cpu_s`: to plan a rollout to all of them in three groups, and to start it. `planning_cpu_s_per_min`: 60 ticks
of a minute while the rollout waits at its gate (a soak), plus what the engine asks about a report of each device in
that minute. `assign_us_per_device`: to assign, sign for, and note a device whose turn it is. `advance_us_per_device`:
to take in that it has begun, and that it is verified. `reports_per_s` and `report_us`: stored reports of all devices.

    benchmarks/replay.py [--devices 100000] [--minutes 3]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import msgspec  # noqa: E402
from cryptography.hazmat.primitives import hashes  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from sqlalchemy import func, select  # noqa: E402

from benchmarks._processes import children, cpu_s  # noqa: E402
from benchmarks.common import report  # noqa: E402
from cloud_hub.config import HubConfig  # noqa: E402
from cloud_hub.initialise import free_ports, initialise  # noqa: E402
from cloud_hub.intake.waiting import MAX_GROUP, Intake  # noqa: E402
from cloud_hub.rollouts.new import NewRollout  # noqa: E402
from cloud_hub.rooms import Rooms  # noqa: E402
from cloud_hub.service import open_hub  # noqa: E402
from cloud_hub.store.bulk import in_slices, insert_many  # noqa: E402
from cloud_hub.store.tables import devices, executions  # noqa: E402
from modules.messages import DeviceReport, ModuleReport, SignedReport, UpdateReport, encode_report  # noqa: E402
from support.certificates import Pair, make_ca, make_client  # noqa: E402
from support.clock import SetClock  # noqa: E402
from support.devices import make_report  # noqa: E402
from support.postgres import running_postgres  # noqa: E402
from support.simulated import HARDWARE, MODULE, publish  # noqa: E402

CANARIES, TENTH = 100, "5%"
SOAK_S = 3600.0
MINUTE_S = 60
Work = Callable[[], Awaitable[object]]


@dataclass
class Fleet:
    """The devices' side: one key for all, and a counter that grows."""

    names: list[str]
    pair: Pair
    manifest: str
    counter: int = 0

    def say(
        self, names: Sequence[str], version: int, state: str = "", deployment: str = ""
    ) -> list[tuple[str, SignedReport]]:
        """A report of each: as it is at rest, or `updating`, or `verified`."""
        self.counter += 1
        return [(name, self._signed(self._report(name, version, state, deployment))) for name in names]

    def _report(self, name: str, version: int, state: str, deployment: str) -> DeviceReport:
        found = make_report(name, self.counter, version)
        module = ModuleReport(MODULE, 1, self.manifest, 1, deployment, "serving", verified=True)
        if state == "updating":
            current = UpdateReport("fetching", version, (deployment,))
            return msgspec.structs.replace(found, agent_version="0.2.0", current=current)
        return msgspec.structs.replace(
            found, agent_version="0.2.0", modules=(module,) if state else (), last=UpdateReport("idle", version)
        )

    def _signed(self, said: DeviceReport) -> SignedReport:
        body = encode_report(said)
        return SignedReport(body, self.pair.key.sign(body, ec.ECDSA(hashes.SHA256())))


async def used(work: Work) -> tuple[float, float]:
    """Processor's time of this process, and time, both in seconds."""
    cpu, began = time.process_time(), time.perf_counter()
    await work()
    return time.process_time() - cpu, time.perf_counter() - began


async def insert_devices(rooms: Rooms, count: int) -> tuple[list[str], Pair]:
    pair = make_client(make_ca("devices"), "all")
    names = [f"edge-{number:07d}" for number in range(count)]
    row = {
        "profile": HARDWARE.name, "certificate": pair.pem, "created_at": 0.0, "director_version": 1,
        "report_counter": 0, "agent_version": "0.2.0", "boots": [], "issued_at": 0.0,
    }  # fmt: skip
    for some in in_slices(names, 5000):
        rows = [
            {"id": name, "tags": {"site": f"s{hash(name) % 50}"}, "boots": [], "issued_at": 0.0, **row} for name in some
        ]
        async with rooms.store.write() as connection:
            await insert_many(connection, devices, rows)
    return names, pair


async def bring(intake: Intake, reports: Sequence[tuple[str, SignedReport]]) -> None:
    """As the link does: so many at a time as it has workers."""
    for some in in_slices(reports, MAX_GROUP):
        await asyncio.gather(*(intake.take(device, signed) for device, signed in some))


async def assigned(rooms: Rooms) -> list[str]:
    query = select(executions.c.device).where(executions.c.state == "assigned").order_by(executions.c.device)
    async with rooms.store.read() as connection:
        return list((await connection.execute(query)).scalars())


async def by_state(rooms: Rooms) -> dict[str, int]:
    query = select(executions.c.state, func.count()).group_by(executions.c.state)
    async with rooms.store.read() as connection:
        return {row[0]: int(row[1]) for row in await connection.execute(query)}


async def minute(rooms: Rooms, clock: SetClock) -> None:
    for _ in range(MINUTE_S):
        clock.advance(1.0)
        await rooms.rollouts.tick()


async def assign_all(rooms: Rooms, clock: SetClock, wanted: int) -> None:
    """Ticks until so many are assigned."""
    while len(await assigned(rooms)) < wanted:
        clock.advance(1.0)
        await rooms.rollouts.tick()


async def measure(rooms: Rooms, clock: SetClock, chosen: argparse.Namespace, server: int) -> dict[str, float]:
    manifest = await publish(rooms, size=50_000)
    names, pair = await insert_devices(rooms, chosen.devices)
    fleet = Fleet(names, pair, manifest)
    asked = NewRollout(MODULE, 1, "all", (str(CANARIES), TENTH, "rest"), soak_s=SOAK_S, start=True)
    metrics: dict[str, float] = {}
    made: list[str] = []

    async def create() -> None:
        made.append((await rooms.rollouts.create(asked, "operator")).rollout.id)

    metrics["create_cpu_s"], metrics["create_s"] = await used(create)
    intake = Intake(rooms.devices.take_reports, rooms.rollouts.on_reports)
    # The canaries begin and are verified; the rollout then waits at its gate.
    await assign_all(rooms, clock, CANARIES)
    canaries = await assigned(rooms)
    await bring(intake, fleet.say(canaries, 2, "updating", made[0]))
    await bring(intake, fleet.say(canaries, 2, "verified", made[0]))
    print("at the gate:", await by_state(rooms), flush=True)

    ticks, engine, rates, costs, cores = [], [], [], [], []
    for _ in range(chosen.minutes):
        ticks.append((await used(lambda: minute(rooms, clock)))[0])
        said = fleet.say(names, 1)
        decoded = [(device, msgspec.json.decode(one.body, type=DeviceReport)) for device, one in said]

        async def ask(reports: Sequence[tuple[str, DeviceReport]] = decoded) -> None:
            for some in in_slices(reports, MAX_GROUP):
                await rooms.rollouts.on_reports(some)

        engine.append((await used(ask))[0])
        before = sum(cpu_s(pid) for pid in (server, *children(server)))
        cpu, seconds = await used(lambda said=said: bring(intake, said))  # type: ignore[misc]
        cores.append((sum(cpu_s(pid) for pid in (server, *children(server))) - before) / seconds)
        rates.append(len(said) / seconds)
        costs.append(1e6 * cpu / len(said))
        print(f"a minute: ticks {ticks[-1]:.2f} s, engine {engine[-1]:.2f} s, reports {rates[-1]:.0f} /s", flush=True)
    metrics["planning_cpu_s_per_min"] = statistics.median(map(sum, zip(ticks, engine, strict=True)))
    metrics["ticks_cpu_s_per_min"], metrics["engine_cpu_s_per_min"] = map(statistics.median, (ticks, engine))
    metrics["reports_per_s"], metrics["report_us"] = map(statistics.median, (rates, costs))
    metrics["postgres_cores"] = statistics.median(cores)

    # The gate opens: the second group is assigned, begins, and is verified.
    clock.advance(SOAK_S)
    count = chosen.devices * 5 // 100
    cpu, seconds = await used(lambda: assign_all(rooms, clock, count))
    group = await assigned(rooms)
    metrics["assign_us_per_device"], metrics["assigned_per_s"] = 1e6 * cpu / len(group), len(group) / seconds
    begun = fleet.say(group, 2, "updating", made[0])
    ended = fleet.say(group, 2, "verified", made[0])
    cpu, _ = await used(lambda: bring(intake, begun))
    more, _ = await used(lambda: bring(intake, ended))
    metrics["advance_us_per_device"] = 1e6 * (cpu + more) / len(group)
    print("after the second group:", await by_state(rooms), flush=True)
    return metrics


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=100_000)
    parser.add_argument("--minutes", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mooring-replay-") as name, running_postgres({}) as server:
        ports = free_ports(2)
        config = HubConfig(dev=True, api_port=ports[0], mqtt_port=ports[1], database=server.create("hub"))
        paths = await initialise(Path(name) / "hub", config)
        clock = SetClock(time.time())
        async with open_hub(paths, clock) as rooms:
            metrics = await measure(rooms, clock, chosen, server.process.pid)
    report("replay", {"devices": chosen.devices, **metrics})


if __name__ == "__main__":
    asyncio.run(main())
