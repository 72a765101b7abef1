"""One rollout inside one transaction: takes reports and decisions in, keeps assignments in step, says whom to ring.

What a device shall run follows its execution: assigned with its group, put back to what stood before when the execution
fails, times out or is cancelled. So the desired set always names either what a running rollout asks for or what runs.
One exception: a device that was put back, but had already committed the new module, cannot go back to an older
release (it refuses a lower release counter); the desired set then follows the device. Made by `controller`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.desired import Assignment, Desired
from cloud_hub.errors import HubError
from cloud_hub.events import Events
from cloud_hub.rollouts import records
from cloud_hub.rollouts.gate import GateState
from cloud_hub.rollouts.judge import Wanted, brought, judge, runs
from cloud_hub.rollouts.plan import (
    DONE,
    IN_PROGRESS,
    NOT_ELIGIBLE,
    UNDONE,
    Execution,
    ExecutionState,
    Rollout,
    RolloutState,
    StartGroup,
    apply,
    decide,
    end,
)
from cloud_hub.rollouts.records import Build
from cloud_hub.rollouts.status import RolloutStatus, status
from cloud_hub.rollouts.targeting import refuse_overlap
from modules.messages import DeviceReport

ACTOR = "rollout"  # who did it, in the audit trail, when no person asked


class Turn:
    """The rollout as it stands in this transaction; `rings` are director versions to tell devices after the commit."""

    def __init__(
        self,
        connection: AsyncConnection,
        desired: Desired,
        events: Events,
        standing: tuple[Rollout, list[Execution]],
        builds: Mapping[str, Build],
        now: float,
    ) -> None:
        self.rings: dict[str, int] = {}
        self._connection = connection
        self._desired = desired
        self._events = events
        self._before = standing
        self._rollout, self._parts = standing
        self._builds = builds
        self._now = now

    @property
    def rollout(self) -> Rollout:
        return self._rollout

    @property
    def status(self) -> RolloutStatus:
        return status(self._rollout, self._parts)

    async def change(self, state: RolloutState, actor: str, kind: str) -> None:
        """A person's start, pause or resume."""
        started_at = self._now if self._rollout.started_at is None else self._rollout.started_at
        before = self._rollout.state
        self._rollout = msgspec.structs.replace(self._rollout, state=state, started_at=started_at)
        await self._events.record(self._connection, kind, actor, self._rollout.id, before=str(before), after=str(state))

    async def abort(self, actor: str, reason: str) -> None:
        """A person's abort: what has not ended is cancelled and put back."""
        before = str(self._rollout.state)
        await self._become(*end(self._rollout, self._parts, RolloutState.ABORTED, reason, self._now))
        await self._events.record(
            self._connection, "rollout.aborted", actor, self._rollout.id, reason=reason, before=before, after="aborted"
        )

    async def answer_gate(self, answer: GateState) -> None:
        """Takes the gate's word in; one about another group, or of a rollout that does not wait, is an old one."""
        state = self._rollout.gate
        if state is None or state.group != answer.group or self._rollout.state is not RolloutState.RUNNING:
            return
        self._rollout = msgspec.structs.replace(self._rollout, gate=answer)
        if answer.word != state.word:
            await self._events.record(
                self._connection, "rollout.gate", ACTOR, self._rollout.id, group=answer.group, before=state.word,
                after=answer.word, reason=answer.reason,
            )  # fmt: skip

    async def refuse_overlap(self) -> None:
        """Raises Conflict `device-in-rollout` when another active rollout of the module has one of the devices."""
        ids = [part.device for part in self._parts if part.group_index != NOT_ELIGIBLE]
        await refuse_overlap(self._connection, self._rollout.module, self._rollout.id, ids)

    async def report(self, device: str, report: DeviceReport) -> None:
        """Takes the device's report in."""
        target = await records.target(self._connection, device)
        build = self._builds.get(target.profile) if target else None
        part = next((part for part in self._parts if part.device == device), None)
        if target is None or build is None or part is None:
            return
        wanted = Wanted(self._rollout.id, self._rollout.module, self._rollout.version, build.manifest_sha256)
        after = judge(part, wanted, report, self._now)
        await self._become(self._rollout, [after if p is part else p for p in self._parts])
        if part.state in UNDONE and brought(wanted, report):
            await self._follow(device, target.profile, build)

    async def settle(self) -> None:
        """Carries out what the plan says until it says nothing more."""
        while actions := decide(self._rollout, self._parts, self._now):
            for action in actions:
                begun: dict[str, Execution] = {}
                if isinstance(action, StartGroup):
                    begun = await self._begin(action.index)
                await self._become(*apply(self._rollout, self._parts, action, self._now, begun))

    async def save(self) -> None:
        """Writes what differs from the beginning of the turn."""
        await records.save(self._connection, self._before, (self._rollout, self._parts))
        old, new = self._before[0], self._rollout
        if new.state is not old.state and new.state in (RolloutState.FINISHED, RolloutState.FAILED):
            await self._events.record(self._connection, f"rollout.{new.state}", ACTOR, new.id, reason=new.reason)

    async def _become(self, rollout: Rollout, parts: Sequence[Execution]) -> None:
        """The next standing. Executions that end go into the audit trail, and what they assigned is put back."""
        before, self._rollout, self._parts = self._parts, rollout, list(parts)
        for old, new in zip(before, parts, strict=True):
            if new.state not in DONE or old.state in DONE:
                continue
            await self._events.record(
                self._connection,
                "rollout.device-ended",
                ACTOR,
                rollout.id,
                device=new.device,
                state=str(new.state),
                reason_key=new.reason_key,
                reason=new.reason,
            )
            if old.state in IN_PROGRESS and new.state in UNDONE:
                await self._put_back(new.device)

    async def _begin(self, index: int) -> dict[str, Execution]:
        group = [part for part in self._parts if part.group_index == index and part.state is ExecutionState.WAITING]
        await self._events.record(
            self._connection, "rollout.group-started", ACTOR, self._rollout.id, group=index, devices=len(group)
        )
        return {part.device: await self._assign(part) for part in group}

    async def _assign(self, part: Execution) -> Execution:
        target = await records.target(self._connection, part.device)
        build = self._builds.get(target.profile) if target else None
        if target is None or build is None:
            return part.ended(ExecutionState.REJECTED, self._now, "device-not-found", "the device is no longer there")
        stands = await self._desired.current(self._connection, part.device, self._rollout.module)
        assignment = self._assignment(target.profile, stands)
        if stands is not None and _same(stands, assignment) and target.report is not None:
            wanted = Wanted(self._rollout.id, assignment.module, assignment.version, build.manifest_sha256)
            if runs(wanted, target.report):
                begun = part.begun(target.director_version, self._now, self._rollout.plan)
                return begun.ended(ExecutionState.VERIFIED, self._now, "already-runs", "ran it before the rollout")
        try:
            version = await self._desired.assign(self._connection, part.device, assignment)
        except HubError as error:
            return part.ended(ExecutionState.REJECTED, self._now, error.key, error.message)
        await records.set_previous(self._connection, self._rollout.id, part.device, stands)
        self.rings[part.device] = version
        return part.begun(version, self._now, self._rollout.plan)

    async def _put_back(self, device: str) -> None:
        """What stood before the rollout stands again, unless somebody has assigned something else since."""
        module = self._rollout.module
        stands = await self._desired.current(self._connection, device, module)
        if stands is None or stands.deployment != self._rollout.id:
            return
        before = await records.previous(self._connection, self._rollout.id, device)
        try:
            if before is None:
                self.rings[device] = await self._desired.unassign(self._connection, device, module)
            else:
                if stands.sampling != self._rollout.plan.sampling:  # set for this device meanwhile
                    before = msgspec.structs.replace(before, sampling=stands.sampling)
                self.rings[device] = await self._desired.assign(self._connection, device, before)
        except HubError as error:
            # A retired device, or a version that was deleted meanwhile: the device keeps serving its old slot.
            await self._events.record(
                self._connection, "rollout.not-put-back", ACTOR, self._rollout.id, device=device, reason=error.message
            )

    async def _follow(self, device: str, profile: str, build: Build) -> None:
        """The device committed the module before it heard that it should not: direct it to what it runs."""
        before = await records.previous(self._connection, self._rollout.id, device)
        stands = await self._desired.current(self._connection, device, self._rollout.module)
        if before is None or stands != before:
            return
        older = (await records.builds(self._connection, before.module, before.version)).get(before.profile)
        if older is not None and older.release_counter >= build.release_counter:
            return  # it was signed again since: the device goes back by itself
        self.rings[device] = await self._desired.assign(self._connection, device, self._assignment(profile, stands))
        await self._events.record(
            self._connection,
            "rollout.device-late",
            ACTOR,
            self._rollout.id,
            device=device,
            version=self._rollout.version,
        )

    def _assignment(self, profile: str, stands: Assignment | None) -> Assignment:
        """With the sampling policy that the device has of its own, unless the rollout brings one: another version must
        not let out what somebody has redacted.
        """
        rollout = self._rollout
        own = stands.sampling if stands is not None else None
        return Assignment(rollout.module, rollout.version, profile, rollout.id, sampling=rollout.plan.sampling or own)


def _same(stands: Assignment, assignment: Assignment) -> bool:
    return msgspec.structs.replace(stands, deployment=assignment.deployment) == assignment
