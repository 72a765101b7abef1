"""The controller on a real database: what it assigns, what it puts back, and what survives a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import pytest
from sqlalchemy import insert, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.desired import Assignment, Desired
from cloud_hub.errors import Conflict, HubError, NotFound, Unprocessable
from cloud_hub.events import Events
from cloud_hub.rollouts.controller import Controller
from cloud_hub.rollouts.states import Execution, ExecutionState, RolloutState
from cloud_hub.rollouts.status import RolloutStatus
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices, modules
from modules.manifest import SamplingPolicy
from modules.messages import ModuleReport, UpdateReport
from support.clock import SetClock
from support.reporting import DIGESTS, Fleet, module_row


@pytest.fixture
async def fleet(store: Store, events: Events, clock: SetClock) -> Fleet:
    fleet = Fleet(store, events, clock)
    await fleet.furnish()
    return fleet


def _part(status: RolloutStatus, device: str) -> Execution:
    return next(e for e in status.executions if e.device == device)


async def test_groups_open_one_after_the_other_as_devices_are_verified(fleet: Fleet) -> None:
    created = await fleet.create()
    rollout = created.rollout.id
    assert [group.size for group in created.groups] == [1, 3, 1]
    assert await fleet.assigned("cam-100") == [(2, rollout)]
    assert await fleet.assigned("cam-200") == []
    assert fleet.rung == [("cam-100", 2)]
    await fleet.verified("cam-100", rollout)
    assert [await fleet.assigned(f"cam-{n}00") for n in (2, 3, 4)] == [[(2, rollout)]] * 3
    for number in (2, 3, 4):
        assert await fleet.assigned("cam-500") == []
        await fleet.verified(f"cam-{number}00", rollout)
    await fleet.verified("cam-500", rollout)
    assert (await fleet.rollouts.get(rollout)).rollout.state is RolloutState.FINISHED
    kinds = [event.kind for event in await fleet.events.list(subject=rollout)]
    assert kinds[0] == "rollout.finished"
    assert kinds.count("rollout.group-started") == 3
    assert kinds.count("rollout.device-ended") == 5


async def test_a_failed_canary_stops_the_rollout_and_gets_back_what_it_had(fleet: Fleet) -> None:
    first = (await fleet.create(version=1, groups=("rest",))).rollout.id
    for number in range(1, 6):
        await fleet.verified(f"cam-{number}00", first, version=1)
    second = (await fleet.create()).rollout.id
    await fleet.failed("cam-100", second)
    status = await fleet.rollouts.get(second)
    assert status.rollout.state is RolloutState.FAILED
    assert "1 of the 1 devices that ended did not succeed (1 failed)" in status.rollout.reason
    part = _part(status, "cam-100")
    assert (part.state, part.reason_key, part.reason) == (ExecutionState.FAILED, "golden-mismatch", "case 3 differs")
    assert {e.state for e in status.executions if e.device != "cam-100"} == {ExecutionState.CANCELLED}
    assert [await fleet.assigned(f"cam-{n}00") for n in range(1, 6)] == [[(1, first)]] * 5
    assert fleet.rung[-1] == ("cam-100", 4)


async def test_a_policy_of_a_device_outlives_rollouts_that_bring_none_also_when_they_are_put_back(fleet: Fleet) -> None:
    async def policy() -> SamplingPolicy | None:
        (found,) = await fleet.desired.of("cam-100")
        return found.sampling

    async def set_own(sampling: SamplingPolicy) -> None:
        (found,) = await fleet.desired.of("cam-100")
        async with fleet.store.write() as connection:
            await fleet.desired.assign(connection, "cam-100", msgspec.structs.replace(found, sampling=sampling))

    first = (await fleet.create(version=1, groups=("rest",))).rollout.id
    for number in range(1, 6):
        await fleet.verified(f"cam-{number}00", first, version=1)
    own = SamplingPolicy(rate=0.5)
    await set_own(own)
    second = (await fleet.create()).rollout.id
    assert (await fleet.assigned("cam-100"), await policy()) == ([(2, second)], own)
    await set_own(SamplingPolicy(rate=0.25))
    await fleet.failed("cam-100", second)
    assert (await fleet.assigned("cam-100"), await policy()) == ([(1, first)], SamplingPolicy(rate=0.25))
    brought = SamplingPolicy(rate=0.1)
    await fleet.create(sampling=brought)
    assert await policy() == brought


async def test_a_first_module_that_fails_is_taken_away(fleet: Fleet) -> None:
    rollout = (await fleet.create()).rollout.id
    await fleet.failed("cam-100", rollout)
    assert await fleet.assigned("cam-100") == []


async def test_silence_ends_at_the_deadline(fleet: Fleet) -> None:
    rollout = (await fleet.create(groups=("rest",), error_threshold=100, success_threshold=80)).rollout.id
    for number in range(1, 5):
        await fleet.verified(f"cam-{number}00", rollout)
    fleet.clock.advance(599)
    await fleet.rollouts.tick()
    assert (await fleet.stands(rollout))["cam-500"] == "assigned"
    fleet.clock.advance(1)
    await fleet.rollouts.tick()
    assert (await fleet.stands(rollout))["cam-500"] == "silent"
    assert (await fleet.rollouts.get(rollout)).rollout.state is RolloutState.FINISHED
    assert await fleet.assigned("cam-500") == []


async def test_a_rollout_ends_at_its_own_deadline_even_when_paused(fleet: Fleet) -> None:
    rollout = (await fleet.create(deadline_s=1000, device_deadline_s=5000)).rollout.id
    await fleet.rollouts.pause(rollout, "ann")
    fleet.clock.advance(1000)
    await fleet.rollouts.tick()
    status = await fleet.rollouts.get(rollout)
    assert (status.rollout.state, status.rollout.reason) == (RolloutState.FAILED, "not finished within 1000 s")
    assert set((await fleet.stands(rollout)).values()) == {"cancelled"}


async def test_a_paused_rollout_opens_no_group_until_it_is_resumed(fleet: Fleet) -> None:
    rollout = (await fleet.create()).rollout.id
    await fleet.rollouts.pause(rollout, "ann")
    await fleet.verified("cam-100", rollout)
    assert (await fleet.stands(rollout))["cam-100"] == "verified"
    assert await fleet.assigned("cam-200") == []
    await fleet.rollouts.resume(rollout, "ann")
    assert await fleet.assigned("cam-200") == [(2, rollout)]


async def test_abort_reaches_devices_in_progress_and_leaves_verified_ones_alone(fleet: Fleet) -> None:
    rollout = (await fleet.create()).rollout.id
    await fleet.verified("cam-100", rollout)
    await fleet.say(fleet.report("cam-200", current=UpdateReport("fetching", 2, (rollout,))))
    assert (await fleet.stands(rollout))["cam-200"] == "updating"
    status = await fleet.rollouts.abort(rollout, "ann", "wrong labels")
    assert (status.rollout.state, status.rollout.reason) == (RolloutState.ABORTED, "wrong labels")
    assert await fleet.assigned("cam-100") == [(2, rollout)]
    assert await fleet.assigned("cam-200") == []
    assert fleet.rung[-1][1] == 3
    with pytest.raises(
        Conflict, match="cannot abort rollout r1: expected it draft or running or paused, it is aborted"
    ):
        await fleet.rollouts.abort(rollout, "ann")


async def test_a_device_that_had_committed_before_it_heard_of_the_abort_is_directed_to_what_it_runs(
    fleet: Fleet,
) -> None:
    first = (await fleet.create(version=1, groups=("rest",))).rollout.id
    for number in range(1, 6):
        await fleet.verified(f"cam-{number}00", first, version=1)
    second = (await fleet.create()).rollout.id
    await fleet.rollouts.abort(second, "ann")
    assert await fleet.assigned("cam-100") == [(1, first)]
    await fleet.verified("cam-100", second)
    assert await fleet.assigned("cam-100") == [(2, second)]
    assert (await fleet.stands(second))["cam-100"] == "cancelled"


async def test_a_device_that_runs_exactly_this_module_is_verified_at_once(fleet: Fleet) -> None:
    first = (await fleet.create(target="id=cam-100")).rollout.id
    await fleet.verified("cam-100", first)
    again = await fleet.create(target="id=cam-100")
    assert again.rollout.state is RolloutState.FINISHED
    assert _part(again, "cam-100").reason_key == "already-runs"
    assert await fleet.assigned("cam-100") == [(2, first)]


async def test_a_device_without_a_build_is_listed_with_the_reason_and_takes_no_part(fleet: Fleet) -> None:
    status = await fleet.create(target="site=lab")
    [left_out] = status.not_eligible
    assert (left_out.device, left_out.reason_key) == ("pi-100", "no-module-for-profile")
    assert left_out.reason == "digits version 2 is not built for raspberry-pi-5"
    assert sum(group.size for group in status.groups) == 5
    assert status.rollout.state is RolloutState.RUNNING


async def test_an_unsigned_module_goes_nowhere(fleet: Fleet) -> None:
    async with fleet.store.write() as connection:
        await connection.execute(insert(modules).values(**module_row(3, "3" * 64, None)))
    with pytest.raises(Conflict, match="digits version 3 for generic-x86_64 is not signed"):
        await fleet.create(version=3)


async def test_a_device_in_another_rollout_of_the_module_is_refused_by_name(fleet: Fleet) -> None:
    draft = (await fleet.create(target="id=cam-300", start=False)).rollout.id
    running = (await fleet.create()).rollout.id
    with pytest.raises(Conflict, match=rf"under way on cam-300 \(in {running}\)"):
        await fleet.rollouts.start(draft, "ann")
    with pytest.raises(Conflict, match=rf"under way on cam-100 \(in {running}\), cam-200"):
        await fleet.create()
    assert (await fleet.rollouts.get(draft)).rollout.state is RolloutState.DRAFT


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"version": 9}, NotFound, "no module digits version 9"),
        ({"module": "letters"}, NotFound, "no module letters version 2"),
        ({"target": "site=moon"}, Unprocessable, "target 'site=moon': no device matches"),
        ({"target": "site"}, HubError, "query: expected"),
        ({"groups": ("many",)}, HubError, "group: expected a number such as 5"),
        ({"success_threshold": 120}, HubError, "success_threshold: expected 0 to 100 percent, got 120"),
        ({"device_deadline_s": 0}, HubError, "device_deadline_s: expected more than 0 seconds"),
    ],
)
async def test_a_rollout_that_makes_no_sense_is_refused_with_the_reason(
    fleet: Fleet, changes: dict[str, object], error: type[HubError], words: str
) -> None:
    with pytest.raises(error, match=words):
        await fleet.create(**changes)
    assert await fleet.rollouts.list() == []


async def test_an_unknown_rollout_is_named(fleet: Fleet) -> None:
    with pytest.raises(NotFound, match="no rollout r77"):
        await fleet.rollouts.get("r77")


async def test_a_report_that_was_stored_but_not_acted_on_counts_after_a_restart(fleet: Fleet) -> None:
    rollout = (await fleet.create()).rollout.id
    module = ModuleReport("digits", 2, DIGESTS[2], 2, rollout, "serving", True)
    await fleet.store_report(fleet.report("cam-100", modules=(module,)))
    fleet.rollouts = fleet.restarted()
    await fleet.rollouts.tick()
    assert (await fleet.stands(rollout))["cam-100"] == "verified"
    assert await fleet.assigned("cam-200") == [(2, rollout)]


async def test_a_report_that_could_not_be_acted_on_counts_with_the_next_tick(fleet: Fleet) -> None:
    rollout = (await fleet.create()).rollout.id
    await fleet.rollouts.tick()
    trigger = "CREATE TRIGGER full BEFORE UPDATE ON executions BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
    async with fleet.store.write() as connection:
        await connection.execute(text(trigger))
    with pytest.raises(IntegrityError, match="the disk is full"):
        await fleet.verified("cam-100", rollout)
    async with fleet.store.write() as connection:
        await connection.execute(text("DROP TRIGGER full"))
    await fleet.rollouts.tick()
    assert (await fleet.stands(rollout))["cam-100"] == "verified"


async def test_reports_of_a_device_that_is_verified_do_not_wait_for_the_writer(fleet: Fleet) -> None:
    rollout = (await fleet.create()).rollout.id
    await fleet.verified("cam-100", rollout)
    module = ModuleReport("digits", 2, DIGESTS[2], 2, rollout, "serving", True)
    async with fleet.store.write(), asyncio.timeout(5.0):
        await fleet.rollouts.on_report("cam-100", fleet.report("cam-100", modules=(module,)))


async def test_rings_that_a_crash_swallowed_are_rung_after_a_restart(fleet: Fleet) -> None:
    async def dead(_versions: Mapping[str, int]) -> None:
        raise ConnectionResetError("the process died here")

    fleet.rollouts = Controller(fleet.store, fleet.events, fleet.desired, dead, fleet.clock)
    await fleet.create()
    assert fleet.rung == []
    fleet.rollouts = fleet.restarted()
    await fleet.rollouts.tick()
    assert fleet.rung == [("cam-100", 2)]


async def test_a_crash_inside_the_transaction_changes_nothing(fleet: Fleet) -> None:
    rollout = (await fleet.create()).rollout.id
    before = await fleet.rollouts.get(rollout)

    class PowerCut(Exception):
        pass

    class CutOff(Desired):
        """The power goes when the next group has been assigned."""

        async def assign_many(
            self, connection: AsyncConnection, wanted: Mapping[str, Assignment]
        ) -> dict[str, int | HubError]:
            await super().assign_many(connection, wanted)
            raise PowerCut

    fleet.rollouts = Controller(fleet.store, fleet.events, CutOff(fleet.store, fleet.clock), fleet._ring, fleet.clock)
    with pytest.raises(PowerCut):
        await fleet.verified("cam-100", rollout)
    assert await fleet.rollouts.get(rollout) == before
    assert await fleet.assigned("cam-200") == []
    fleet.rollouts = fleet.restarted()
    await fleet.rollouts.tick()
    assert await fleet.assigned("cam-400") == [(2, rollout)]


async def test_reports_and_ticks_at_the_same_time_do_not_disturb_each_other(fleet: Fleet) -> None:
    rollout = (await fleet.create(groups=("rest",))).rollout.id
    acts: list[Callable[[], Awaitable[None]]] = [fleet.rollouts.tick] * 3
    reports = [fleet.verified(f"cam-{n}00", rollout) for n in (1, 2, 3, 4, 5, 5, 1)]
    await asyncio.gather(*reports, *(act() for act in acts))
    status = await fleet.rollouts.get(rollout)
    assert status.rollout.state is RolloutState.FINISHED
    kinds = [event.kind for event in await fleet.events.list(subject=rollout)]
    assert kinds.count("rollout.device-ended") == 5


async def test_a_retired_device_is_rejected_when_its_group_opens(fleet: Fleet) -> None:
    rollout = (await fleet.create(groups=("4", "rest"), success_threshold=50, error_threshold=100)).rollout.id
    async with fleet.store.write() as connection:
        await connection.execute(update(devices).where(devices.c.id == "cam-500").values(retired_at=1.0))
    await fleet.verified("cam-100", rollout)
    await fleet.verified("cam-200", rollout)
    status = await fleet.rollouts.get(rollout)
    part = _part(status, "cam-500")
    assert (part.state, part.reason_key) == (ExecutionState.REJECTED, "device-retired")
