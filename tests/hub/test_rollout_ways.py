"""What a rollout may do beside going on: try again, take back, let join, make room, keep to hours and to a rate."""

from __future__ import annotations

import pytest
from sqlalchemy import func, insert, select, update

from cloud_hub.errors import Conflict
from cloud_hub.events import Events
from cloud_hub.roles import Role
from cloud_hub.rollouts import turn
from cloud_hub.rollouts.approval import Approval
from cloud_hub.rollouts.controller import Controller
from cloud_hub.rollouts.maintenance import MaintenanceWindow
from cloud_hub.rollouts.plan import FailureThreshold
from cloud_hub.rollouts.rate import Rate
from cloud_hub.rollouts.states import RolloutState
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices, executions, modules, rollout_counts
from modules.messages import ModuleReport, UpdateReport
from support.clock import SetClock
from support.reporting import DIGESTS, PROFILE, Fleet, device_row

IDS = tuple(f"cam-{number}00" for number in range(1, 6))


@pytest.fixture
async def fleet(store: Store, events: Events, clock: SetClock) -> Fleet:
    fleet = Fleet(store, events, clock)
    await fleet.furnish()
    return fleet


async def first_version(fleet: Fleet) -> str:
    """Everybody runs version 1."""
    rollout = (await fleet.create(version=1, groups=("rest",))).rollout.id
    for device in IDS:
        await fleet.verified(device, rollout, version=1)
    return rollout


async def back(fleet: Fleet, device: str, deployment: str, director_version: int) -> None:
    """The device runs version 1 again, and knows its director's version."""
    module = ModuleReport("digits", 1, DIGESTS[1], 1, deployment, "serving", True)
    await fleet.say(fleet.report(device, modules=(module,), director_version=director_version))


async def release_again(fleet: Fleet, version: int, counter: int) -> None:
    async with fleet.store.write() as connection:
        change = update(modules).where(modules.c.version == version)
        await connection.execute(change.values(release_counter=counter))


async def counted(fleet: Fleet, rollout: str) -> tuple[dict[str, int], dict[str, int]]:
    """What is kept, and what is there."""
    kept = select(rollout_counts.c.state, func.sum(rollout_counts.c.count)).where(rollout_counts.c.rollout == rollout)
    there = select(executions.c.state, func.count()).where(executions.c.rollout == rollout)
    async with fleet.store.read() as connection:
        first = {s: n for s, n in await connection.execute(kept.group_by(rollout_counts.c.state)) if n}
        rows = await connection.execute(there.where(executions.c.group_index >= 0).group_by(executions.c.state))
        second: dict[str, int] = dict(rows.all())
    return first, second


# --- back --------------------------------------------------------------------------------------------------------


async def test_a_fleet_rollback_takes_everybody_back_and_ends_when_they_are(fleet: Fleet) -> None:
    first = await first_version(fleet)
    second = (await fleet.create(groups=("2", "rest"))).rollout.id
    await fleet.verified(IDS[0], second)
    await fleet.verified(IDS[1], second)
    await fleet.say(fleet.report(IDS[2], current=UpdateReport("fetching", 3, (second,))))
    await release_again(fleet, 1, 9)
    status = await fleet.rollouts.roll_back(second, "ann", "reads 7 as 1")
    assert status.rollout.state is RolloutState.ROLLING_BACK
    stands = await fleet.stands(second)
    assert [stands[device] for device in IDS] == ["returning", "returning", "cancelled", "cancelled", "cancelled"]
    assert [await fleet.assigned(device) for device in IDS] == [[(1, first)]] * 5
    for device in IDS[:2]:
        await back(fleet, device, first, 4)
    status = await fleet.rollouts.get(second)
    assert (status.rollout.state, status.rollout.reason) == (RolloutState.ROLLED_BACK, "reads 7 as 1")
    assert list((await fleet.stands(second)).values())[:2] == ["returned", "returned"]
    kept, there = await counted(fleet, second)
    assert kept == there
    kinds = [event.kind for event in await fleet.events.list(subject=second)]
    assert kinds[0] == "rollout.rolled-back"
    assert "rollout.rolling-back" in kinds


async def test_a_report_from_before_does_not_make_a_device_that_goes_back_count_as_back(fleet: Fleet) -> None:
    first = await first_version(fleet)
    second = (await fleet.create(groups=("rest",))).rollout.id
    await fleet.verified(IDS[0], second)
    await release_again(fleet, 1, 9)
    await fleet.rollouts.roll_back(second, "ann")
    await back(fleet, IDS[0], first, 2)
    assert (await fleet.stands(second))[IDS[0]] == "returning"
    await back(fleet, IDS[0], first, 4)
    assert (await fleet.stands(second))[IDS[0]] == "returned"


async def test_what_devices_would_refuse_is_signed_again_first_where_the_hub_can(fleet: Fleet) -> None:
    await first_version(fleet)
    signed: list[tuple[str, int, str]] = []

    async def sign(module: str, version: int, profile: str) -> None:
        signed.append((module, version, profile))
        await release_again(fleet, version, 9)

    fleet.rollouts = Controller(fleet.store, fleet.events, fleet.desired, fleet._ring, fleet.clock, sign_again=sign)
    second = (await fleet.create(groups=("rest",), on_failure="roll_back", error_threshold=20)).rollout.id
    await fleet.verified(IDS[0], second)
    await fleet.failed(IDS[1], second)
    assert signed == [("digits", 1, PROFILE)]
    stands = await fleet.stands(second)
    assert [stands[device] for device in IDS[:3]] == ["returning", "failed", "cancelled"]


async def test_a_device_that_cannot_go_back_is_stuck_with_what_to_do_and_may_be_taken_back_later(fleet: Fleet) -> None:
    first = await first_version(fleet)
    second = (await fleet.create(groups=("rest",))).rollout.id
    await fleet.verified(IDS[0], second)
    status = await fleet.rollouts.roll_back(second, "ann")
    (stuck,) = (part for part in status.executions if part.device == IDS[0])
    assert (stuck.state, stuck.reason_key) == ("stuck", "needs-signature")
    assert "mooring module sign digits:1/generic-x86_64" in stuck.reason
    assert await fleet.assigned(IDS[0]) == [(2, second)]
    assert status.rollout.state is RolloutState.ROLLED_BACK
    await release_again(fleet, 1, 9)
    await fleet.rollouts.roll_back(second, "ann")
    await back(fleet, IDS[0], first, 4)
    assert (await fleet.stands(second))[IDS[0]] == "returned"


async def test_a_device_that_does_not_come_back_in_time_is_stuck_and_the_rollback_ends(fleet: Fleet) -> None:
    await first_version(fleet)
    second = (await fleet.create(groups=("rest",))).rollout.id
    await fleet.verified(IDS[0], second)
    await release_again(fleet, 1, 9)
    await fleet.rollouts.roll_back(second, "ann")
    fleet.clock.advance(600)
    await fleet.rollouts.tick()
    assert (await fleet.stands(second))[IDS[0]] == "stuck"
    assert (await fleet.rollouts.get(second)).rollout.state is RolloutState.ROLLED_BACK


async def test_a_module_that_was_not_there_before_is_taken_away(fleet: Fleet) -> None:
    rollout = (await fleet.create(groups=("rest",))).rollout.id
    await fleet.verified(IDS[0], rollout)
    await fleet.rollouts.roll_back(rollout, "ann")
    assert await fleet.assigned(IDS[0]) == []
    await fleet.say(fleet.report(IDS[0], director_version=3))
    assert (await fleet.stands(rollout))[IDS[0]] == "returned"


async def test_no_fleet_goes_back_while_another_rollout_has_its_devices(fleet: Fleet) -> None:
    first = await first_version(fleet)
    await fleet.create(groups=("rest",))
    with pytest.raises(Conflict, match="under way on cam-100"):
        await fleet.rollouts.roll_back(first, "ann")


# --- again -------------------------------------------------------------------------------------------------------


async def test_a_device_that_failed_is_tried_again_so_often_and_after_a_pause(fleet: Fleet) -> None:
    rollout = (await fleet.create(target=f"id={IDS[0]}", groups=("rest",), retries=1, retry_after_s=60)).rollout.id
    await fleet.failed(IDS[0], rollout)
    assert (await fleet.stands(rollout))[IDS[0]] == "waiting"
    assert await fleet.assigned(IDS[0]) == []
    fleet.clock.advance(59)
    await fleet.rollouts.tick()
    assert await fleet.assigned(IDS[0]) == []
    fleet.clock.advance(1)
    await fleet.rollouts.tick()
    assert await fleet.assigned(IDS[0]) == [(2, rollout)]
    await fleet.failed(IDS[0], rollout)
    status = await fleet.rollouts.get(rollout)
    assert (status.rollout.state, status.executions[0].attempt) == (RolloutState.FAILED, 1)


async def test_the_failed_of_a_rollout_that_has_ended_are_tried_again_by_hand(fleet: Fleet) -> None:
    rollout = (await fleet.create()).rollout.id
    await fleet.failed(IDS[0], rollout)
    assert (await fleet.rollouts.get(rollout)).rollout.state is RolloutState.FAILED
    fleet.clock.advance(10)
    await fleet.rollouts.retry(rollout, "ann")
    assert await fleet.assigned(IDS[0]) == [(2, rollout)]
    for device in IDS:
        await fleet.verified(device, rollout)
    assert (await fleet.rollouts.get(rollout)).rollout.state is RolloutState.FINISHED
    kept, there = await counted(fleet, rollout)
    assert kept == there == {"verified": 5}
    with pytest.raises(Conflict, match="no device failed, or others have them"):
        await fleet.rollouts.retry(rollout, "ann")


# --- who else ----------------------------------------------------------------------------------------------------


async def add_device(fleet: Fleet, device: str) -> None:
    async with fleet.store.write() as connection:
        await connection.execute(insert(devices).values(**device_row(device, PROFILE, "lab")))


async def test_a_device_that_comes_later_joins_once_and_counts(fleet: Fleet) -> None:
    rollout = (await fleet.create(groups=("rest",), joining=True)).rollout.id
    for device in IDS:
        await fleet.verified(device, rollout)
    assert (await fleet.rollouts.get(rollout)).rollout.state is RolloutState.RUNNING
    await add_device(fleet, "cam-900")
    for _ in range(2):
        await fleet.rollouts.join("cam-900")
    await fleet.rollouts.join("pi-100")
    assert await fleet.assigned("cam-900") == [(2, rollout)]
    await fleet.verified("cam-900", rollout)
    status = await fleet.rollouts.finish(rollout, "ann")
    assert (status.rollout.state, status.groups[0].states) == (RolloutState.FINISHED, {"verified": 6})


async def test_devices_of_another_rollout_are_left_out_where_the_plan_says_so(fleet: Fleet) -> None:
    running = (await fleet.create(target=f"id={IDS[0]}")).rollout.id
    status = await fleet.create(groups=("rest",), conflict="skip")
    (left_out,) = status.not_eligible
    assert (left_out.device, left_out.reason_key) == (IDS[0], "device-in-rollout")
    assert running in left_out.reason
    assert status.groups[0].size == 4


async def test_devices_of_another_rollout_are_taken_over_where_the_plan_says_so(fleet: Fleet) -> None:
    first = (await fleet.create(version=1, groups=("2", "rest"))).rollout.id
    await fleet.verified(IDS[0], first, version=1)
    second = (await fleet.create(groups=("rest",), conflict="supersede")).rollout.id
    assert [await fleet.assigned(device) for device in IDS] == [[(2, second)]] * 5
    stands = await fleet.stands(first)
    assert [stands[device] for device in IDS] == ["verified", *["cancelled"] * 4]
    for device in IDS:
        await fleet.verified(device, second)
    assert (await fleet.rollouts.get(second)).rollout.state is RolloutState.FINISHED


async def test_all_rollouts_that_a_device_is_in_give_it_up_not_only_one_of_them(fleet: Fleet) -> None:
    first = (await fleet.create(version=1, target=f"id={IDS[0]}", joining=True)).rollout.id
    await fleet.verified(IDS[0], first, version=1)
    second = (await fleet.create(groups=("rest",), conflict="supersede")).rollout.id
    third = (await fleet.create(version=1, groups=("rest",), conflict="supersede")).rollout.id
    assert set((await fleet.stands(second)).values()) == {"cancelled"}
    assert await fleet.assigned(IDS[1]) == [(1, third)]
    await fleet.rollouts.tick()
    assert (await fleet.rollouts.get(second)).rollout.state is not RolloutState.RUNNING
    with pytest.raises(Conflict, match="others have them now"):
        await fleet.rollouts.retry(second, "ann")


# --- when --------------------------------------------------------------------------------------------------------


async def test_no_more_devices_begin_than_the_rate_allows(fleet: Fleet) -> None:
    rollout = (await fleet.create(groups=("rest",), rate=Rate(60, factor=2, after=1))).rollout.id
    begun = []
    for _ in range(4):
        begun.append(list((await fleet.stands(rollout)).values()).count("assigned"))
        fleet.clock.advance(1)
        await fleet.rollouts.tick()
    assert begun == [1, 2, 3, 4]


async def test_devices_begin_inside_their_window_by_their_own_clock(fleet: Fleet) -> None:
    async with fleet.store.write() as connection:
        tags = {"site": "lab", "timezone": "Asia/Tokyo"}
        await connection.execute(update(devices).where(devices.c.id == IDS[1]).values(tags=tags))
    fleet.clock.advance(-fleet.clock() % 86_400 + 86_400)  # midnight in UTC, nine in the morning in Tokyo
    window = MaintenanceWindow("09:00", "10:00")
    rollout = (await fleet.create(groups=("rest",), windows=(window,), device_deadline_s=86_400)).rollout.id
    assert [d for d, state in (await fleet.stands(rollout)).items() if state == "assigned"] == [IDS[1]]
    fleet.clock.advance(9 * 3600 - 1)
    await fleet.rollouts.tick()
    assert list((await fleet.stands(rollout)).values()).count("waiting") == 4
    fleet.clock.advance(1)
    await fleet.rollouts.tick()
    assert list((await fleet.stands(rollout)).values()).count("waiting") == 0


async def test_a_stage_waits_for_somebody_elses_yes(fleet: Fleet) -> None:
    approval = Approval(role=Role.ADMIN, stages=("start", "group:2"))
    rollout = (await fleet.create(approval=approval)).rollout.id
    assert await fleet.assigned(IDS[0]) == []
    with pytest.raises(Conflict, match="approved by the role admin"):
        await fleet.rollouts.approve(rollout, "bob", Role.OPERATOR, "start")
    with pytest.raises(Conflict, match="somebody else than ann"):
        await fleet.rollouts.approve(rollout, "ann", Role.ADMIN, "start")
    await fleet.rollouts.approve(rollout, "cleo", Role.ADMIN, "start", "looks good")
    assert await fleet.assigned(IDS[0]) == [(2, rollout)]
    await fleet.verified(IDS[0], rollout)
    assert await fleet.assigned(IDS[1]) == []
    await fleet.rollouts.approve(rollout, "cleo", Role.ADMIN, "group:2")
    assert await fleet.assigned(IDS[1]) == [(2, rollout)]
    (first, _) = reversed([event.details for event in await fleet.events.list("rollout.approved")])
    assert (first["stage"], first["comment"]) == ("start", "looks good")


async def test_a_threshold_of_a_class_pauses_and_who_resumes_goes_on(fleet: Fleet) -> None:
    thresholds = (FailureThreshold("silent", 10),)
    rollout = (
        await fleet.create(groups=("2", "rest"), error_threshold=100, thresholds=thresholds, on_failure="pause")
    ).rollout.id
    await fleet.verified(IDS[0], rollout)
    fleet.clock.advance(600)
    await fleet.rollouts.tick()
    status = await fleet.rollouts.get(rollout)
    assert status.rollout.state is RolloutState.PAUSED
    assert "1 silent" in status.rollout.reason
    await fleet.rollouts.resume(rollout, "ann")
    assert list((await fleet.stands(rollout)).values()).count("assigned") == 3


async def test_what_is_more_than_a_slice_is_done_in_the_next_turns(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "SLICE", 2)
    rollout = (await fleet.create(groups=("rest",))).rollout.id
    assert list((await fleet.stands(rollout)).values()).count("assigned") == 2
    await fleet.rollouts.tick()
    assert list((await fleet.stands(rollout)).values()).count("assigned") == 5
    await fleet.rollouts.abort(rollout, "ann")
    assert list((await fleet.stands(rollout)).values()).count("cancelled") == 2
    fleet.rollouts = fleet.restarted()
    await fleet.rollouts.tick()
    assert set((await fleet.stands(rollout)).values()) == {"cancelled"}
    assert [await fleet.assigned(device) for device in IDS] == [[]] * 5
