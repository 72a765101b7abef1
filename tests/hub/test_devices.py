"""Devices: inventory, reports that count only when they are the device's own, and the end of a device."""

from collections.abc import AsyncIterator

import msgspec
import pytest
from cryptography import x509

from cloud_hub.config import HubPaths
from cloud_hub.desired import Assignment
from cloud_hub.device_rows import Device
from cloud_hub.errors import Conflict, NotFound, Unprocessable
from cloud_hub.fleet import Fleet, FleetQuery
from cloud_hub.reports import Difference, differences
from modules.messages import AttackReport, ModuleReport, SignedReport
from support.clock import SetClock
from support.devices import PROFILE, make_report
from support.trust import OPERATOR, TrustWorld, trust_world


@pytest.fixture
async def world(hub_paths: HubPaths, clock: SetClock) -> AsyncIterator[TrustWorld]:
    async with trust_world(hub_paths, clock) as world:
        yield world


async def listed(world: TrustWorld, query: str, retired: bool = False) -> list[Device]:
    fleet = Fleet(world.store, world.events._clock, world.config.offline_after_s)
    return await fleet.page(FleetQuery(query, retired))


def module(name: str = "digits", version: int = 1, verified: bool = True) -> ModuleReport:
    return ModuleReport(name, version, "0" * 64, 1, "rollout-1", "serving", verified)


async def test_a_report_of_the_device_is_stored_and_shows_that_it_is_there(world: TrustWorld, clock: SetClock) -> None:
    device = await world.enrol("cam-1")
    assert not (await world.devices.get("cam-1")).online
    report = make_report("cam-1", counter=3, modules=(module(),))
    assert await world.devices.accept_report("cam-1", device.sign(report)) == report
    assert (await world.devices.get("cam-1")).report == report
    assert (await world.devices.get("cam-1")).online
    clock.advance(world.config.offline_after_s + 1)
    assert not (await world.devices.get("cam-1")).online


async def test_a_report_with_a_counter_that_has_not_grown_changes_nothing(world: TrustWorld) -> None:
    device = await world.enrol("cam-1")
    newer = make_report("cam-1", counter=5, modules=(module(),))
    await world.devices.accept_report("cam-1", device.sign(newer))
    for counter in (5, 4, 0, -1):
        assert await world.devices.accept_report("cam-1", device.sign(make_report("cam-1", counter))) is None
    assert (await world.devices.get("cam-1")).report == newer


async def test_a_report_signed_by_another_device_is_refused(world: TrustWorld) -> None:
    await world.enrol("cam-1")
    other = await world.enrol("cam-2")
    with pytest.raises(Unprocessable, match="not signed by the key this device enrolled with") as caught:
        await world.devices.accept_report("cam-1", other.sign(make_report("cam-1")))
    assert caught.value.key == "report-signature"


async def test_a_report_about_another_device_is_refused(world: TrustWorld) -> None:
    device = await world.enrol("cam-1")
    with pytest.raises(Unprocessable, match="expected that device, got 'cam-2'") as caught:
        await world.devices.accept_report("cam-1", device.sign(make_report("cam-2")))
    assert caught.value.key == "report-device"


async def test_a_changed_byte_of_a_report_is_refused(world: TrustWorld) -> None:
    signed = (await world.enrol("cam-1")).sign(make_report("cam-1"))
    changed = SignedReport(signed.body.replace(b'"counter":1', b'"counter":9'), signed.signature)
    with pytest.raises(Unprocessable, match="not signed by the key"):
        await world.devices.accept_report("cam-1", changed)


async def test_a_report_of_a_device_that_nobody_knows_is_refused(world: TrustWorld) -> None:
    with pytest.raises(NotFound, match="no device ghost"):
        await world.devices.accept_report("ghost", SignedReport(b"{}", b""))


async def test_an_attack_that_a_device_has_seen_is_an_event_once(world: TrustWorld) -> None:
    device = await world.enrol("cam-1")
    attacked = msgspec.structs.replace(
        make_report("cam-1", 1), attacks=(AttackReport("rollback", "director version 2 after 3", 1.0),)
    )
    for report in (attacked, msgspec.structs.replace(attacked, counter=2)):
        await world.devices.accept_report("cam-1", device.sign(report))
    (event,) = await world.events.list(kind="device.attack")
    assert (event.subject, event.details["key"]) == ("cam-1", "rollback")


async def test_devices_are_found_by_query(world: TrustWorld) -> None:
    await world.enrol("cam-1", site="lyon")
    await world.enrol("cam-2", site="paris")
    assert [device.id for device in await listed(world, "all")] == ["cam-1", "cam-2"]
    assert [device.id for device in await listed(world, "site=paris")] == ["cam-2"]
    await world.devices.set_tags("cam-1", {"site": "paris"}, OPERATOR)
    assert [device.id for device in await listed(world, "site=paris")] == ["cam-1", "cam-2"]
    with pytest.raises(NotFound, match="no device ghost"):
        await world.devices.set_tags("ghost", {}, OPERATOR)


async def test_a_retired_device_is_revoked_loses_its_modules_and_is_listed_only_on_request(world: TrustWorld) -> None:
    await world.add_signed("digits")
    device = await world.enrol("cam-1")
    await world.assign("cam-1", "digits")
    for _ in range(2):
        await world.devices.retire("cam-1", OPERATOR)
    assert await listed(world, "all") == []
    assert [device.id for device in await listed(world, "all", retired=True)] == ["cam-1"]
    assert await world.desired.of("cam-1") == ()
    crl = x509.load_pem_x509_crl(world.paths.crl.read_bytes())
    assert len(list(crl)) == len(world.revocations) == 1
    with pytest.raises(Conflict, match="retired"):
        await world.devices.accept_report("cam-1", device.sign(make_report("cam-1")))
    with pytest.raises(Conflict, match="retired"):
        await world.assign("cam-1", "digits")


async def test_devices_that_know_less_than_their_director_are_behind(world: TrustWorld) -> None:
    await world.add_signed("digits")
    device = await world.enrol("cam-1")
    assert await world.devices.behind() == (("cam-1", 1),)
    await world.devices.accept_report("cam-1", device.sign(make_report("cam-1", 1, director_version=1)))
    assert await world.devices.behind() == ()
    await world.assign("cam-1", "digits")
    assert await world.devices.behind() == (("cam-1", 2),)


def test_what_differs_from_the_desired_set_is_named() -> None:
    desired = tuple(Assignment(name, 2, PROFILE, "r") for name in ("a", "b", "c", "d"))
    report = make_report("cam-1", modules=(module("b", 1), module("c", 2, verified=False), module("d", 2), module("e")))
    assert differences(desired, report) == [
        Difference("a", "missing", 2, None),
        Difference("b", "other-version", 2, 1),
        Difference("c", "not-verified", 2, 2),
        Difference("e", "not-desired", None, 1),
    ]
    assert [difference.why for difference in differences(desired, None)] == ["missing"] * 4
