"""The plan of a rollout and what follows from where it stands. Pure: time is an argument, nothing is stored here.

A rollout is an ordered list of groups. A group opens when the one before has its success threshold of devices verified
healthy after probation; failures above the error threshold stop the rollout; every execution and the rollout itself
has a deadline, so that silence ends as well. `judge` says how a device's report changes its execution, `controller`
carries the actions out. Sources: hawkBit rollout groups (success opens the next), AWS IoT Jobs abort criteria (share
of the executions that ended, after a minimum).
"""

from __future__ import annotations

import enum
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from cloud_hub.rollouts.gate import CompareGate, GateState
from modules.manifest import SamplingPolicy

MAX_GROUPS = 100
NOT_ELIGIBLE = -1  # group_index of a device that is listed and takes no part
NOT_STARTED = -1  # group_index of a rollout before its first group is open


class RolloutState(enum.StrEnum):
    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    ABORTED = "aborted"
    FAILED = "failed"


class ExecutionState(enum.StrEnum):
    WAITING = "waiting"  # its group is not open yet
    ASSIGNED = "assigned"  # the director names the module; the device has not said anything yet
    UPDATING = "updating"  # the device works on it; `reason_key` is its step
    VERIFIED = "verified"  # runs, and has come through probation
    FAILED = "failed"
    REVERTED = "reverted"  # it ran, was not healthy, and the device went back
    REJECTED = "rejected"  # does not fit the device; never retried
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


ENDED = frozenset({RolloutState.FINISHED, RolloutState.ABORTED, RolloutState.FAILED})
IN_PROGRESS = frozenset({ExecutionState.ASSIGNED, ExecutionState.UPDATING})
FAILURES = frozenset(
    {ExecutionState.FAILED, ExecutionState.REVERTED, ExecutionState.REJECTED, ExecutionState.TIMED_OUT}
)
UNDONE = FAILURES | {ExecutionState.CANCELLED}  # what was assigned is put back
DONE = UNDONE | {ExecutionState.VERIFIED}


class Group(msgspec.Struct, frozen=True):
    """How many devices a group takes: a number, a percentage of all, or the rest (both null)."""

    count: int | None = None
    percent: float | None = None

    def __post_init__(self) -> None:
        if self.count is not None and (self.percent is not None or self.count < 1):
            raise ValueError(f"group: expected a count of at least 1 or a percentage, got {self.count}")
        if self.percent is not None and not 0 < self.percent <= 100:
            raise ValueError(f"group: expected more than 0 and at most 100 percent, got {self.percent}")

    def __str__(self) -> str:
        if self.percent is not None:
            return f"{self.percent:g}%"
        return "rest" if self.count is None else str(self.count)

    @classmethod
    def parse(cls, text: str) -> Group:
        """`5`, `20%` or `rest`. Raises ValueError on anything else."""
        words = text.strip()
        if words == "rest":
            return cls()
        match = re.fullmatch(r"([0-9]{1,7}(?:\.[0-9]{1,4})?)(%?)", words)
        if match is None or ("." in match[1] and not match[2]):
            raise ValueError(f"group: expected a number such as 5, a share such as 20%, or rest, got {text[:40]!r}")
        return cls(percent=float(match[1])) if match[2] else cls(count=int(match[1]))

    def size(self, total: int) -> int:
        """Devices of `total` that this group takes; a percentage is rounded up, so that it never takes nobody."""
        if self.percent is not None:
            return math.ceil(total * self.percent / 100)
        return total if self.count is None else self.count


class Plan(msgspec.Struct, frozen=True):
    """Who comes when, and what must hold. Thresholds are percentages, deadlines seconds.

    `success_threshold` of a group's devices must be verified to open the next group. The rollout stops once at least
    `min_count` executions have ended and more than `error_threshold` of those that ended did not succeed. A device has
    `device_deadline_s` from its assignment, the rollout `deadline_s` from its start. `sampling` takes the place of the
    policy that counts on these devices; without it each keeps its own, if it has one. With a `gate` a group that has
    its threshold is compared with the version before, and the next one opens when it is no worse.
    """

    groups: tuple[Group, ...] = (Group(),)
    success_threshold: float = 100.0
    error_threshold: float = 0.0
    min_count: int = 1
    device_deadline_s: float = 3600.0
    deadline_s: float = 7 * 86_400.0
    sampling: SamplingPolicy | None = None
    gate: CompareGate | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.groups) <= MAX_GROUPS:
            raise ValueError(f"groups: expected 1 to {MAX_GROUPS}, got {len(self.groups)}")
        for name, share in (("success_threshold", self.success_threshold), ("error_threshold", self.error_threshold)):
            if not 0 <= share <= 100:
                raise ValueError(f"{name}: expected 0 to 100 percent, got {share}")
        if self.min_count < 1:
            raise ValueError(f"min_count: expected at least 1, got {self.min_count}")
        for name, seconds in (("device_deadline_s", self.device_deadline_s), ("deadline_s", self.deadline_s)):
            if not 0 < seconds <= 366 * 86_400:
                raise ValueError(f"{name}: expected more than 0 seconds and at most a year, got {seconds}")


class Rollout(msgspec.Struct, frozen=True):
    """One module version on its way to the devices of `target`. Its id is the deployment that devices report back."""

    id: str
    module: str
    version: int
    target: str
    plan: Plan
    state: RolloutState
    created_at: float
    reason: str = ""
    group_index: int = NOT_STARTED
    started_at: float | None = None
    finished_at: float | None = None
    gate: GateState | None = None


class Execution(msgspec.Struct, frozen=True):
    """One device's part of a rollout. `director_version` is the first that carries the assignment; 0 before."""

    device: str
    group_index: int
    state: ExecutionState = ExecutionState.WAITING
    director_version: int = 0
    reason_key: str = ""
    reason: str = ""
    started_at: float | None = None
    deadline_at: float | None = None
    finished_at: float | None = None

    def begun(self, director_version: int, now: float, plan: Plan) -> Execution:
        """Assigned now, with its deadline."""
        return msgspec.structs.replace(
            self,
            state=ExecutionState.ASSIGNED,
            director_version=director_version,
            started_at=now,
            deadline_at=now + plan.device_deadline_s,
        )

    def ended(self, state: ExecutionState, now: float, key: str = "", reason: str = "") -> Execution:
        return msgspec.structs.replace(self, state=state, reason_key=key, reason=reason, finished_at=now)


class StartGroup(msgspec.Struct, frozen=True):
    """Assign the module to the group's devices."""

    index: int


class WaitAtGate(msgspec.Struct, frozen=True):
    """The group has its threshold; whether the next one opens is to be found out."""

    group: int


class TimeOut(msgspec.Struct, frozen=True):
    """The device's deadline has passed without an outcome."""

    device: str


class Stop(msgspec.Struct, frozen=True):
    """The rollout has failed: nothing more is assigned, and what is under way is cancelled."""

    key: str
    reason: str


class Finish(msgspec.Struct, frozen=True):
    """Every execution has ended and every group has reached its threshold."""


Action = StartGroup | WaitAtGate | TimeOut | Stop | Finish


def split(devices: Sequence[str], plan: Plan) -> tuple[tuple[str, ...], ...]:
    """The devices, in their order, as the plan's groups; those left over are one more. No group is empty."""
    groups: list[tuple[str, ...]] = []
    left = list(devices)
    for group in (*plan.groups, Group()):
        size = group.size(len(devices))
        taken, left = left[:size], left[size:]
        if taken:
            groups.append(tuple(taken))
    return tuple(groups)


def decide(rollout: Rollout, executions: Sequence[Execution], now: float) -> list[Action]:
    """What must happen now. Carry it out and ask again, until nothing is left to do.

    A paused rollout starts nothing and neither stops nor finishes, but deadlines run on.
    """
    if rollout.state not in (RolloutState.RUNNING, RolloutState.PAUSED):
        return []
    taking_part = [execution for execution in executions if execution.group_index != NOT_ELIGIBLE]
    late = [TimeOut(e.device) for e in taking_part if e.state in IN_PROGRESS and _passed(e.deadline_at, now)]
    if late:
        return list(late)
    if rollout.started_at is not None and now >= rollout.started_at + rollout.plan.deadline_s:
        return [Stop("deadline", f"not finished within {rollout.plan.deadline_s:g} s")]
    if rollout.state is RolloutState.PAUSED:
        return []
    stop = _too_many_failures(rollout.plan, taking_part)
    return [stop] if stop else _next(rollout, taking_part, now)


def apply(
    rollout: Rollout, executions: Sequence[Execution], action: Action, now: float, begun: Mapping[str, Execution]
) -> tuple[Rollout, list[Execution]]:
    """Rollout and executions after the action; `begun` says what became of the devices of a group that starts."""
    if isinstance(action, StartGroup):
        return msgspec.structs.replace(rollout, group_index=action.index), [begun.get(e.device, e) for e in executions]
    if isinstance(action, WaitAtGate):
        return msgspec.structs.replace(rollout, gate=GateState(action.group, now)), list(executions)
    if isinstance(action, TimeOut):
        reason = f"no outcome within {rollout.plan.device_deadline_s:g} s"
        return rollout, [
            e.ended(ExecutionState.TIMED_OUT, now, "timed-out", reason) if e.device == action.device else e
            for e in executions
        ]
    if isinstance(action, Stop):
        return end(rollout, executions, RolloutState.FAILED, action.reason, now)
    return end(rollout, executions, RolloutState.FINISHED, "", now)


def end(
    rollout: Rollout, executions: Sequence[Execution], state: RolloutState, reason: str, now: float
) -> tuple[Rollout, list[Execution]]:
    """The rollout ends in `state`; executions that have not ended are cancelled with it."""
    why = f"the rollout is {state}" + (f": {reason}" if reason else "")
    ended = msgspec.structs.replace(rollout, state=state, reason=reason, finished_at=now)
    return ended, [
        e if e.state in DONE else e.ended(ExecutionState.CANCELLED, now, f"rollout-{state}", why) for e in executions
    ]


def _passed(deadline: float | None, now: float) -> bool:
    return deadline is not None and now >= deadline


def _too_many_failures(plan: Plan, executions: Sequence[Execution]) -> Stop | None:
    ended = [e for e in executions if e.state in FAILURES or e.state is ExecutionState.VERIFIED]
    failures = Counter(str(e.state) for e in ended if e.state in FAILURES)
    count = failures.total()
    if len(ended) < plan.min_count or 100 * count <= plan.error_threshold * len(ended):
        return None
    kinds = ", ".join(f"{number} {state}" for state, number in sorted(failures.items()))
    return Stop(
        "error-threshold",
        f"{count} of the {len(ended)} devices that ended did not succeed ({kinds}); "
        f"at most {plan.error_threshold:g} % is allowed",
    )


def _next(rollout: Rollout, executions: Sequence[Execution], now: float) -> list[Action]:
    """Opens the next group, finishes, stops a group that cannot succeed any more, or waits."""
    last = max((e.group_index for e in executions), default=NOT_STARTED)
    if rollout.group_index == NOT_STARTED:
        return [StartGroup(0)] if last >= 0 else [Finish()]
    group = [e for e in executions if e.group_index == rollout.group_index]
    share = 100 * sum(e.state is ExecutionState.VERIFIED for e in group) / max(1, len(group))
    if share >= rollout.plan.success_threshold:
        if rollout.group_index < last:
            return _through_gate(rollout, now)
        return [Finish()] if all(e.state in DONE for e in executions) else []
    if not all(e.state in DONE for e in group):
        return []
    wanted = rollout.plan.success_threshold
    text = f"group {rollout.group_index + 1}: {share:.4g} % of its devices verified, {wanted:g} % were needed"
    return [Stop("success-threshold", text)]


def _through_gate(rollout: Rollout, now: float) -> list[Action]:
    """Opens the next group, stops, or waits for the gate's word, which may come at any time and is taken once."""
    gate, state, following = rollout.plan.gate, rollout.gate, [StartGroup(rollout.group_index + 1)]
    if gate is None:
        return list(following)
    if state is None or state.group != rollout.group_index:
        return [WaitAtGate(rollout.group_index)]
    where = f"gate after group {rollout.group_index + 1}"
    if state.word == "worse":
        return [Stop("gate-worse", f"{where}: {state.reason}")]
    if state.word == "fine" or (gate.undecided == "open" and now >= state.since + gate.deadline_s):
        return list(following)
    if now >= state.since + gate.deadline_s:
        return [Stop("gate-undecided", f"{where}: no answer within {gate.deadline_s:g} s; {state.reason or 'no data'}")]
    return []
