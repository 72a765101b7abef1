"""What a rollout waits for, in words that a person can act on."""

from __future__ import annotations

import msgspec

from cloud_hub.events import Events
from cloud_hub.roles import Role
from cloud_hub.rollouts.approval import Approval
from cloud_hub.rollouts.gate import CompareGate, GateState
from cloud_hub.rollouts.maintenance import MaintenanceWindow
from cloud_hub.rollouts.plan import Group, Plan
from cloud_hub.rollouts.rate import Rate
from cloud_hub.rollouts.states import Execution, ExecutionState, Rollout, RolloutState
from cloud_hub.rollouts.waits import Wait, waits
from cloud_hub.store.engine import Store
from support.clock import SetClock
from support.reporting import Fleet
from support.rollouts import counted

NIGHT = MaintenanceWindow.parse("02:00-05:00")
VERIFIED, WAITING = ExecutionState.VERIFIED, ExecutionState.WAITING


def rollout(state: RolloutState = RolloutState.RUNNING, at_gate: GateState | None = None, **plan: object) -> Rollout:
    made = msgspec.structs.replace(Plan(groups=(Group(1), Group())), **plan)
    return Rollout("r1", "digits", 2, "all", made, state, 0.0, group_index=0, started_at=0.0, gate=at_gate)


def said(
    of: Rollout, first: ExecutionState, *others: ExecutionState, ready_at: float | None = None, now: float = 5.0
) -> list[str]:
    parts = [Execution("cam-0", 0, first), *(Execution(f"cam-{n}", 1, one) for n, one in enumerate(others, 1))]
    return [f"{one.kind}: {one.text}" for one in waits(of, counted(parts), ready_at, now)]


def test_a_draft_and_a_paused_one_wait_for_a_person() -> None:
    approval = Approval(Role.OPERATOR, 2)
    assert said(rollout(RolloutState.DRAFT, approval=approval), WAITING) == [
        "approval: the start waits for 2 more approvals by the role operator, other than the creator",
        "person: waits for somebody to start it",
    ]
    assert said(rollout(RolloutState.PAUSED), WAITING) == [
        "person: waits for somebody to resume, abort or roll it back"
    ]


def test_one_that_works_or_has_ended_waits_for_nothing() -> None:
    assert said(rollout(), ExecutionState.UPDATING, WAITING) == []
    assert said(rollout(RolloutState.FINISHED), VERIFIED) == []
    assert said(rollout(RolloutState.ROLLING_BACK), VERIFIED) == []


def test_a_group_that_soaks_waits_until_its_time_and_for_the_word_of_its_gates() -> None:
    soaking = rollout(at_gate=GateState(0, 0.0), soak_s=3600.0)
    (wait,) = waits(soaking, counted([Execution("cam-0", 0, VERIFIED), Execution("cam-1", 1)]), None, 5.0)
    assert wait == Wait("soak", "group 1 soaks until 1970-01-01 01:00 UTC", 3600.0)
    undecided = rollout(at_gate=GateState(0, 0.0, "undecided", "errors is not yet known"), gate=CompareGate())
    assert said(undecided, VERIFIED, WAITING) == [
        "gate: the comparison behind group 1 is undecided (errors is not yet known)"
    ]
    silent = rollout(at_gate=GateState(0, 0.0), gate=CompareGate())
    assert said(silent, VERIFIED, WAITING) == ["gate: the gate behind group 1 has not spoken yet"]


def test_a_group_that_has_only_soaked_waits_for_no_gate() -> None:
    soaked = rollout(at_gate=GateState(0, 0.0), soak_s=3.0, approval=Approval(stages=("group:2",)))
    (text,) = said(soaked, VERIFIED, WAITING)
    assert text.startswith("approval: group 2 waits")


def test_an_approval_is_asked_for_once_the_group_before_has_its_threshold() -> None:
    asked = rollout(approval=Approval(stages=("group:2",)))
    assert said(asked, ExecutionState.UPDATING, WAITING) == []
    (text,) = said(asked, VERIFIED, WAITING)
    assert text.startswith("approval: group 2 waits for 1 more approval by the role operator")


def test_devices_that_have_not_begun_wait_for_their_window_or_for_the_rate() -> None:
    night = rollout(windows=(NIGHT,))
    assert said(night, WAITING, ready_at=7200.0) == [
        "window: 1 device waits for their maintenance window, the first from 1970-01-01 02:00 UTC on"
    ]
    assert said(rollout(retries=1), WAITING, ready_at=60.0) == [
        "window: 1 device waits for another attempt, the first from 1970-01-01 00:01 UTC on"
    ]
    slow = rollout(rate=Rate(30.0))
    assert said(slow, WAITING) == ["rate: 1 device waits for their turn, at 30 a minute"]


def test_one_that_devices_go_on_to_join_says_so_when_all_have_ended() -> None:
    joining = msgspec.structs.replace(rollout(joining=True), group_index=1)
    assert said(joining, VERIFIED, VERIFIED) == ["joining: waits for more devices to join, until somebody finishes it"]
    assert said(joining, VERIFIED, ExecutionState.ASSIGNED) == []


async def test_the_status_says_it_with_the_moment_from_the_database(
    store: Store, events: Events, clock: SetClock
) -> None:
    fleet = Fleet(store, events, clock)
    await fleet.furnish()
    clock.now = 1_700_000_000.0  # 22:13 UTC
    status = await fleet.create(groups=("rest",), windows=(NIGHT,))
    (wait,) = status.waits
    assert (wait.kind, wait.until) == ("window", 1_700_013_600.0)
    assert wait.text.startswith("5 devices wait for their maintenance window")
    clock.now = 1_700_013_600.0
    await fleet.rollouts.tick()
    assert (await fleet.rollouts.get(status.rollout.id)).waits == ()
