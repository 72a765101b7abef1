"""The links that Azure IoT Edge is tested over, and worse: every update ends, every sample arrives exactly once.

Hub, Mosquitto and agent are real processes in two network namespaces with an emulated wire between them
(benchmarks/wire, decision 0020); an application asks on the device all the time. In each profile one update meets a
killed broker, one a killed hub, and one an outage, each in the middle of its download. Five minutes on and off are
shortened to ten seconds. Run by `make soak ARGS=tests/soak/test_link_torture.py`; needs root, gcc and /dev/net/tun.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.wire import ADDRESS, Shape, Wire, missing
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.context import HubContext
from cloud_hub.operator.demo.fleet import HubProcess
from cloud_hub.operator.demo.processes import command
from support.waiting import until
from system.torture import Endured, Fault, endure, releases
from system.world import World

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900), pytest.mark.skipif(bool(missing()), reason=missing())]

GOOD = Shape(delay_ms=1)
LOOK_S = "1"
OUTAGE_S = 30.0
ON_OFF_S = 10.0
DEADLINE_S = 240.0
KIB = 1024


@dataclass(frozen=True)
class Profile:
    """The weather, what each update brings besides its model, and whether the wire goes on and off all the time."""

    name: str
    shape: Shape
    update_bytes: int
    on_off: bool = False


# The rates of 3G are not Azure's, which has none for it: those of a busy cell.
PROFILES = (
    Profile("offline", GOOD, 4096 * KIB),
    Profile("satellite", Shape(25_000_000, 300, 25, 0.02, 2048 * KIB), 512 * KIB),
    Profile("3g", Shape(2_000_000, 50, 5, 0.0, 256 * KIB), 2048 * KIB),
    Profile("on-off", Shape(2_000_000, 50, 5, 0.0, 256 * KIB), 4096 * KIB, on_off=True),
)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_every_update_ends_and_every_sample_arrives_once(
    profile: Profile, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("w")  # short, because sockets of endpoints lie below it
    with Wire(GOOD) as wire, wire.inside("near"):
        endured = asyncio.run(_torture(profile, folder, wire))
    words = ", ".join(f"{seconds:.0f}" for seconds in endured.seconds)
    print(f"{profile.name}: updates took {words} s; {endured.samples} samples, each arrived once")


async def _torture(profile: Profile, folder: Path, wire: Wire) -> Endured:
    async with _world(folder) as world:
        weather = Weather(profile, world, wire)
        faults = weather.faults()
        versions = await releases(world, 1 + len(faults), profile.update_bytes)
        agent = wire.command("far", [command("mooring-agent")])
        async with world.device(f"torn-{profile.name}", program=agent) as device, weather.going():
            return await endure(world, device, versions, faults, weather.begin, lambda: wire.inside("far"))


@asynccontextmanager
async def _world(folder: Path) -> AsyncIterator[World]:
    hub = HubProcess(folder / "hub")
    await hub.init("--look", LOOK_S, "--host", ADDRESS["near"])
    try:
        await hub.start()
        async with HubClient(HubContext.load(hub.context)) as client:
            yield World(folder, hub, client, DEADLINE_S)
    finally:
        await hub.service.stop()


class Weather:
    """What the wire does, and what befalls the hub's side."""

    def __init__(self, profile: Profile, world: World, wire: Wire) -> None:
        self._profile, self._world, self._wire = profile, world, wire
        self._begun = asyncio.Event()

    def begin(self) -> None:
        self._wire.reshape(self._profile.shape)
        self._begun.set()

    def faults(self) -> Sequence[Fault]:
        return (self._kill_broker, self._kill_hub, self._outage)

    @asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        """The wire goes on and off, once the weather has begun, where the profile says so."""
        task = asyncio.create_task(self._on_and_off(), name="weather")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _on_and_off(self) -> None:
        await self._begun.wait()
        while self._profile.on_off:
            await asyncio.sleep(ON_OFF_S)
            self._wire.cut()
            await asyncio.sleep(ON_OFF_S)
            self._wire.mend()

    async def _kill_broker(self) -> None:
        await self._midway()
        await self._world.kill_broker()

    async def _kill_hub(self) -> None:
        await self._midway()
        await self._world.kill_hub()
        await self._world.hub.start()

    async def _outage(self) -> None:
        await self._midway()
        self._wire.cut()
        await asyncio.sleep(OUTAGE_S)
        self._wire.mend()

    async def _midway(self) -> None:
        """Returns when half of the update has passed the wire."""
        wanted = self._sent() + self._profile.update_bytes // 2
        await until(lambda: self._sent() >= wanted, "half of the update to pass the wire", DEADLINE_S)

    def _sent(self) -> int:
        return self._wire.counts()["near"].carried_bytes
