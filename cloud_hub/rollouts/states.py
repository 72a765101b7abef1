"""The states of a rollout and of its executions, and the values that are kept of both. Pure.

`plan` says what an operator wants, `decide` what follows, `judge` what a report says, `records` how these are rows.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from cloud_hub.rollouts.approval import Given
from cloud_hub.rollouts.gate import GateState
from cloud_hub.rollouts.plan import Plan
from cloud_hub.rollouts.rate import Allowance

NOT_ELIGIBLE = -1  # group_index of a device that is listed and takes no part
NOT_STARTED = -1  # group_index of a rollout before its first group is open


class RolloutState(enum.StrEnum):
    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    ROLLING_BACK = "rolling_back"  # every device that had taken the module gets back what it had
    FINISHED = "finished"
    ABORTED = "aborted"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"


class ExecutionState(enum.StrEnum):
    WAITING = "waiting"  # its group is not open yet, or it is not its turn
    ASSIGNED = "assigned"  # the director names the module; the device has not said anything yet
    UPDATING = "updating"  # the device works on it; `reason_key` is its step
    VERIFIED = "verified"  # runs, and has come through probation
    FAILED = "failed"
    REVERTED = "reverted"  # it ran, was not healthy, and the device went back
    REJECTED = "rejected"  # does not fit the device; never retried
    TIMED_OUT = "timed_out"  # the device spoke of it, and had no outcome in time
    SILENT = "silent"  # the device has said nothing about it in time
    CANCELLED = "cancelled"
    RETURNING = "returning"  # had been verified; the director names what it had before
    RETURNED = "returned"  # runs what it had before
    STUCK = "stuck"  # could not go back; it keeps the module


ENDED = frozenset({RolloutState.FINISHED, RolloutState.ABORTED, RolloutState.FAILED, RolloutState.ROLLED_BACK})
ACTIVE = frozenset({RolloutState.RUNNING, RolloutState.PAUSED, RolloutState.ROLLING_BACK})
IN_PROGRESS = frozenset({ExecutionState.ASSIGNED, ExecutionState.UPDATING})
BUSY = IN_PROGRESS | {ExecutionState.RETURNING}  # a report may change them, and they have a deadline
FAILURES = frozenset(
    {
        ExecutionState.FAILED, ExecutionState.REVERTED, ExecutionState.REJECTED, ExecutionState.TIMED_OUT,
        ExecutionState.SILENT,
    }
)  # fmt: skip
UNDONE = FAILURES | {ExecutionState.CANCELLED}  # what was assigned is put back
DONE = UNDONE | {ExecutionState.VERIFIED, ExecutionState.RETURNED, ExecutionState.STUCK}


class Rollout(msgspec.Struct, frozen=True):
    """One module version on its way to the devices of `target`. Its id is the deployment that devices report back.

    `config` is a revision of the module's configuration that comes with it, 0 for none; `version` 0 leaves each device
    the version that it has, so that only the configuration changes.
    `pardoned` are failures by state that a person has seen and let pass, `pardoned_group` the last group whose missing
    successes were. `signed_again`: what devices go back to has been signed again as far as this hub can.
    """

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
    creator: str = ""
    config: int = 0
    approvals: tuple[Given, ...] = ()
    allowance: Allowance | None = None
    pardoned: Mapping[str, int] = {}
    pardoned_group: int = NOT_STARTED
    signed_again: bool = False


class Execution(msgspec.Struct, frozen=True):
    """One device's part of a rollout. `director_version` is the first that carries the assignment; 0 before.

    It does not begin before `ready_at`, nor after `ready_until` (its maintenance window, or the pause before another
    attempt). `attempt` counts from 0. Times are seconds since the epoch.
    """

    device: str
    group_index: int
    state: ExecutionState = ExecutionState.WAITING
    director_version: int = 0
    reason_key: str = ""
    reason: str = ""
    started_at: float | None = None
    deadline_at: float | None = None
    finished_at: float | None = None
    attempt: int = 0
    ready_at: float = 0.0
    ready_until: float | None = None

    def begun(self, director_version: int, now: float, plan: Plan) -> Execution:
        """Assigned now, with its deadline."""
        return msgspec.structs.replace(
            self,
            state=ExecutionState.ASSIGNED,
            director_version=director_version,
            reason_key="",
            reason="",
            started_at=now,
            deadline_at=now + plan.device_deadline_s,
            finished_at=None,
        )

    def ended(self, state: ExecutionState, now: float, key: str = "", reason: str = "") -> Execution:
        return msgspec.structs.replace(self, state=state, reason_key=key, reason=reason, finished_at=now)

    def again(self, ready_at: float) -> Execution:
        """Waits for another attempt; the reason of the last one stays to be read."""
        return msgspec.structs.replace(
            self,
            state=ExecutionState.WAITING,
            attempt=self.attempt + 1,
            ready_at=ready_at,
            ready_until=None,
            deadline_at=None,
            finished_at=None,
        )

    def going_back(self, director_version: int, now: float, plan: Plan) -> Execution:
        """Directed to what it had before, with a deadline to be there."""
        return msgspec.structs.replace(
            self,
            state=ExecutionState.RETURNING,
            director_version=director_version,
            reason_key="",
            reason="",
            deadline_at=now + plan.device_deadline_s,
            finished_at=None,
        )

    def overdue(self, now: float, plan: Plan) -> Execution:
        """Its end because of its deadline: silent where the device has said nothing at all."""
        within = f"within {plan.device_deadline_s:g} s"
        if self.state is ExecutionState.RETURNING:
            return self.ended(ExecutionState.STUCK, now, "timed-out", f"does not run what it had before {within}")
        if self.state is ExecutionState.ASSIGNED:
            return self.ended(ExecutionState.SILENT, now, "silent", f"nothing heard {within}")
        return self.ended(ExecutionState.TIMED_OUT, now, "timed-out", f"no outcome {within}")
