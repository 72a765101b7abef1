"""What a rollout waits for, in words: people, its gate, windows, its rate. Pure; part of how it is shown.

Nothing follows from this: what happens is `decide`'s, and this says the same to people.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import msgspec

from cloud_hub.rollouts.approval import START, missing
from cloud_hub.rollouts.decide import Counts, totals, waiting, waits_for_approval
from cloud_hub.rollouts.states import DONE, IN_PROGRESS, NOT_STARTED, ExecutionState, Rollout, RolloutState


class Wait(msgspec.Struct, frozen=True):
    """One thing that it waits for; `until` (epoch seconds) where it is known when that ends."""

    kind: Literal["person", "approval", "soak", "gate", "window", "rate", "joining"]
    text: str
    until: float | None = None


def waits(rollout: Rollout, counts: Counts, ready_at: float | None, now: float) -> tuple[Wait, ...]:
    """`ready_at` is when the next device of those that wait may begin; None where none has to wait for its time."""
    if rollout.state is RolloutState.DRAFT:
        return (*_approval(missing(rollout.plan.approval, rollout.approvals, START)), _person("to start it"))
    if rollout.state is RolloutState.PAUSED:
        return (_person("to resume, abort or roll it back"),)
    if rollout.state is not RolloutState.RUNNING:
        return ()
    found = [*_before_the_next_group(rollout, counts, now), *_in_open_groups(rollout, counts, ready_at, now)]
    if not found and rollout.plan.joining and all(state in DONE for state in +totals(counts)):
        found.append(Wait("joining", "waits for more devices to join, until somebody finishes it"))
    return tuple(found)


def _before_the_next_group(rollout: Rollout, counts: Counts, now: float) -> list[Wait]:
    if rollout.group_index == NOT_STARTED:
        return _approval(waits_for_approval(rollout))
    group = counts.get(rollout.group_index, {})
    share = 100 * group.get(ExecutionState.VERIFIED, 0) / max(1, sum(group.values()))
    if share < rollout.plan.success_threshold:
        return []
    found, gate = [], rollout.gate
    if gate is not None and gate.group == rollout.group_index:
        soaks_until = gate.since + rollout.plan.soak_s
        if now < soaks_until:
            text = f"group {gate.group + 1} soaks until {_utc(soaks_until)}"
            found.append(Wait("soak", text, soaks_until))
        if gate.word == "undecided" and rollout.plan.gate is not None:
            deadline = gate.since + max(rollout.plan.gate.deadline_s, rollout.plan.soak_s)
            text = f"the comparison behind group {gate.group + 1} is undecided ({gate.reason})"
            found.append(Wait("gate", text, deadline))
        elif gate.word == "waiting" and now >= soaks_until and rollout.plan.gated:
            found.append(Wait("gate", f"the gate behind group {gate.group + 1} has not spoken yet"))
    if rollout.group_index < max(counts, default=NOT_STARTED):
        found += _approval(waits_for_approval(rollout))
    return found


def _in_open_groups(rollout: Rollout, counts: Counts, ready_at: float | None, now: float) -> list[Wait]:
    """Devices that have not begun: because of the clock, or because of the rate."""
    left = waiting(rollout, counts)
    busy = any(totals(counts)[state] for state in IN_PROGRESS)
    if not left:
        return []
    if ready_at is not None and ready_at > now and not busy:
        why = "their maintenance window" if rollout.plan.windows else "another attempt"
        return [Wait("window", f"{_devices(left)} for {why}, the first from {_utc(ready_at)} on", ready_at)]
    rate = rollout.plan.rate
    if rate is None:
        return []
    speed = rate.speed(totals(counts)[ExecutionState.VERIFIED])
    return [Wait("rate", f"{_devices(left)} for their turn, at {speed:g} a minute")]


def _approval(text: str) -> list[Wait]:
    return [Wait("approval", text)] if text else []


def _person(what: str) -> Wait:
    return Wait("person", f"waits for somebody {what}")


def _devices(count: int) -> str:
    return f"{count} device{'s wait' if count > 1 else ' waits'}"


def _utc(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
