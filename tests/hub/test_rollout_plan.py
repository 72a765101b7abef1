"""The plan, its decisions and the judgement of reports: pure, so time and fate are arguments."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.rollouts.approval import Approval
from cloud_hub.rollouts.decide import (
    Action,
    Assign,
    Cancel,
    Finish,
    OpenGroup,
    Pause,
    Return,
    RollBack,
    RolledBack,
    SignAgain,
    Stop,
    WaitAtGate,
    decide,
    due_at,
    pardon,
)
from cloud_hub.rollouts.gate import CompareGate, GateState
from cloud_hub.rollouts.judge import Wanted, judge
from cloud_hub.rollouts.plan import FailureThreshold, Group, OnFailure, Plan, split
from cloud_hub.rollouts.rate import Rate, allowance, next_at
from cloud_hub.rollouts.records import StateCounts
from cloud_hub.rollouts.states import Execution, ExecutionState, Rollout, RolloutState
from firmware_profiles.profile import DeviceProfile
from modules.messages import DeviceReport, ModuleReport, UpdateReport, UpdateState
from support.rollouts import counted

DIGEST = "a" * 64
WANTED = Wanted("r1", "digits", 2, DIGEST)
NOW = 1000.0
IDLE = UpdateReport("idle")


def report_of(
    device: str = "cam-001",
    *,
    module: ModuleReport | None = None,
    current: UpdateReport = IDLE,
    last: UpdateReport = IDLE,
    director_version: int = 5,
) -> DeviceReport:
    modules = () if module is None else (module,)
    profile = DeviceProfile("generic-x86_64", "x86_64")
    return DeviceReport(device, 1, NOW, "0.1.0", profile, director_version, 1, modules, current, last)


def module_of(**changes: object) -> ModuleReport:
    module = ModuleReport("digits", 2, DIGEST, 1, "r1", "serving", True)
    return msgspec.structs.replace(module, **changes)


def assigned(device: str = "cam-001") -> Execution:
    return Execution(device, 0).begun(5, NOW, Plan())


# --- groups ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("20%", 3), ("0.5%", 1), ("rest", 11), ("100%", 11)])
def test_a_group_is_a_number_a_share_or_the_rest(text: str, size: int) -> None:
    assert Group.parse(text).size(11) == size
    assert str(Group.parse(text)) == text


@pytest.mark.parametrize("text", ["", "0", "-1", "101%", "0%", "half", "1.5", "1 %", "٣"])
def test_a_group_of_any_other_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="group: expected"):
        Group.parse(text)


@given(
    st.integers(0, 60),
    st.lists(st.sampled_from(["1", "3", "10%", "50%", "rest"]), min_size=1, max_size=5),
)
def test_a_split_takes_every_device_once_in_order_and_has_no_empty_group(count: int, groups: list[str]) -> None:
    devices = [f"cam-{number:03}" for number in range(count)]
    parts = split(devices, Plan(groups=tuple(map(Group.parse, groups))))
    assert [device for part in parts for device in part] == devices
    assert all(parts)


def test_a_group_may_be_a_query_which_takes_those_of_it_that_are_left() -> None:
    plan = Plan(groups=(Group.parse("1"), Group.parse("site = lab"), Group.parse("50%")))
    assert str(plan.groups[1]) == "site = lab"
    parts = split(["a", "b", "c", "d"], plan, {"site = lab": {"a", "c"}})
    assert parts == (("a",), ("c",), ("b", "d"))


def test_devices_left_over_after_the_last_group_are_one_more() -> None:
    assert split(["a", "b", "c"], Plan(groups=(Group(count=1),))) == (("a",), ("b", "c"))


# --- judgement ------------------------------------------------------------------------------------------------


def test_a_module_that_holds_after_probation_is_verified() -> None:
    assert judge(assigned(), WANTED, report_of(module=module_of()), NOW).state is ExecutionState.VERIFIED


@pytest.mark.parametrize(
    "changes", [{"verified": False}, {"manifest_sha256": "b" * 64}, {"deployment": "r0"}, {"version": 1}]
)
def test_a_module_that_differs_in_anything_is_not_verified(changes: dict[str, object]) -> None:
    execution = assigned()
    assert judge(execution, WANTED, report_of(module=module_of(**changes)), NOW) == execution


@pytest.mark.parametrize(
    ("state", "expected"), [("failed", ExecutionState.FAILED), ("rejected", ExecutionState.REJECTED)]
)
def test_an_update_that_ended_badly_ends_the_execution_with_its_reason(
    state: UpdateState, expected: ExecutionState
) -> None:
    last = UpdateReport(state, 5, ("r1",), reason_key="golden-mismatch", reason="case 3 differs")
    after = judge(assigned(), WANTED, report_of(last=last), NOW)
    assert (after.state, after.reason_key, after.reason) == (expected, "golden-mismatch", "case 3 differs")


def test_a_failure_after_the_new_module_served_is_a_reversal() -> None:
    probation = judge(assigned(), WANTED, report_of(current=UpdateReport("probation", 5, ("r1",))), NOW)
    assert (probation.state, probation.reason_key) == (ExecutionState.UPDATING, "probation")
    after = judge(probation, WANTED, report_of(last=UpdateReport("failed", 5, ("r1",))), NOW)
    assert after.state is ExecutionState.REVERTED


@pytest.mark.parametrize(
    "last", [UpdateReport("failed", 4, ("r1",)), UpdateReport("failed", 5, ("r0",)), UpdateReport("committed", 5)]
)
def test_the_failure_of_another_update_is_not_ours(last: UpdateReport) -> None:
    execution = assigned()
    assert judge(execution, WANTED, report_of(last=last), NOW) == execution


# --- what follows ---------------------------------------------------------------------------------------------


def running(plan: Plan, index: int = 0) -> Rollout:
    return Rollout("r1", "digits", 2, "all", plan, RolloutState.RUNNING, NOW, group_index=index, started_at=NOW)


V, W, A, F = ExecutionState.VERIFIED, ExecutionState.WAITING, ExecutionState.ASSIGNED, ExecutionState.FAILED
S, R, C = ExecutionState.SILENT, ExecutionState.REJECTED, ExecutionState.CANCELLED


def counts(*states: tuple[int, ExecutionState]) -> StateCounts:
    return counted([Execution(f"cam-{number:03}", group, state) for number, (group, state) in enumerate(states)])


@pytest.mark.parametrize(
    ("plan", "standing", "expected"),
    [
        (Plan(), counts((0, V), (1, W)), OpenGroup(1)),
        (Plan(), counts((0, A), (1, W)), None),
        (Plan(), counts((0, W), (0, W), (1, W)), Assign(2)),
        (Plan(rate=Rate(60)), counts((0, W), (0, W), (1, W)), Assign(1)),
        (Plan(success_threshold=50), counts((0, V), (0, A), (1, W)), OpenGroup(1)),
        (Plan(), counts((0, V)), Finish()),
        (Plan(joining=True), counts((0, V)), None),
        (Plan(success_threshold=50), counts((0, V), (0, A)), None),
        (Plan(error_threshold=50, success_threshold=50), counts((0, V), (0, F)), Finish()),
        (Plan(error_threshold=50, min_count=3), counts((0, F), (0, A)), None),
        (Plan(approval=Approval(stages=("group:2",))), counts((0, V), (1, W)), None),
        (Plan(soak_s=60), counts((0, V), (1, W)), WaitAtGate(0)),
        (Plan(soak_s=60), counts((0, V)), WaitAtGate(0)),
        (Plan(gate=CompareGate()), counts((0, V)), Finish()),
    ],
)
def test_the_next_action_follows_from_counts(plan: Plan, standing: StateCounts, expected: Action | None) -> None:
    assert decide(running(plan), standing, NOW) == expected


def test_a_soak_holds_the_next_group_for_its_time() -> None:
    rollout = msgspec.structs.replace(running(Plan(soak_s=60)), gate=GateState(0, NOW))
    standing = counts((0, V), (1, W))
    assert decide(rollout, standing, NOW + 59) is None
    assert due_at(rollout, standing, NOW) == NOW + 60
    assert decide(rollout, standing, NOW + 60) == OpenGroup(1)


def test_one_failure_stops_a_rollout_that_allows_none() -> None:
    stop = decide(running(Plan()), counts((0, A), (0, F), (1, W)), NOW)
    assert isinstance(stop, Stop)
    assert stop.key == "error-threshold"
    assert "1 of the 1 devices that ended did not succeed (1 failed)" in stop.reason


@pytest.mark.parametrize(("on_failure", "kind"), [("stop", Stop), ("pause", Pause), ("roll_back", RollBack)])
def test_what_a_failure_leads_to_is_the_plans_choice(on_failure: OnFailure, kind: type) -> None:
    assert isinstance(decide(running(Plan(on_failure=on_failure)), counts((0, F)), NOW), kind)


def test_each_class_of_failures_has_a_threshold_of_its_own() -> None:
    thresholds = (FailureThreshold("silent", 50), FailureThreshold("failed", 10, min_count=4))
    plan = Plan(success_threshold=0, error_threshold=100, thresholds=thresholds)
    assert isinstance(decide(running(plan), counts((0, V), (0, S), (0, F), (1, W)), NOW), OpenGroup)
    stop = decide(running(plan), counts((0, V), (0, V), (0, S), (0, F), (1, W)), NOW)
    assert isinstance(stop, Stop)
    assert "1 of the 4 devices that ended did not succeed (1 failed); at most 10 % is allowed" in stop.reason


def test_who_resumes_lets_pass_what_was_there_and_nothing_that_comes_after() -> None:
    plan = Plan(on_failure="pause", success_threshold=50)
    standing = counts((0, V), (0, V), (0, F), (1, W))
    assert isinstance(decide(running(plan), standing, NOW), Pause)
    resumed = pardon(running(plan), standing, "ann")
    assert decide(resumed, standing, NOW) == OpenGroup(1)
    standing[0][F] += 1
    assert isinstance(decide(resumed, standing, NOW), Pause)


def test_a_group_that_cannot_reach_its_threshold_any_more_stops_the_rollout() -> None:
    plan = Plan(error_threshold=100)
    standing = counts((0, V), (0, F), (1, W))
    stop = decide(running(plan), standing, NOW)
    assert isinstance(stop, Stop)
    assert "group 1: 50 % of its devices verified, 100 % were needed" in stop.reason
    assert decide(pardon(running(plan), standing, "ann"), standing, NOW) == OpenGroup(1)


def test_a_paused_rollout_opens_nothing_but_its_deadline_holds() -> None:
    paused = msgspec.structs.replace(running(Plan(deadline_s=100)), state=RolloutState.PAUSED)
    assert decide(paused, counts((0, V), (1, W)), NOW) is None
    assert decide(paused, counts((0, V), (1, W)), NOW + 100) == Stop("deadline", "not finished within 100 s")


def test_at_its_deadline_a_rollout_that_devices_join_is_finished_unless_somebody_is_at_work() -> None:
    rollout = running(Plan(deadline_s=100, joining=True))
    assert decide(rollout, counts((0, V), (0, C)), NOW + 100) == Finish()
    assert decide(rollout, counts((0, V), (0, A)), NOW + 100) == Stop("deadline", "not finished within 100 s")


def test_a_rollout_that_has_ended_clears_up_and_one_that_rolls_back_goes_on_until_nobody_has_it() -> None:
    failed = msgspec.structs.replace(running(Plan()), state=RolloutState.FAILED)
    assert decide(failed, counts((0, V), (0, A)), NOW) == Cancel()
    assert decide(failed, counts((0, V), (0, C)), NOW) is None
    back = msgspec.structs.replace(failed, state=RolloutState.ROLLING_BACK)
    assert decide(back, counts((0, V), (1, W)), NOW) == Cancel()
    assert decide(back, counts((0, V), (1, C)), NOW) == SignAgain()
    assert decide(msgspec.structs.replace(back, signed_again=True), counts((0, V)), NOW) == Return()
    assert decide(back, counts((0, ExecutionState.RETURNING)), NOW) is None
    assert decide(back, counts((0, ExecutionState.RETURNED), (0, ExecutionState.STUCK)), NOW) == RolledBack()


@pytest.mark.parametrize("total", [10, 1_000_000])
def test_deciding_looks_at_counts_whatever_the_size_of_the_fleet(total: int) -> None:
    standing: StateCounts = {0: Counter({V: total}), 1: Counter({W: total})}
    assert decide(running(Plan()), standing, NOW) == OpenGroup(1)


# --- the rate -------------------------------------------------------------------------------------------------


def test_the_rate_grows_with_every_so_many_that_are_verified_up_to_its_bound() -> None:
    rate = Rate(50, factor=2, after=1000, max_per_minute=300)
    assert [rate.speed(verified) for verified in (0, 999, 1000, 2000, 3000, 10**9)] == [50, 50, 100, 200, 300, 300]


@given(st.floats(0.1, 10_000), st.lists(st.tuples(st.floats(0, 30), st.integers(0, 1000)), max_size=50))
def test_in_no_time_do_more_begin_than_the_rate_allows(per_minute: float, moments: list[tuple[float, int]]) -> None:
    rate = Rate(per_minute)
    left, now, begun = allowance(rate, None, 0, NOW), NOW, 0
    for pause, wanted in moments:
        now += pause
        left = allowance(rate, left, 0, now)
        count = min(wanted, int(left.devices))
        begun, left = begun + count, left.spent(count)
    assert begun <= 1 + per_minute / 60 * (now - NOW) + max(1, per_minute / 60 * 5)


@given(st.floats(0.1, 10_000), st.integers(0, 10_000))
def test_the_next_device_may_begin_when_the_rate_says(per_minute: float, verified: int) -> None:
    rate = Rate(per_minute, factor=1.5, after=100, max_per_minute=20_000)
    left = allowance(rate, None, verified, NOW).spent(1)
    then = next_at(rate, left, verified)
    assert allowance(rate, left, verified, then + 1e-3).devices >= 1
    assert allowance(rate, left, verified, NOW + 0.9 * (then - NOW)).devices < 1


@pytest.mark.parametrize("changes", [{"per_minute": 0}, {"factor": 0.5}, {"after": 0}, {"max_per_minute": 1}])
def test_a_rate_that_makes_no_sense_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="rate"):
        Rate(**{"per_minute": 10.0, **changes})  # type: ignore[arg-type]
