"""The plan, its decisions and the judgement of reports: pure, so time and fate are arguments."""

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_hub.rollouts.judge import Wanted, judge
from cloud_hub.rollouts.plan import (
    DONE,
    ENDED,
    FAILURES,
    IN_PROGRESS,
    Action,
    Execution,
    ExecutionState,
    Finish,
    Group,
    Plan,
    Rollout,
    RolloutState,
    StartGroup,
    Stop,
    apply,
    decide,
    split,
)
from firmware_profiles.profile import DeviceProfile
from modules.messages import DeviceReport, ModuleReport, UpdateReport, UpdateState

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


def parts(*states: tuple[int, ExecutionState]) -> list[Execution]:
    return [
        Execution(f"cam-{number:03}", group, state, 5, deadline_at=NOW + 60 if state in IN_PROGRESS else None)
        for number, (group, state) in enumerate(states)
    ]


V, W, A, F = ExecutionState.VERIFIED, ExecutionState.WAITING, ExecutionState.ASSIGNED, ExecutionState.FAILED


@pytest.mark.parametrize(
    ("plan", "standing", "expected"),
    [
        (Plan(), parts((0, V), (1, W)), [StartGroup(1)]),
        (Plan(), parts((0, A), (1, W)), []),
        (Plan(success_threshold=50), parts((0, V), (0, A), (1, W)), [StartGroup(1)]),
        (Plan(), parts((0, V)), [Finish()]),
        (Plan(success_threshold=50), parts((0, V), (0, A)), []),
        (Plan(error_threshold=50, success_threshold=50), parts((0, V), (0, F)), [Finish()]),
        (Plan(error_threshold=50, min_count=3), parts((0, F), (0, A)), []),
    ],
)
def test_the_next_action_follows_from_thresholds(plan: Plan, standing: list[Execution], expected: list[Action]) -> None:
    assert decide(running(plan), standing, NOW) == expected


def test_one_failure_stops_a_rollout_that_allows_none() -> None:
    [stop] = decide(running(Plan()), parts((0, A), (0, F), (1, W)), NOW)
    assert isinstance(stop, Stop)
    assert stop.key == "error-threshold"
    assert "1 of the 1 devices that ended did not succeed (1 failed)" in stop.reason


def test_a_group_that_cannot_reach_its_threshold_any_more_stops_the_rollout() -> None:
    [stop] = decide(running(Plan(error_threshold=100)), parts((0, V), (0, F), (1, W)), NOW)
    assert isinstance(stop, Stop)
    assert "group 1: 50 % of its devices verified, 100 % were needed" in stop.reason


def test_a_paused_rollout_opens_nothing_but_its_deadline_holds() -> None:
    paused = msgspec.structs.replace(running(Plan(deadline_s=100)), state=RolloutState.PAUSED)
    assert decide(paused, parts((0, V), (1, W)), NOW) == []
    assert decide(paused, parts((0, V), (1, W)), NOW + 100) == [Stop("deadline", "not finished within 100 s")]


# --- any sequence of reports, silence, duplicates, pauses -------------------------------------------------------

plans = st.builds(
    Plan,
    groups=st.lists(st.sampled_from(["1", "2", "30%", "rest"]), min_size=1, max_size=4).map(
        lambda texts: tuple(map(Group.parse, texts))
    ),
    success_threshold=st.sampled_from([0.0, 50.0, 80.0, 100.0]),
    error_threshold=st.sampled_from([0.0, 25.0, 100.0]),
    min_count=st.integers(1, 4),
    device_deadline_s=st.just(50.0),
    deadline_s=st.sampled_from([120.0, 1000.0]),
)
FATES = ("verified", "unverified", "updating", "probation", "failed", "rejected", "stale", "silence", "pause", "resume")
steps = st.lists(st.tuples(st.integers(0, 6), st.sampled_from(FATES)), max_size=40)


def fate_report(device: str, fate: str) -> DeviceReport:
    match fate:
        case "verified":
            return report_of(device, module=module_of())
        case "unverified":
            return report_of(device, module=module_of(verified=False))
        case "updating":
            return report_of(device, current=UpdateReport("fetching", 5, ("r1",)))
        case "probation":
            return report_of(device, current=UpdateReport("probation", 5, ("r1",)))
        case "failed":
            return report_of(device, last=UpdateReport("failed", 5, ("r1",)))
        case "rejected":
            return report_of(device, last=UpdateReport("rejected", 5))
        case _:
            return report_of(device, module=module_of(deployment="r0", version=1))


class Simulation:
    """A rollout whose actions are carried out at once, watched for contradictions."""

    def __init__(self, plan: Plan, count: int) -> None:
        self.devices = [f"cam-{number:03}" for number in range(count)]
        groups = split(self.devices, plan)
        self.parts = [Execution(device, index) for index, group in enumerate(groups) for device in group]
        self.rollout = running(plan, index=-1)
        self.now = NOW
        self.settle()

    def settle(self) -> None:
        for _ in range(100):
            actions = decide(self.rollout, self.parts, self.now)
            if not actions:
                return
            for action in actions:
                self.carry_out(action)
        raise AssertionError("decisions never come to rest")

    def carry_out(self, action: Action) -> None:
        begun: dict[str, Execution] = {}
        if isinstance(action, StartGroup):
            self.check_may_open(action.index)
            members = [part for part in self.parts if part.group_index == action.index]
            assert all(part.state is ExecutionState.WAITING for part in members)
            begun = {part.device: part.begun(5, self.now, self.rollout.plan) for part in members}
        self.become(*apply(self.rollout, self.parts, action, self.now, begun))

    def check_may_open(self, index: int) -> None:
        assert index == self.rollout.group_index + 1
        before = [part for part in self.parts if part.group_index == index - 1]
        if before:
            verified = sum(part.state is ExecutionState.VERIFIED for part in before)
            assert 100 * verified / len(before) >= self.rollout.plan.success_threshold

    def become(self, rollout: Rollout, parts: Sequence[Execution]) -> None:
        assert self.rollout.state not in ENDED, "an ended rollout changed"
        for old, new in zip(self.parts, parts, strict=True):
            assert old.state not in DONE or old == new, "an ended execution changed"
        self.rollout, self.parts = rollout, list(parts)

    def report(self, device: str, fate: str) -> None:
        judged = [
            judge(p, WANTED, fate_report(p.device, fate), self.now) if p.device == device else p for p in self.parts
        ]
        if judged != self.parts:
            self.become(self.rollout, judged)
        self.settle()

    def turn(self, fate: str) -> None:
        wanted = RolloutState.PAUSED if fate == "pause" else RolloutState.RUNNING
        if self.rollout.state not in ENDED:
            self.rollout = msgspec.structs.replace(self.rollout, state=wanted)
        self.settle()


@settings(max_examples=300)
@given(plans, st.integers(1, 7), steps)
def test_any_history_ends_opens_groups_in_order_and_never_contradicts_itself(
    plan: Plan, count: int, history: list[tuple[int, str]]
) -> None:
    simulation = Simulation(plan, count)
    for number, fate in history:
        simulation.now += 3
        if fate in ("pause", "resume"):
            simulation.turn(fate)
        elif fate == "silence":
            simulation.now += 20
            simulation.settle()
        else:
            simulation.report(simulation.devices[number % count], fate)
            simulation.report(simulation.devices[number % count], fate)
    ends_at = NOW + plan.deadline_s
    while simulation.now < ends_at:
        simulation.now += plan.device_deadline_s
        simulation.settle()
    assert simulation.rollout.state in ENDED
    assert all(part.state in DONE for part in simulation.parts)
    if simulation.rollout.state is RolloutState.FINISHED:
        failed = sum(part.state in FAILURES for part in simulation.parts)
        assert failed < plan.min_count or 100 * failed <= plan.error_threshold * count
        assert not any(part.state is ExecutionState.CANCELLED for part in simulation.parts)
