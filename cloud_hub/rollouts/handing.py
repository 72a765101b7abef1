"""What the devices of a rollout shall run, many at a time: handed out, put back, given back, followed. Used by `turn`.

What a device shall run follows its execution: assigned with its group, put back to what stood before when the execution
fails, times out or is cancelled. So the desired set always names either what a running rollout asks for or what runs.
One exception: a device that was put back, but had already committed the new module, cannot go back to an older
release (it refuses a lower release counter); the desired set then follows the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.configuration.resolving import resolved, standing
from cloud_hub.desired import MAIN, Assignment, Desired, Role
from cloud_hub.errors import HubError
from cloud_hub.rollouts import records, targets
from cloud_hub.rollouts.judge import Wanted, runs
from cloud_hub.rollouts.records import Member
from cloud_hub.rollouts.states import Execution, ExecutionState, Rollout
from cloud_hub.rollouts.targets import Build
from modules.configuration import config_digest

Fates = list[tuple[Member, Execution]]


class Handing:
    """`rings` are the director versions that devices have to be told."""

    def __init__(
        self, connection: AsyncConnection, desired: Desired, rollout: Rollout, builds: Mapping[str, Build], now: float
    ) -> None:
        self.rings: dict[str, int] = {}
        self._connection, self._desired, self._now = connection, desired, now
        self._rollout, self._builds = rollout, builds
        self._others: dict[int, Mapping[str, Build]] = {}

    async def wanted(self, members: Sequence[Member]) -> dict[str, Wanted | None]:
        """What each device must report: what it is directed to, or what it had before when it goes back.

        None where that is not this module at all, or where there is no build for the device.
        """
        stands = await self._stands(members)
        found: dict[str, Wanted | None] = {}
        for one in members:
            device = one.execution.device
            given = stands.get(device)
            if one.execution.state is ExecutionState.RETURNING:
                found[device] = await self._wanted(self._back(one.previous, given))
            elif given is not None and given.deployment == self._rollout.id:
                found[device] = await self._wanted(given)
            else:
                found[device] = self._by_plan(one.profile)
        return found

    def _back(self, previous: Assignment | None, given: Assignment | None) -> Assignment | None:
        """What the device has when it is back: an earlier candidate follows the main version, here as elsewhere."""
        again = previous is not None and given is not None and given.deployment == previous.deployment
        return given if again and self._role != MAIN else previous

    async def hand_out(self, members: Sequence[Member]) -> Fates:
        """Directs the devices to the module. Those that run it are verified, those that cannot take it rejected."""
        stands = await self._stands(members)
        wanted = await self._assignments(members, stands)
        already = await self._already(stands, wanted)
        told = await self._desired.assign_many(
            self._connection, {device: one for device, one in wanted.items() if device not in already}
        )
        taken = {device: version for device, version in told.items() if not isinstance(version, HubError)}
        await records.set_previous(self._connection, self._rollout.id, {device: stands.get(device) for device in taken})
        self.rings |= taken
        return [(one, self._handed(one, told, already)) for one in members]

    async def put_back(self, members: Sequence[Member]) -> dict[str, str]:
        """What stood before the rollout stands again, unless somebody has assigned something else since.

        Why not, for devices where it cannot.
        """
        stands = await self._stands(members)
        ours = {device for device, one in stands.items() if one.deployment == self._rollout.id}
        return await self._restore([one for one in members if one.execution.device in ours], stands)

    async def give_back(self, members: Sequence[Member]) -> Fates:
        """Verified devices are directed to what they had; those that would refuse it, or have other orders, stay."""
        stands = await self._stands(members)
        fates: Fates = []
        going: list[Member] = []
        for one in members:
            why = await self._cannot_go_back(one, stands.get(one.execution.device))
            if why:
                fates.append((one, one.execution.ended(ExecutionState.STUCK, self._now, *why)))
            else:
                going.append(one)
        failed = await self._restore(going, stands)
        for one in going:
            device = one.execution.device
            if device in failed:
                after = one.execution.ended(ExecutionState.STUCK, self._now, "not-put-back", failed[device])
            else:
                after = one.execution.going_back(self.rings[device], self._now, self._rollout.plan)
            fates.append((one, after))
        return fates

    async def follow(self, member: Member) -> bool:
        """The device committed the module before it heard that it should not: direct it to what it runs."""
        if self._role != MAIN:
            return False  # a candidate goes whenever the director does not name it any more
        device, stood, build = member.execution.device, member.previous, self._builds.get(member.profile)
        stands = await self._desired.current(self._connection, device, self._rollout.module)
        if stood is None or build is None or stands != stood:
            return False
        older = await self._build(stood.module, stood.version, stood.profile)
        if older is not None and older.release_counter >= build.release_counter:
            return False  # it was signed again since: the device goes back by itself
        (wanted,) = (await self._assignments([member], {device: stands})).values()
        self.rings[device] = await self._desired.assign(self._connection, device, wanted)
        return True

    async def _stands(self, members: Sequence[Member]) -> dict[str, Assignment]:
        ids = [one.execution.device for one in members]
        return await self._desired.current_many(self._connection, ids, self._rollout.module, self._role)

    @property
    def _role(self) -> Role:
        return "candidate" if self._rollout.plan.beside else "main"

    async def _wanted(self, given: Assignment | None) -> Wanted | None:
        if given is None:
            return None
        build = await self._build(given.module, given.version, given.profile)
        digest = build.manifest_sha256 if build else ""
        beside = given.role != MAIN
        return Wanted(given.deployment, given.module, given.version, digest, config_digest(given.config), beside)

    def _by_plan(self, profile: str) -> Wanted | None:
        """For a device that is not directed to the module by this rollout, or not any more."""
        build, rollout = self._builds.get(profile), self._rollout
        if build is None:
            return None
        name, beside = rollout.module, rollout.plan.beside
        return Wanted(rollout.id, name, rollout.version, build.manifest_sha256, candidate=beside)

    async def _assignments(self, members: Sequence[Member], stands: Mapping[str, Assignment]) -> dict[str, Assignment]:
        """What each device shall run; a device that the rollout does not fit is left out.

        With the sampling policy that the device has of its own, unless the rollout brings one: another version must not
        let out what somebody has redacted.
        """
        rollout = self._rollout
        ids = [one.execution.device for one in members]
        if rollout.plan.beside:
            return await self._beside(members)
        fitting = [one for one in members if self._fits(one, stands)]
        configs = await self._configs(ids, stands)
        made: dict[str, Assignment] = {}
        for one in fitting:
            device = one.execution.device
            stood = stands.get(device)
            version = rollout.version or (stood.version if stood else 0)
            sampling = rollout.plan.sampling or (stood.sampling if stood else None)
            made[device] = Assignment(
                rollout.module, version, one.profile, rollout.id, sampling=sampling, config=configs.get(device, {})
            )
        return made

    async def _beside(self, members: Sequence[Member]) -> dict[str, Assignment]:
        """Candidates, with the sampling policy and the configuration of the main versions that they run beside."""
        rollout, wanted = self._rollout, self._rollout.plan.candidate
        assert wanted is not None  # noqa: S101 - or nobody asks
        mains = await self._desired.current_many(
            self._connection, [one.execution.device for one in members], rollout.module
        )
        return {
            one.execution.device: Assignment(
                rollout.module, rollout.version, one.profile, rollout.id, mode=wanted.way, sampling=main.sampling,
                config=main.config, role="candidate", share=wanted.share, salt=wanted.salt or rollout.id,
            )
            for one in members
            if one.profile in self._builds and (main := mains.get(one.execution.device)) is not None
        }  # fmt: skip

    def _fits(self, member: Member, stands: Mapping[str, Assignment]) -> bool:
        if self._rollout.version:
            return member.profile in self._builds
        return member.execution.device in stands

    async def _configs(self, ids: Sequence[str], stands: Mapping[str, Assignment]) -> Mapping[str, Mapping[str, Any]]:
        """The revision that the rollout brings; else what stands, and for devices that are new what stands for them."""
        rollout = self._rollout
        if rollout.config:
            return await resolved(self._connection, rollout.module, rollout.config, ids)
        new = [device for device in ids if device not in stands]
        configs: dict[str, Mapping[str, Any]] = {device: one.config for device, one in stands.items()}
        if new and (revision := await standing(self._connection, rollout.module)):
            configs |= await resolved(self._connection, rollout.module, revision, new)
        return configs

    async def _already(self, stands: Mapping[str, Assignment], wanted: Mapping[str, Assignment]) -> set[str]:
        """Devices that are directed to exactly this by somebody else, and run it."""
        same = [device for device, one in wanted.items() if _same(stands.get(device), one)]
        reports = await targets.reports(self._connection, same)
        found: set[str] = set()
        for device, report in reports.items():
            wish = await self._wanted(wanted[device])
            if wish is not None and runs(wish, report):
                found.add(device)
        return found

    def _handed(self, member: Member, told: Mapping[str, int | HubError], already: set[str]) -> Execution:
        part, now, plan = member.execution, self._now, self._rollout.plan
        if part.device in already:
            begun = part.begun(0, now, plan)
            return begun.ended(ExecutionState.VERIFIED, now, "already-runs", "ran it before the rollout")
        outcome = told.get(part.device)
        if isinstance(outcome, int):
            return part.begun(outcome, now, plan)
        if outcome is None:
            return part.ended(ExecutionState.REJECTED, now, *self._why_not(member))
        return part.ended(ExecutionState.REJECTED, now, outcome.key, outcome.message)

    def _why_not(self, member: Member) -> tuple[str, str]:
        """Key and reason of a device that the rollout does not fit any more."""
        rollout = self._rollout
        if not member.profile:
            return "device-not-found", "the device is no longer there"
        if not rollout.version or (rollout.plan.beside and member.profile in self._builds):
            return "not-assigned", f"{rollout.module} is not assigned to the device any more"
        return "no-module-for-profile", f"{rollout.module} version {rollout.version} is not built for {member.profile}"

    async def _restore(self, members: Sequence[Member], stands: Mapping[str, Assignment]) -> dict[str, str]:
        """What stood on the devices before stands again; why not, where it cannot."""
        module = self._rollout.module
        wanted = {
            one.execution.device: self._restored(one.previous, stands[one.execution.device])
            for one in members
            if one.previous is not None
        }
        none = [one.execution.device for one in members if one.previous is None]
        told = await self._desired.assign_many(self._connection, wanted)
        told |= await self._desired.unassign_many(self._connection, none, module, self._role)
        self.rings |= {device: version for device, version in told.items() if not isinstance(version, HubError)}
        return {device: error.message for device, error in told.items() if isinstance(error, HubError)}

    def _restored(self, stood: Assignment, stands: Assignment) -> Assignment:
        if self._role != MAIN:  # which has followed the main version, as the earlier candidate would have
            return msgspec.structs.replace(stood, sampling=stands.sampling, config=stands.config)
        if stands.sampling != self._rollout.plan.sampling:  # set for this device meanwhile
            return msgspec.structs.replace(stood, sampling=stands.sampling)
        return stood

    async def _cannot_go_back(self, member: Member, stands: Assignment | None) -> tuple[str, str] | None:
        """Key and reason."""
        if stands is None or stands.deployment != self._rollout.id:
            return "other-orders", "something else has been assigned to the device since"
        stood, build = member.previous, self._builds.get(member.profile)
        if stood is None or build is None or self._role != MAIN:
            return None
        older = await self._build(stood.module, stood.version, stood.profile)
        if older is None:
            return "module-not-found", f"{stood.module} version {stood.version} is no longer there"
        if older.release_counter < build.release_counter:
            name = f"{stood.module}:{stood.version}/{member.profile}"
            return "needs-signature", (
                f"devices refuse an older release: sign it again (mooring module sign {name}) and roll back once more"
            )
        return None

    async def _build(self, module: str, version: int, profile: str) -> Build | None:
        if version == self._rollout.version:
            return self._builds.get(profile)
        if version not in self._others:
            self._others[version] = await targets.builds(self._connection, module, version)
        return self._others[version].get(profile)


def _same(stands: Assignment | None, assignment: Assignment) -> bool:
    return stands is not None and msgspec.structs.replace(stands, deployment=assignment.deployment) == assignment
