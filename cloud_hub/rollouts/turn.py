"""One rollout inside one transaction: takes reports and decisions in and carries out what follows, in slices.

Executions are loaded when something happens to them, and written with their counts at the end; a turn touches at most
SLICE devices of its own accord, and says whether there is `more`. What the devices shall run is `handing`'s business.
Made by `controller`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.desired import Desired
from cloud_hub.errors import Conflict
from cloud_hub.events import Events, Happened
from cloud_hub.roles import Role
from cloud_hub.rollouts import approval, decide, records
from cloud_hub.rollouts.decide import Action
from cloud_hub.rollouts.gate import GateState
from cloud_hub.rollouts.handing import Handing
from cloud_hub.rollouts.judge import Wanted, brought, judge, judge_return
from cloud_hub.rollouts.maintenance import next_open
from cloud_hub.rollouts.rate import allowance
from cloud_hub.rollouts.records import Member, StateCounts
from cloud_hub.rollouts.states import (
    DONE,
    ENDED,
    IN_PROGRESS,
    UNDONE,
    Execution,
    ExecutionState,
    Rollout,
    RolloutState,
)
from cloud_hub.rollouts.targets import Build
from modules.messages import DeviceReport

ACTOR: Final = "rollout"  # who did it, in the audit trail, when no person asked
SLICE: Final = 500  # devices that are assigned or taken back in one transaction
RETRIED: Final = frozenset({ExecutionState.FAILED, ExecutionState.TIMED_OUT, ExecutionState.SILENT})


@dataclass(frozen=True)
class Standing:
    """A rollout, its executions by group and state, and its builds by profile, as they are when a turn begins."""

    rollout: Rollout
    counts: StateCounts
    builds: Mapping[str, Build]


class Turn:
    """The rollout as it stands in this transaction; `rings` are director versions to tell devices after the commit.

    `more` is set when the time for another turn is now, `sign_again` when modules have to be signed before it.
    """

    def __init__(
        self, connection: AsyncConnection, desired: Desired, events: Events, standing: Standing, now: float
    ) -> None:
        self.more = self.sign_again = False
        self.connection, self._events, self._now = connection, events, now
        self._before = self.rollout = standing.rollout
        self.counts = standing.counts
        self._handing = Handing(connection, desired, standing.rollout, standing.builds, now)
        self._changed: dict[str, Execution] = {}
        self._happened: list[Happened] = []
        self._left = SLICE

    @property
    def rings(self) -> dict[str, int]:
        return self._handing.rings

    # --- what people ask for --------------------------------------------------------------------------------------
    def change(self, state: RolloutState, actor: str, kind: str) -> None:
        """A person's start, pause or resume."""
        before = self.rollout.state
        if kind == "rollout.resumed":
            self.rollout = decide.pardon(self.rollout, self.counts, actor)
        started_at = self._now if self.rollout.started_at is None else self.rollout.started_at
        self.rollout = msgspec.structs.replace(self.rollout, state=state, started_at=started_at)
        self._record(kind, actor, before=str(before), after=str(state))

    def end(self, state: RolloutState, actor: str, kind: str, reason: str) -> None:
        """A person's abort, finish or fleet rollback: what has not ended is cancelled and put back by what follows."""
        before = str(self.rollout.state)
        finished_at = self._now if state in ENDED else None
        self.rollout = msgspec.structs.replace(self.rollout, state=state, reason=reason, finished_at=finished_at)
        self._record(kind, actor, reason=reason, before=before, after=str(state))

    def approve(self, principal: str, role: Role, stage: str, comment: str) -> None:
        """Raises Conflict `approval-refused`."""
        rollout = self.rollout
        why = approval.refusal(rollout.plan.approval, rollout.approvals, stage, principal, role, rollout.creator)
        if why:
            raise Conflict("approval-refused", f"rollout {rollout.id}: {why}; nothing was changed", id=rollout.id)
        given = approval.Given(principal, role, stage, self._now, comment)
        self.rollout = msgspec.structs.replace(rollout, approvals=(*rollout.approvals, given))
        self._record("rollout.approved", principal, stage=stage, role=str(role), comment=comment)

    async def retry(self, actor: str) -> int:
        """Failed executions begin again, and with an ended rollout those that it cancelled; how many."""
        states = {*RETRIED, ExecutionState.REVERTED}
        if self.rollout.state in ENDED:
            states.add(ExecutionState.CANCELLED)
        taken = await records.taken(self.connection, self.rollout)
        found = await records.standing(self.connection, self.rollout.id, states, records.EVERYONE)
        members = [one for one in found if one.execution.device not in taken]
        for member in members:
            self._become(member.execution, member.execution.again(self._now))
        rollout = decide.pardon(self.rollout, self.counts, actor)
        if rollout.state in ENDED:
            rollout = msgspec.structs.replace(
                rollout, state=RolloutState.RUNNING, started_at=self._now, finished_at=None
            )
        self.rollout = rollout
        self._record("rollout.retried", actor, devices=len(members), after=str(rollout.state))
        return len(members)

    async def roll_back(self, actor: str, reason: str) -> None:
        """Everybody back to what they had; with a rollout that was rolled back before, those that were stuck."""
        stuck = await records.standing(self.connection, self.rollout.id, (ExecutionState.STUCK,), records.EVERYONE)
        for member in stuck:
            self._become(member.execution, msgspec.structs.replace(member.execution, state=ExecutionState.VERIFIED))
        self.rollout = msgspec.structs.replace(self.rollout, signed_again=False)
        self.end(RolloutState.ROLLING_BACK, actor, "rollout.rolling-back", reason)

    async def give_up(self, ids: Collection[str], reason: str) -> None:
        """These devices belong to another rollout."""
        members = await records.members(self.connection, self.rollout.id, ids)
        ours = [one for one in members if one.execution.state not in DONE]
        for member in ours:
            ended = member.execution.ended(ExecutionState.CANCELLED, self._now, "device-in-rollout", reason)
            self._become(member.execution, ended)
        await self._put_back([one for one in ours if one.execution.state in IN_PROGRESS])

    async def has(self, device: str) -> bool:
        """Whether the device takes part already."""
        return bool(await records.members(self.connection, self.rollout.id, [device]))

    async def join(self, parts: Sequence[Execution]) -> None:
        """Devices that match the target by now."""
        for group, states in (await records.add_parts(self.connection, self.rollout.id, parts)).items():
            self.counts[group].update(states)
        for part in parts:
            self._record("rollout.joined", ACTOR, device=part.device, group=part.group_index)

    # --- what devices and gates say -------------------------------------------------------------------------------
    def answer_gate(self, answer: GateState) -> None:
        """Takes the gate's word in; one about another group, or of a rollout that does not wait, is an old one."""
        state = self.rollout.gate
        if state is None or state.group != answer.group or self.rollout.state is not RolloutState.RUNNING:
            return
        self.rollout = msgspec.structs.replace(self.rollout, gate=answer)
        if answer.word != state.word:
            self._record(
                "rollout.gate", ACTOR, group=answer.group, before=state.word, after=answer.word, reason=answer.reason
            )

    def signed_again(self) -> None:
        """What can be signed again here has been."""
        self.rollout = msgspec.structs.replace(self.rollout, signed_again=True)

    async def take_in(self, reports: Mapping[str, DeviceReport]) -> None:
        """Takes the devices' reports in."""
        members = await records.members(self.connection, self.rollout.id, reports)
        wanted = await self._handing.wanted(members)
        undone: list[Member] = []
        for member in members:
            part, after = member.execution, await self._judged(member, wanted[member.execution.device], reports)
            self._become(part, after)
            if part.state in IN_PROGRESS and after.state not in {*IN_PROGRESS, ExecutionState.VERIFIED}:
                undone.append(member)
        await self._put_back(undone)

    async def _judged(self, member: Member, wanted: Wanted | None, reports: Mapping[str, DeviceReport]) -> Execution:
        part, report = member.execution, reports[member.execution.device]
        if part.state is ExecutionState.RETURNING:
            return judge_return(part, self.rollout.module, wanted, report, self._now, self.rollout.plan.beside)
        if wanted is None:
            return part
        if part.state in UNDONE and brought(wanted, report) and await self._handing.follow(member):
            self._record("rollout.device-late", ACTOR, device=part.device, version=self.rollout.version)
            return msgspec.structs.replace(part, reason_key=records.LATE)
        return self._tried_again(judge(part, wanted, report, self._now))

    # --- what follows ---------------------------------------------------------------------------------------------
    async def settle(self) -> None:
        """Carries out what the plan says until it says nothing more, or the slice is used up."""
        while True:
            await self._end_overdue()
            action = decide.decide(self.rollout, self.counts, self._now)
            if action is None:
                return
            if self._left <= 0:
                self.more = True
                return
            if not await self._carry_out(action):
                return

    async def save(self) -> None:
        """Writes what differs from the beginning of the turn."""
        await self._flush()
        await records.save_counts(self.connection, self.rollout.id, self.counts)
        next_at = self._now if self.more else await self._next_at()
        await records.save(self.connection, self.rollout, next_at)
        old, new = self._before, self.rollout
        if new.state is not old.state and new.state in (
            RolloutState.FINISHED, RolloutState.FAILED, RolloutState.ROLLED_BACK
        ):  # fmt: skip
            self._record(f"rollout.{new.state}".replace("_", "-"), ACTOR, reason=new.reason)
        await self._events.record_many(self.connection, self._happened)

    async def _carry_out(self, action: Action) -> bool:
        """Whether something may follow at once."""
        rollout, replace = self.rollout, msgspec.structs.replace
        match action:
            case decide.OpenGroup(index):
                self.rollout = replace(rollout, group_index=index)
                self._record("rollout.group-started", ACTOR, group=index, devices=sum(self.counts[index].values()))
            case decide.WaitAtGate(group):
                self.rollout = replace(rollout, gate=GateState(group, self._now))
            case decide.Pause(reason):
                self.rollout = replace(rollout, state=RolloutState.PAUSED, reason=reason)
                self._record("rollout.paused", ACTOR, reason=reason, before="running", after="paused")
            case decide.Stop(_, reason):
                self.rollout = replace(rollout, state=RolloutState.FAILED, reason=reason, finished_at=self._now)
            case decide.RollBack(reason):
                self.end(RolloutState.ROLLING_BACK, ACTOR, "rollout.rolling-back", reason)
            case decide.Finish():
                self.rollout = replace(rollout, state=RolloutState.FINISHED, reason="", finished_at=self._now)
            case decide.RolledBack():
                self.rollout = replace(rollout, state=RolloutState.ROLLED_BACK, finished_at=self._now)
            case decide.SignAgain():
                self.sign_again = self.more = True
                return False
            case decide.Cancel():
                await self._cancel()
            case decide.Return():
                await self._return()
            case decide.Assign(limit):
                return await self._assign(min(limit, self._left))
        return True

    async def _end_overdue(self) -> None:
        while self._left > 0:
            await self._flush()
            late = await records.overdue(self.connection, self.rollout.id, self._now, self._left)
            if not late:
                return
            self._left -= len(late)
            for member in late:
                self._become(
                    member.execution, self._tried_again(member.execution.overdue(self._now, self.rollout.plan))
                )
            await self._put_back([one for one in late if one.execution.state in IN_PROGRESS])
        self.more = True

    async def _cancel(self) -> None:
        """All that wait, and a slice of what is in progress."""
        await self._flush()
        key = f"rollout-{self.rollout.state}"
        why = f"the rollout is {self.rollout.state}" + (f": {self.rollout.reason}" if self.rollout.reason else "")
        waiting = decide.totals(self.counts)[ExecutionState.WAITING]
        if waiting:
            for states in self.counts.values():
                states[ExecutionState.CANCELLED] += states[ExecutionState.WAITING]
                states[ExecutionState.WAITING] = 0
            await records.cancel_waiting(self.connection, self.rollout.id, self._now, key, why)
            self._record("rollout.cancelled", ACTOR, devices=waiting, reason=why)
        members = await records.standing(self.connection, self.rollout.id, IN_PROGRESS, self._left)
        self._left -= len(members)
        for member in members:
            self._become(member.execution, member.execution.ended(ExecutionState.CANCELLED, self._now, key, why))
        await self._put_back(members)

    async def _return(self) -> None:
        await self._flush()
        members = await records.standing(self.connection, self.rollout.id, (ExecutionState.VERIFIED,), self._left)
        self._left -= len(members)
        for member, after in await self._handing.give_back(members):
            self._become(member.execution, after)

    async def _assign(self, limit: int) -> bool:
        """Whether some device was there to be assigned, or to be told when it may begin."""
        await self._flush()
        waiting = await records.ready(self.connection, self.rollout, self._now, limit)
        open_now = [member for member in waiting if self._may_begin(member)]
        rate = self.rollout.plan.rate
        if rate is not None:
            verified = decide.totals(self.counts)[ExecutionState.VERIFIED]
            left = allowance(rate, self.rollout.allowance, verified, self._now).spent(len(open_now))
            self.rollout = msgspec.structs.replace(self.rollout, allowance=left)
        for member, after in await self._handing.hand_out(open_now):
            self._become(member.execution, after)
            if after.state is ExecutionState.ASSIGNED:
                self._record(
                    "rollout.assigned", ACTOR, device=after.device, group=after.group_index,
                    director_version=after.director_version,
                )  # fmt: skip
        self._left -= len(waiting)
        return bool(waiting)

    def _may_begin(self, member: Member) -> bool:
        """Whether its maintenance window is open; one that is not puts it off, one that never is ends it."""
        part, windows = member.execution, self.rollout.plan.windows
        if not windows or (part.ready_until is not None and self._now < part.ready_until):
            return True
        opening = next_open(windows, member.timezone, self._now)
        if opening is None:
            reason = "none of the maintenance windows opens within two weeks"
            self._become(part, part.ended(ExecutionState.REJECTED, self._now, "no-window", reason))
            return False
        opens_at, closes_at = opening
        if opens_at <= self._now:
            return True
        self._become(part, msgspec.structs.replace(part, ready_at=opens_at, ready_until=closes_at))
        return False

    def _tried_again(self, after: Execution) -> Execution:
        """Another attempt in the place of a failure that may pass, while the rollout goes on."""
        plan, goes_on = self.rollout.plan, self.rollout.state in (RolloutState.RUNNING, RolloutState.PAUSED)
        if after.state not in RETRIED or after.attempt >= plan.retries or not goes_on:
            return after
        return after.again(self._now + plan.retry_after_s)

    async def _put_back(self, members: Sequence[Member]) -> None:
        for device, reason in (await self._handing.put_back(members)).items():
            # A retired device, or a version that was deleted meanwhile: the device keeps serving its old slot.
            self._record("rollout.not-put-back", ACTOR, device=device, reason=reason)

    def _become(self, before: Execution, after: Execution) -> None:
        """The execution's next standing, counted; its end goes into the audit trail."""
        if after == before:
            return
        self._changed[after.device] = after
        if after.state is before.state:
            return
        states = self.counts[after.group_index]
        states[before.state] -= 1
        states[after.state] += 1
        told = {
            "device": after.device,
            "state": str(after.state),
            "reason_key": after.reason_key,
            "reason": after.reason,
        }
        # Also of one that is found stuck at once, where it had ended before.
        if after.state in DONE and (before.state not in DONE or after.state is ExecutionState.STUCK):
            self._record("rollout.device-ended", ACTOR, group=after.group_index, **told)
        elif after.state is ExecutionState.WAITING:
            self._record("rollout.device-retried", ACTOR, attempt=after.attempt, **told)

    async def _flush(self) -> None:
        await records.save_parts(self.connection, self.rollout.id, list(self._changed.values()))
        self._changed.clear()

    async def _next_at(self) -> float | None:
        moments = (
            decide.due_at(self.rollout, self.counts, self._now),
            await records.next_moment(self.connection, self.rollout, self._now),
        )
        return min((moment for moment in moments if moment is not None), default=None)

    def _record(self, kind: str, actor: str, /, **details: object) -> None:
        self._happened.append(Happened(kind, actor, self.rollout.id, details))
