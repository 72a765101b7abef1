"""What follows from where a rollout stands. Pure: time is an argument, and counts stand for the executions.

Deciding costs the same for ten devices and for a million: `Counts` are executions by group and state. `turn` carries
the actions out in slices and asks again, until nothing is left to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

import msgspec

from cloud_hub.rollouts.approval import START, before_group, missing
from cloud_hub.rollouts.gate import GateState
from cloud_hub.rollouts.plan import Plan
from cloud_hub.rollouts.rate import allowance, next_at
from cloud_hub.rollouts.states import (
    DONE,
    ENDED,
    FAILURES,
    IN_PROGRESS,
    NOT_STARTED,
    ExecutionState,
    Rollout,
    RolloutState,
)

Counts = Mapping[int, Mapping[ExecutionState, int]]  # by group; devices that are not eligible are left out

_ENDED_ON_THEIR_OWN: Final = FAILURES | {ExecutionState.VERIFIED}


class OpenGroup(msgspec.Struct, frozen=True):
    """The group's devices may be assigned the module from now on."""

    index: int


class Assign(msgspec.Struct, frozen=True):
    """Assign the module to at most so many devices of the open groups, of those whose time has come."""

    limit: int


class WaitAtGate(msgspec.Struct, frozen=True):
    """The group has its threshold; whether the next one opens is to be found out."""

    group: int


class Pause(msgspec.Struct, frozen=True):
    """A threshold is passed, and a person shall look at it."""

    reason: str


class Stop(msgspec.Struct, frozen=True):
    """The rollout has failed: nothing more is assigned, and what is under way is cancelled."""

    key: str
    reason: str


class RollBack(msgspec.Struct, frozen=True):
    """The rollout has failed, and those that were verified go back as well."""

    reason: str


class Cancel(msgspec.Struct, frozen=True):
    """End what has not ended, now that the rollout has: those that wait, and a slice of those in progress."""


class SignAgain(msgspec.Struct, frozen=True):
    """Have what devices go back to signed again, because they refuse a lower release counter."""


class Return(msgspec.Struct, frozen=True):
    """Direct a slice of the verified devices to what they had before."""


class Finish(msgspec.Struct, frozen=True):
    """Every execution has ended and every group has reached its threshold."""


class RolledBack(msgspec.Struct, frozen=True):
    """Every device is back, or is known not to be."""


Action = OpenGroup | Assign | WaitAtGate | Pause | Stop | RollBack | Cancel | SignAgain | Return | Finish | RolledBack


def decide(rollout: Rollout, counts: Counts, now: float) -> Action | None:
    """The next thing to do now, or None. Executions past their deadline have been ended before.

    A paused rollout starts nothing and neither stops nor finishes, but deadlines run on.
    """
    total = totals(counts)
    if rollout.state in ENDED or rollout.state is RolloutState.ROLLING_BACK:
        return _clear_up(rollout, total)
    if rollout.state not in (RolloutState.RUNNING, RolloutState.PAUSED):
        return None
    if rollout.started_at is not None and now >= rollout.started_at + rollout.plan.deadline_s:
        return _at_deadline(rollout, total)
    if rollout.state is RolloutState.PAUSED:
        return None
    return _too_many_failures(rollout, total) or _next(rollout, counts, total, now) or _assign(rollout, counts, now)


def due_at(rollout: Rollout, counts: Counts, now: float) -> float | None:
    """When `decide` may say something new because of the time alone, deadlines and windows of executions left out."""
    if rollout.state not in (RolloutState.RUNNING, RolloutState.PAUSED):
        return None
    moments = [] if rollout.started_at is None else [rollout.started_at + rollout.plan.deadline_s]
    plan, state, rate = rollout.plan, rollout.gate, rollout.plan.rate
    if state is not None and state.group == rollout.group_index:
        # Once it has passed, the word of the gate is what it waits for.
        ends = (state.since + plan.soak_s, _gate_deadline(plan, state))
        moments += [moment for moment in ends if moment is not None and moment > now]
    if rollout.state is RolloutState.RUNNING and rate and rollout.allowance and waiting(rollout, counts):
        moments.append(next_at(rate, rollout.allowance, totals(counts)[ExecutionState.VERIFIED]))
    return min(moments, default=None)


def totals(counts: Counts) -> Counter[ExecutionState]:
    """Executions by state, of all groups."""
    total: Counter[ExecutionState] = Counter()
    for states in counts.values():
        total.update(states)
    return total


def waiting(rollout: Rollout, counts: Counts) -> int:
    """Executions of the open groups that have not begun."""
    return sum(
        states.get(ExecutionState.WAITING, 0) for group, states in counts.items() if group <= rollout.group_index
    )


def waits_for_approval(rollout: Rollout) -> str:
    """What the next group waits for, as people read it; empty when nothing is missing."""
    following = rollout.group_index + 1
    stages = [before_group(following)] if rollout.group_index != NOT_STARTED else [START, before_group(0)]
    return "; ".join(filter(None, (missing(rollout.plan.approval, rollout.approvals, stage) for stage in stages)))


def _clear_up(rollout: Rollout, total: Counter[ExecutionState]) -> Action | None:
    if total[ExecutionState.WAITING] or _in_progress(total):
        return Cancel()
    if rollout.state is not RolloutState.ROLLING_BACK:
        return None
    if total[ExecutionState.VERIFIED]:
        return Return() if rollout.signed_again else SignAgain()
    return None if total[ExecutionState.RETURNING] else RolledBack()


def _at_deadline(rollout: Rollout, total: Counter[ExecutionState]) -> Action:
    """Those that joined late have time up to here. Nobody is taken back because somebody else was too slow."""
    failed = _too_many_failures(rollout, total)
    if failed is not None:
        return Stop("error-threshold", failed.reason)
    if rollout.plan.joining and rollout.group_index != NOT_STARTED and all(state in DONE for state in +total):
        return Finish()
    return Stop("deadline", f"not finished within {rollout.plan.deadline_s:g} s")


def _too_many_failures(rollout: Rollout, total: Counter[ExecutionState]) -> Pause | Stop | RollBack | None:
    ended = sum(total[state] for state in _ENDED_ON_THEIR_OWN)
    failures = {state: total[state] for state in FAILURES if total[state]}
    for threshold in rollout.plan.every_threshold:
        states = [state for state in failures if threshold.kind in ("any", state)]
        count, seen = sum(failures[s] for s in states), sum(rollout.pardoned.get(s, 0) for s in states)
        if count > seen and threshold.passed(count, ended):
            kinds = ", ".join(f"{failures[state]} {state}" for state in sorted(states))
            reason = (
                f"{count} of the {ended} devices that ended did not succeed ({kinds}); "
                f"at most {threshold.percent:g} % is allowed"
            )
            return _failed(rollout.plan, "error-threshold", reason)
    return None


def _failed(plan: Plan, key: str, reason: str) -> Pause | Stop | RollBack:
    if plan.on_failure == "pause":
        return Pause(reason)
    return RollBack(reason) if plan.on_failure == "roll_back" else Stop(key, reason)


def _next(rollout: Rollout, counts: Counts, total: Counter[ExecutionState], now: float) -> Action | None:
    """Opens the next group, finishes, stops a group that cannot succeed any more, or waits."""
    last = max(counts, default=NOT_STARTED)
    if rollout.group_index == NOT_STARTED:
        if last < 0:
            return None if rollout.plan.joining else Finish()
        return None if waits_for_approval(rollout) else OpenGroup(0)
    group = counts.get(rollout.group_index, {})
    share = 100 * group.get(ExecutionState.VERIFIED, 0) / max(1, sum(group.values()))
    group_done = _group_done(group)
    pardoned = group_done and rollout.pardoned_group >= rollout.group_index
    if share >= rollout.plan.success_threshold or pardoned:
        if rollout.group_index < last:
            action = _through_gate(rollout, now, OpenGroup(rollout.group_index + 1))
            return None if isinstance(action, OpenGroup) and waits_for_approval(rollout) else action
        finished = not rollout.plan.joining and all(state in DONE for state in +total)
        return _through_gate(rollout, now, Finish()) if finished else None
    if not group_done:
        return None
    wanted = rollout.plan.success_threshold
    text = f"group {rollout.group_index + 1}: {share:.4g} % of its devices verified, {wanted:g} % were needed"
    return _failed(rollout.plan, "success-threshold", text)


def _through_gate(rollout: Rollout, now: float, following: OpenGroup | Finish) -> Action | None:
    """Goes on, stops, or waits for the soak and the gate's word, which may come at any time and is taken once."""
    plan, state = rollout.plan, rollout.gate
    if not _gated(plan, isinstance(following, Finish)):
        return following
    if state is None or state.group != rollout.group_index:
        return WaitAtGate(rollout.group_index)
    where = f"gate after group {rollout.group_index + 1}"
    if state.word == "worse":
        return _failed(plan, "gate-worse", f"{where}: {state.reason}")
    if now < state.since + plan.soak_s:
        return None
    if state.word == "fine" or not plan.gated:
        return following
    deadline = _gate_deadline(plan, state)
    if plan.gate is None or deadline is None or now < deadline:
        return None
    if plan.gate.undecided == "open":
        return following
    text = f"{where}: no answer within {plan.gate.deadline_s:g} s; {state.reason or 'no data'}"
    return _failed(plan, "gate-undecided", text)


def _gated(plan: Plan, is_last: bool) -> bool:
    """What goes wrong in the last group shows too, but there is nobody left to compare it with."""
    looks = plan.alert_gate is not None or plan.soak_s > 0
    return looks or (plan.gate is not None and not is_last)


def _gate_deadline(plan: Plan, state: GateState) -> float | None:
    return None if plan.gate is None else state.since + max(plan.gate.deadline_s, plan.soak_s)


def _assign(rollout: Rollout, counts: Counts, now: float) -> Action | None:
    left = waiting(rollout, counts)
    rate = rollout.plan.rate
    if left and rate is not None:
        verified = sum(states.get(ExecutionState.VERIFIED, 0) for states in counts.values())
        left = min(left, int(allowance(rate, rollout.allowance, verified, now).devices))
    return Assign(left) if left else None


def _in_progress(total: Mapping[ExecutionState, int]) -> int:
    return sum(total.get(state, 0) for state in IN_PROGRESS)


def pardon(rollout: Rollout, counts: Counts, actor: str) -> Rollout:
    """What a person who resumes has seen and lets pass: failures so far, a group that fell short, a gate's word."""
    total, gate = totals(counts), rollout.gate
    if gate is not None and gate.group == rollout.group_index and gate.word in ("worse", "undecided"):
        gate = GateState(gate.group, gate.since, "fine", f"let pass by {actor}: {gate.reason}", gate.at)
    ended = _group_done(counts.get(rollout.group_index, {}))
    return msgspec.structs.replace(
        rollout,
        reason="",
        gate=gate,
        pardoned={str(state): total[state] for state in FAILURES if total[state]},
        pardoned_group=rollout.group_index if ended else rollout.pardoned_group,
    )


def _group_done(group: Mapping[ExecutionState, int]) -> bool:
    return all(state in DONE for state, count in group.items() if count)
