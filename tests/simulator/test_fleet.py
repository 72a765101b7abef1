"""A simulated fleet on a real hub and broker: rollouts end as its devices do, and nobody is believed who lies."""

import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks._processes import children
from cloud_hub.config import HubPaths
from cloud_hub.operator.client import HubClient
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.simulator.fleet import Fleet
from cloud_hub.simulator.profile import Group, Link, Profile, Steps
from support.simulated import MODULE, hub_with_module, members
from support.waiting import until, until_async

QUICK = Steps(resolving=0.05, verifying=0.05, staging=0.05, trying=0.1, activating=0.05)
PROFILE = Profile(report_every_s=5, window_every_s=1, keepalive_s=10, reconnect_s=2, answer_s=3, steps=QUICK)
PATIENT_S = 60.0
pytestmark = pytest.mark.timeout(180)
World = tuple[HubPaths, HubClient]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with hub_with_module(tmp_path / "hub") as made:
        yield made


async def connected(fleet: Fleet, count: int) -> None:
    await until(lambda: fleet.summary.connected == count, f"{count} devices to connect", PATIENT_S)


async def ended(client: HubClient, device_deadline_s: float = 60.0) -> dict[str, str]:
    """A rollout to all, until its end; the state of each device's execution."""
    wanted = NewRollout(
        MODULE, 1, success_threshold=0.0, error_threshold=100.0, device_deadline_s=device_deadline_s, start=True
    )
    started = await client.create_rollout(wanted)

    async def over() -> bool:
        return (await client.rollout(started.rollout.id)).rollout.state not in ("running", "draft")

    await until_async(over, "the rollout to end", PATIENT_S)
    status = await client.rollout(started.rollout.id)
    return {execution.device: str(execution.state) for execution in status.executions}


async def test_a_rollout_to_a_hundred_devices_is_verified_and_their_windows_are_counted(world: World) -> None:
    paths, client = world
    place, fleet_members = await members(paths.root, 100)
    profile = Profile(report_every_s=5, window_every_s=1, files="all", steps=QUICK)
    async with Fleet(place, fleet_members, profile) as fleet:
        await connected(fleet, 100)
        assert Counter((await ended(client)).values()) == {"verified": 100}
        await until(lambda: fleet.summary.windows >= 100, "windows to be acknowledged", PATIENT_S)
        summary = fleet.summary
    assert summary.updates == {"committed": 100}
    assert summary.received_bytes > 100 * 100_000  # the module's files, by each
    assert summary.windows_lost == 0
    assert summary.errors == {}


async def test_devices_end_as_they_are_and_nobody_is_believed_who_lies(world: World) -> None:
    paths, client = world
    place, fleet_members = await members(paths.root, 100)
    groups = (
        Group("broken", 0.05, ends="failed", step="trying"),
        Group("unhealthy", 0.05, ends="reverted"),
        Group("unfit", 0.05, ends="rejected"),
        Group("mute", 0.05, ends="silent"),
        Group("far", 0.05, link=Link(delay_ms=100, kib_per_s=64, loss=0.05)),
        Group("forgers", 0.05, lie="other-key"),
        Group("braggarts", 0.05, lie="unassigned"),
        Group("parrots", 0.05, lie="replay"),
        Group("giants", 0.05, lie="counter"),
    )
    async with Fleet(place, fleet_members, _with(groups)) as fleet:
        await connected(fleet, 100)
        found = await ended(client, device_deadline_s=20.0)
        named = {device.identity.device: device.group.name if device.group else "" for device in fleet.devices}
        counted = {device.identity.device: device.state.counter for device in fleet.devices}
        summary = fleet.summary
    states = {name: {found[device] for device in named if named[device] == name} for name in set(named.values())}
    assert states.pop("parrots") <= {"verified", "timed_out", "silent"}  # they drown their own news
    assert states == {
        "": {"verified"},
        "broken": {"failed"},
        "unhealthy": {"reverted"},
        "unfit": {"rejected"},
        "mute": {"silent"},
        "far": {"verified"},
        "forgers": {"silent"},
        "braggarts": {"timed_out"},
        "giants": {"silent"},
    }
    assert summary.silent == 5
    assert summary.lies.keys() == {"other-key", "unassigned", "replay", "counter"}
    for device, name in named.items():
        if name in ("forgers", "parrots"):
            report = (await client.device(device)).device.report
            assert report is None if name == "forgers" else report is not None and report.counter <= counted[device]


async def test_two_devices_with_one_identity_are_noticed(world: World) -> None:
    paths, client = world
    place, fleet_members = await members(paths.root, 20)
    async with Fleet(place, fleet_members, _with((Group("copied", 0.05, clone=True),))) as fleet:
        assert len(fleet.devices) == 21
        (copied,) = (device.identity.device for device in fleet.devices if device.clone)

        async def noticed() -> bool:
            return any(event.subject == copied for event in await client.events(kind="device.clone-suspected"))

        await until_async(noticed, "the clone to be noticed", PATIENT_S)
        suspected = {event.subject for event in await client.events(kind="device.clone-suspected")}
    assert suspected == {copied}


async def test_a_fleet_that_restarts_goes_on_as_it_was(world: World) -> None:
    paths, client = world
    place, fleet_members = await members(paths.root, 30)
    async with Fleet(place, fleet_members, PROFILE) as fleet:
        await connected(fleet, 30)
        assert Counter((await ended(client)).values()) == {"verified": 30}
    before = [member.state.counter for member in fleet_members]
    async with Fleet(place, fleet_members, PROFILE) as fleet:
        await connected(fleet, 30)
        await until(lambda: fleet.summary.reports >= 30, "everybody to report", PATIENT_S)
        assert fleet.summary.updates == {}

        async def known() -> bool:
            shown = [await client.device(member.identity.device) for member in fleet_members]
            reports = [one.device.report for one in shown]
            return all(report and report.counter > old for report, old in zip(reports, before, strict=True))

        await until_async(known, "the hub to know the new reports", PATIENT_S)
    suspected = await client.events(kind="device.clone-suspected")
    assert suspected == []


async def test_everybody_is_back_after_the_broker_was_killed(world: World) -> None:
    paths, client = world
    place, fleet_members = await members(paths.root, 60)
    async with Fleet(place, fleet_members, PROFILE) as fleet:
        await connected(fleet, 60)
        broker = next(pid for pid, name in children(os.getpid()).items() if name == "mosquitto")
        os.kill(broker, signal.SIGKILL)
        await until(lambda: fleet.summary.losses >= 60, "the loss to be noticed", PATIENT_S)
        await connected(fleet, 60)

        async def back() -> bool:
            return (await client.health()).broker

        await until_async(back, "the hub to be connected again", PATIENT_S)
        assert Counter((await ended(client)).values()) == {"verified": 60}


async def test_devices_that_are_offline_now_and_then_lose_no_window(world: World) -> None:
    paths, client = world
    place, fleet_members = await members(paths.root, 20)
    link = Link(offline_every_s=3, offline_s=1)
    async with Fleet(place, fleet_members, _with((Group("train", 0.5, link=link),))) as fleet:
        assert Counter((await ended(client)).values()) == {"verified": 20}
        await until(lambda: fleet.summary.losses >= 10 and fleet.summary.windows >= 60, "losses and windows", PATIENT_S)
        assert fleet.summary.windows_lost == 0


def _with(groups: tuple[Group, ...]) -> Profile:
    return Profile(
        report_every_s=5, window_every_s=1, keepalive_s=10, reconnect_s=2, answer_s=5, steps=QUICK, groups=groups
    )
