"""Reports in groups: one transaction for many, and what is wrong with one of them stays with it."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest
from sqlalchemy import event

from cloud_hub.config import HubPaths
from cloud_hub.errors import Conflict, HubError, NotFound, Unavailable, Unprocessable
from cloud_hub.intake import waiting
from cloud_hub.intake.checking import Arrived
from cloud_hub.intake.storing import Outcome
from cloud_hub.intake.waiting import Intake
from modules.messages import AttackReport, DeviceReport, SignedReport
from support.clock import SetClock
from support.devices import EnrolledDevice, make_report
from support.trust import OPERATOR, TrustWorld, trust_world
from support.waiting import until

MANY = 12


@pytest.fixture
async def world(hub_paths: HubPaths, clock: SetClock) -> AsyncIterator[TrustWorld]:
    async with trust_world(hub_paths, clock) as world:
        yield world


async def fleet(world: TrustWorld, count: int = MANY) -> list[EnrolledDevice]:
    return [await world.enrol(f"cam-{number}") for number in range(count)]


def said(device: EnrolledDevice, counter: int = 1, version: int = 1) -> Arrived:
    return device.id, device.sign(make_report(device.id, counter, version))


async def counters(world: TrustWorld) -> dict[str, int]:
    found = {}
    for number in range(MANY):
        report = (await world.devices.get(f"cam-{number}")).report
        found[f"cam-{number}"] = report.counter if report is not None else 0
    return found


async def test_reports_of_many_devices_take_one_transaction(world: TrustWorld) -> None:
    devices = await fleet(world)
    begun: list[object] = []
    event.listen(world.store._writer.sync_engine, "begin", begun.append)
    taken = await world.devices.accept_reports([said(device, 3) for device in devices])
    assert [device for device, _ in taken] == [device.id for device in devices]
    assert set((await counters(world)).values()) == {3}
    assert await world.devices.behind() == ()
    assert len(begun) == 1


async def test_the_bad_report_of_one_device_changes_nothing_for_the_others(world: TrustWorld) -> None:
    devices = await fleet(world)
    await world.devices.retire("cam-2", OPERATOR)
    batch = [said(device) for device in devices]
    batch[0] = "cam-0", devices[1].sign(make_report("cam-0"))
    batch[1] = "ghost", batch[1][1]
    batch[3] = "cam-3", devices[3].sign(make_report("cam-4"))
    batch[4] = said(devices[4], 2**63)
    batch[5] = said(devices[5], 1, 2**31)
    batch[6] = "cam-6", SignedReport(b"{}", b"")
    outcomes = await world.devices.take_reports(batch)
    keys = [outcome.key if isinstance(outcome, HubError) else "" for outcome in outcomes]
    assert keys[:7] == [
        "report-signature", "device-not-found", "device-retired", "report-device", "report-invalid", "report-invalid",
        "report-signature",
    ]  # fmt: skip
    assert all(isinstance(outcome, DeviceReport) for outcome in outcomes[7:])
    assert [counter for _, counter in sorted((await counters(world)).items())].count(1) == MANY - 7


async def test_two_reports_of_a_device_in_one_group_count_in_their_order(world: TrustWorld) -> None:
    device = (await fleet(world, 1))[0]
    attacked = msgspec.structs.replace(make_report("cam-0", 2), attacks=(AttackReport("freeze", "old", 1.0),))
    batch = [said(device, 1), ("cam-0", device.sign(attacked)), said(device, 1), ("cam-0", device.sign(attacked))]
    outcomes = await world.devices.take_reports(batch)
    assert [getattr(outcome, "counter", None) for outcome in outcomes] == [1, 2, None, None]
    assert (await world.devices.get("cam-0")).report == attacked
    assert len(await world.events.list(kind="device.attack")) == 1


async def test_the_report_that_is_stored_already_is_not_written_again(world: TrustWorld) -> None:
    devices = await fleet(world)
    batch = [said(device) for device in devices]
    await world.devices.accept_reports(batch)
    begun: list[object] = []
    event.listen(world.store._writer.sync_engine, "begin", begun.append)
    assert not await world.devices.accept_reports(batch)
    assert begun == []


class Told:
    """The end of a report's way: stores in memory, and fails when it is told to."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.heard: list[str] = []
        self.failures: list[Exception] = []
        self.gate = asyncio.Event()

    async def take(self, batch: Sequence[Arrived]) -> Sequence[Outcome]:
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.groups.append([device for device, _ in batch])
        if len(batch) > 1 and "broken" in self.groups[-1]:
            raise OSError("disk")
        if self.groups[-1] == ["broken"]:
            raise ValueError("its own fault")
        return [_outcome(device) for device, _ in batch]

    async def on_reports(self, reports: Sequence[tuple[str, DeviceReport]]) -> None:
        self.heard += [device for device, _ in reports]


def _outcome(device: str) -> Outcome:
    if device.startswith("bad"):
        return Unprocessable("report-signature", "not its own")
    return None if device.startswith("old") else make_report(device)


NOTHING = SignedReport(b"", b"")


async def test_reports_that_come_while_others_are_stored_share_the_next_transaction() -> None:
    told = Told()
    intake = Intake(told.take, told.on_reports)
    first = asyncio.create_task(intake.take("first", NOTHING))
    await asyncio.sleep(0)
    names = ["cam-1", "bad-1", "old-1", "cam-2"]
    others = [asyncio.create_task(intake.take(name, NOTHING)) for name in names]
    told.gate.set()
    results = await asyncio.gather(first, *others, return_exceptions=True)
    assert told.groups == [["first"], names]
    assert told.heard == ["first", "cam-1", "cam-2"]
    assert [getattr(result, "key", None) for result in results] == [None, None, "report-signature", None, None]


async def test_reports_that_come_a_few_at_a_time_share_a_transaction_too() -> None:
    told = Told()
    told.gate.set()
    intake = Intake(told.take, told.on_reports)
    await intake.take("alone", NOTHING)
    tasks = []
    for number in range(5):  # one in each turn of the loop, as they come from a socket
        tasks.append(asyncio.create_task(intake.take(f"cam-{number}", NOTHING)))
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert told.groups == [["alone"], [f"cam-{number}" for number in range(5)]]


async def test_a_report_that_cannot_be_stored_does_not_keep_others_from_it() -> None:
    told = Told()
    told.gate.set()
    intake = Intake(told.take, told.on_reports)
    await intake.take("first", NOTHING)
    names = ["cam-1", "broken", "cam-2"]
    results = await asyncio.gather(*(intake.take(name, NOTHING) for name in names), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), ValueError, type(None)]
    assert told.heard == ["first", "cam-1", "cam-2"]


async def test_reports_wait_for_a_database_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "AGAIN_S", 0.0)
    told = Told()
    told.gate.set()
    told.failures = [Unavailable("database-unreachable", "away") for _ in range(3)]
    intake = Intake(told.take, told.on_reports)
    await asyncio.gather(*(intake.take(f"cam-{number}", NOTHING) for number in range(3)))
    assert sorted(told.heard) == ["cam-0", "cam-1", "cam-2"]
    monkeypatch.setattr(waiting, "PATIENCE_S", -1.0)
    told.failures = [Unavailable("database-unreachable", "away")]
    with pytest.raises(Unavailable, match="away"):
        await intake.take("cam-9", NOTHING)


async def test_a_failure_of_who_is_told_is_said_and_stops_nothing() -> None:
    told = Told()
    told.gate.set()

    async def fail(_reports: Sequence[tuple[str, DeviceReport]]) -> None:
        raise Conflict("rollout-state", "odd")

    intake = Intake(told.take, fail)
    with pytest.raises(Conflict, match="odd"):
        await intake.take("cam-1", NOTHING)
    await intake.take("old-1", NOTHING)
    with pytest.raises(Unprocessable, match="not its own"):
        await intake.take("bad-1", NOTHING)


async def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    told = Told()
    intake = Intake(told.take, told.on_reports)
    first = asyncio.create_task(intake.take("first", NOTHING))
    second = asyncio.create_task(intake.take("second", NOTHING))
    third = asyncio.create_task(intake.take("third", NOTHING))
    await until(lambda: len(intake._waiting) == 2, "two to wait")
    first.cancel()
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    told.gate.set()
    await third
    assert told.heard == ["third"]


async def test_a_device_that_nobody_knows_is_named(world: TrustWorld) -> None:
    (outcome,) = await world.devices.take_reports([("ghost", NOTHING)])
    assert isinstance(outcome, NotFound)
