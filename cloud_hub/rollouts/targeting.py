"""Which devices a new rollout reaches: those of its query that have a signed build of the module, in groups.

A device without a build for its profile is listed with the reason and takes no part. A device takes part in one active
rollout of a module at a time: two rollouts that assign different versions of it would undo each other, and neither
could say what it reached. The database applies the queries. Called by `controller` and `preview`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.configuration.resolving import changing
from cloud_hub.errors import Conflict, NotFound, Unprocessable
from cloud_hub.groups.resolving import meant, where
from cloud_hub.query import Moment
from cloud_hub.roles import EVERYTHING, Scope
from cloud_hub.rollouts import records, targets
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.plan import Plan, split
from cloud_hub.rollouts.states import NOT_ELIGIBLE, Execution, ExecutionState
from cloud_hub.rollouts.targets import Build, Target

SHOWN = 5


class Chosen(msgspec.Struct, frozen=True):
    """Devices by group; those that the module does not fit; and on whom another rollout of the module is under way."""

    groups: tuple[tuple[str, ...], ...]
    rejected: tuple[Execution, ...]
    elsewhere: Mapping[str, str]

    def executions(self) -> list[Execution]:
        taking = [Execution(device, index) for index, group in enumerate(self.groups) for device in group]
        return [*taking, *self.rejected]


class Targeting:
    """Finds devices. `offline_after_s` is how long a device may be quiet before queries call it offline."""

    def __init__(self, clock: Clock, offline_after_s: float = 180.0) -> None:
        self._clock, self._offline_after_s = clock, offline_after_s

    async def chosen(
        self, connection: AsyncConnection, new: NewRollout, plan: Plan, scope: Scope = EVERYTHING
    ) -> Chosen:
        """Devices out of `scope` are as if they were not there.

        Raises BadRequest as `groups.resolving`, NotFound `module-not-found`, Unprocessable `no-device-matches`,
        Conflict `no-device-eligible`.
        """
        builds = await _builds(connection, new)
        devices = await targets.matching(connection, await where(connection, new.target, self._moment, scope))
        if plan.candidate is not None:
            devices = [one for one in devices if plan.candidate.takes(one.id)]
        if new.config and not new.version:  # an override for one device must not make executions for all
            touched = await changing(connection, new.module, new.config, [one.id for one in devices])
            devices = [one for one in devices if one.id in touched]
        if not devices and not plan.joining:
            raise Unprocessable("no-device-matches", f"target {new.target!r}: no device matches; nothing was created")
        holders = await self._holders(connection, new, plan)
        rejected = [why for one in devices if (why := _rejected(one, new, builds, holders, self._clock()))]
        left_out = {one.device for one in rejected}
        eligible = [one.id for one in devices if one.id not in left_out]
        elsewhere = await records.elsewhere(connection, new.module, "", eligible)
        if plan.conflict == "skip":
            rejected += [_busy(device, rollout, self._clock()) for device, rollout in sorted(elsewhere.items())]
            eligible = [device for device in eligible if device not in elsewhere]
        if not eligible and not plan.joining:
            raise Conflict("no-device-eligible", f"no device can take {_named(new)}: {rejected[0].reason}")
        groups = split(eligible, plan, await self._members(connection, plan))
        return Chosen(groups, tuple(rejected), elsewhere)

    async def joins(
        self, connection: AsyncConnection, new: NewRollout, plan: Plan, device: str, index: int
    ) -> Execution | None:
        """The part of one more device in a rollout under way; None where it does not match, or cannot take it."""
        found = await targets.matching(connection, await where(connection, new.target, self._moment), only=device)
        if not found or (plan.candidate is not None and not plan.candidate.takes(device)):
            return None
        holders = await self._holders(connection, new, plan)
        if _rejected(found[0], new, await _builds(connection, new), holders, self._clock()) is not None:
            return None
        if await records.elsewhere(connection, new.module, "", [device]):
            return None
        return Execution(device, index)

    async def _holders(self, connection: AsyncConnection, new: NewRollout, plan: Plan) -> Collection[str] | None:
        """Devices that have the module already, where only those can take part."""
        alone = bool(new.version) and not plan.beside
        return None if alone else await targets.holders(connection, new.module)

    @property
    def _moment(self) -> Moment:
        return Moment(self._clock(), self._offline_after_s)

    async def _members(self, connection: AsyncConnection, plan: Plan) -> dict[str, Collection[str]]:
        """The devices of each group that is a query."""
        found: dict[str, Collection[str]] = {}
        for group in plan.groups:
            if group.query is not None:
                found[group.query] = frozenset(await meant(connection, group.query, self._moment))
        return found


def refuse(module: str, elsewhere: Mapping[str, str]) -> None:
    """Raises Conflict `device-in-rollout` when another rollout of the module is under way on some device."""
    if not elsewhere:
        return
    shown = ", ".join(f"{device} (in {elsewhere[device]})" for device in sorted(elsewhere)[:SHOWN])
    more = f" and {len(elsewhere) - SHOWN} more" if len(elsewhere) > SHOWN else ""
    raise Conflict(
        "device-in-rollout",
        f"another rollout of {module} is under way on {shown}{more}; wait for it, abort it, "
        "leave those devices out, or say what happens with them (--conflict skip or supersede)",
        rollouts=sorted(set(elsewhere.values())),
        devices=sorted(elsewhere)[:100],
    )


async def refuse_overlap(connection: AsyncConnection, module: str, rollout_id: str, ids: Sequence[str]) -> None:
    """Raises Conflict `device-in-rollout` when another active rollout of the module has one of the devices."""
    refuse(module, await records.elsewhere(connection, module, rollout_id, ids))


async def _builds(connection: AsyncConnection, new: NewRollout) -> dict[str, Build]:
    if not new.version:
        return {}
    builds = await targets.builds(connection, new.module, new.version)
    if not builds:
        text = f"no module {new.module} version {new.version}; build it first"
        raise NotFound("module-not-found", text, name=new.module)
    return builds


def _named(new: NewRollout) -> str:
    return f"{new.module} version {new.version}" if new.version else f"configuration {new.config} of {new.module}"


def _rejected(
    device: Target, new: NewRollout, builds: Mapping[str, Build], holders: Collection[str] | None, now: float
) -> Execution | None:
    if holders is not None and device.id not in holders:
        key, reason = "not-assigned", f"{new.module} is not assigned to the device"
    elif not new.version:
        return None
    elif device.profile not in builds:
        key, reason = "no-module-for-profile", f"{_named(new)} is not built for {device.profile}"
    elif not builds[device.profile].release_counter:
        key, reason = "module-not-signed", f"{_named(new)} for {device.profile} is not signed"
    else:
        return None
    return Execution(device.id, NOT_ELIGIBLE).ended(ExecutionState.REJECTED, now, key, reason)


def _busy(device: str, rollout: str, now: float) -> Execution:
    reason = f"rollout {rollout} of the module is under way on it"
    return Execution(device, NOT_ELIGIBLE).ended(ExecutionState.REJECTED, now, "device-in-rollout", reason)
