"""Modules give way to heat by their priority, and come back once it is cooler by some degrees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.error import HTTPError

import msgspec
import pytest

from agent.config import HeatSettings, ServingSettings, StatePaths
from agent.errors import WorkerError
from agent.installed import Installed, ModuleSet
from agent.probe.tree import Tree
from agent.runtimes.heat import NO_BURDEN, Burden, Heat, Warmth, burden, judged
from agent.runtimes.keeper import Keeper
from agent.runtimes.process import ProcessRuntime
from agent.slots import Slots
from agent.store import AgentStore
from modules.manifest import Priority, Resources, encode_manifest
from modules.messages import Stream
from probe.captured import unpack
from support.built import Built, build, install
from support.predict import predict, status_of
from support.waiting import until_async

SETTINGS = HeatSettings(warm_c=80, hot_c=92, hysteresis_c=5)
COOL, WARM, HOT = Warmth.COOL, Warmth.WARM, Warmth.HOT


@pytest.mark.parametrize(
    ("before", "celsius", "held_back", "now"),
    [
        (COOL, 79.9, False, COOL),
        (COOL, 80.0, False, WARM),
        (COOL, 95.0, False, HOT),
        (WARM, 75.0, False, WARM),
        (WARM, 74.9, False, COOL),
        (WARM, 91.9, False, WARM),
        (HOT, 87.0, False, HOT),
        (HOT, 86.9, False, WARM),
        (HOT, 60.0, False, COOL),
        (COOL, 50.0, True, WARM),
        (HOT, 90.0, True, HOT),
        (COOL, None, False, COOL),
        (HOT, None, False, COOL),
        (COOL, None, True, WARM),
    ],
)
def test_a_state_is_entered_at_its_temperature_and_left_below(
    before: Warmth, celsius: float | None, held_back: bool, now: Warmth
) -> None:
    assert judged(before, celsius, held_back, SETTINGS) is now


@pytest.mark.parametrize(
    ("warmth", "priority", "expected"),
    [
        (COOL, "low", NO_BURDEN),
        (WARM, "low", Burden(slow=True)),
        (WARM, "normal", NO_BURDEN),
        (HOT, "low", Burden(slow=True, requests=True, sources=True)),
        (HOT, "normal", Burden(slow=True, sources=True)),
        (HOT, "high", NO_BURDEN),
    ],
)
def test_what_a_module_bears_goes_by_its_priority(warmth: Warmth, priority: Priority, expected: Burden) -> None:
    assert burden(warmth, priority) == expected


@pytest.mark.parametrize("wrong", [{"warm_c": 95.0}, {"hysteresis_c": -1.0}, {"every_s": -1.0}])
def test_temperatures_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="heat: expected warm_c up to hot_c"):
        HeatSettings(**wrong)  # type: ignore[arg-type]


class Watched:
    """A device whose sensor is a file."""

    def __init__(self, root: Path, name: str = "jetson-orin-nano", settings: HeatSettings = SETTINGS) -> None:
        self.root = root
        self.told: list[tuple[str, str, str]] = []
        self.bore: list[Warmth] = []
        self.heat = Heat(settings, self._bear, lambda *told: self.told.append(told[:3]), unpack(name, root))

    async def at(self, celsius: float, zone: int = 0) -> Warmth:
        (self.root / f"sys/class/thermal/thermal_zone{zone}/temp").write_text(f"{int(celsius * 1000)}\n")
        await self.heat.look()
        return self.heat.warmth

    async def _bear(self, warmth: Warmth) -> None:
        self.bore.append(warmth)


async def test_the_hottest_sensor_decides_and_every_change_is_told_once(tmp_path: Path) -> None:
    device = Watched(tmp_path)
    assert [await device.at(celsius) for celsius in (60, 81, 85, 93, 70)] == [COOL, WARM, WARM, HOT, COOL]
    assert device.bore == [WARM, HOT, COOL]
    assert [(level, key) for level, key, _ in device.told] == [
        ("warning", "device-warm"), ("warning", "device-hot"), ("info", "device-cool"),
    ]  # fmt: skip
    assert device.told[0][2].startswith("cpu-thermal 81 °C")
    assert await device.at(93, zone=1) is HOT


async def test_only_the_sensors_that_are_named_count(tmp_path: Path) -> None:
    device = Watched(tmp_path, settings=msgspec.structs.replace(SETTINGS, zones=("gpu*", "nothing")))
    assert await device.at(99, zone=0) is COOL
    assert await device.at(99, zone=1) is HOT


async def test_a_firmware_that_holds_the_machine_back_is_believed(tmp_path: Path) -> None:
    device = Watched(tmp_path, "raspberry-pi-4-throttled")
    assert await device.at(50) is WARM
    (tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled").write_text("e0000\n")
    assert await device.at(50) is COOL


async def test_a_machine_without_sensors_is_left_alone(tmp_path: Path) -> None:
    heat = Heat(SETTINGS, _never, tree=Tree(tmp_path))
    await heat.look()
    assert heat.warmth is COOL
    await asyncio.wait_for(Heat(msgspec.structs.replace(SETTINGS, every_s=0.0), _never).run(), 10)


async def _never(warmth: Warmth) -> None:
    raise AssertionError(warmth)


def ignore(stream: Stream, payload: bytes) -> None:
    """What workers say of their predictions does not matter here."""


def of_priority(priority: Priority) -> Built:
    module = build(priority)
    manifest = msgspec.structs.replace(module.manifest, resources=Resources(priority=priority))
    return Built(manifest, encode_manifest(manifest), module.files)


@pytest.fixture
async def keeper(state_dir: StatePaths, agent_store: AgentStore) -> AsyncIterator[Keeper]:
    """Three modules that serve, one of each priority."""
    slots = Slots(state_dir.slots)
    settings = ServingSettings(confine=False, drain_s=3.0, restart_first_s=0.01, restart_ceiling_s=0.05)
    keeper = Keeper(ProcessRuntime(state_dir, settings, agent_store, slots, ignore), settings, lambda: None)
    built = [of_priority("high"), of_priority("normal"), of_priority("low")]
    for module in built:
        install(slots, module, state_dir.staging)
    installed = (Installed(m.manifest.name, m.manifest.version, m.sha256, 1, "d", verified=True) for m in built)
    await keeper.start(ModuleSet(1, 1, tuple(installed)))
    await until_async(lambda: _all_serve(keeper), "all to serve")
    yield keeper
    await keeper.close()


async def _all_serve(keeper: Keeper) -> bool:
    return all(report.state == "serving" for report in keeper.reports())


def address(keeper: Keeper, name: str) -> str:
    return next(report.endpoint for report in keeper.reports() if report.name == name)


async def test_when_it_is_hot_low_priority_waits_and_the_others_answer(keeper: Keeper) -> None:
    await keeper.endure(HOT)
    await until_async(lambda: _answers(keeper, "low", 503), "the order to arrive")
    with pytest.raises(HTTPError) as refused:
        await predict(address(keeper, "low"), "low")
    assert refused.value.headers["Retry-After"] == "30"
    assert "too hot" in refused.value.read().decode()
    assert await _answers(keeper, "normal", 200)
    assert await _answers(keeper, "high", 200)
    await keeper.endure(COOL)
    await until_async(lambda: _answers(keeper, "low", 200), "it to go on")


async def test_a_worker_that_starts_while_it_is_hot_bears_it_too(keeper: Keeper) -> None:
    await keeper.endure(HOT)
    unit = keeper.unit("low")
    assert unit is not None
    assert unit._worker is not None
    await unit._worker.kill()
    await until_async(lambda: _answers(keeper, "low", 503), "the next worker, which waits")
    assert keeper.reports()[1].restarts >= 1
    await keeper.endure(COOL)
    await until_async(lambda: _answers(keeper, "low", 200), "it to go on")


async def _answers(keeper: Keeper, name: str, status: int) -> bool:
    try:
        return await status_of(address(keeper, name), name) == status
    except OSError:
        return False


async def test_a_worker_that_is_gone_bears_nothing(keeper: Keeper) -> None:
    unit = keeper.unit("low")
    assert unit is not None
    worker = unit._worker
    assert worker is not None
    await worker.kill()
    with pytest.raises(WorkerError, match="SIGKILL"):
        await worker.hold(True, True)
