"""Which devices a new rollout reaches: those of its query that have a signed build of the module, in groups.

A device without a build for its profile is listed with the reason and takes no part. A device takes part in one active
rollout of a module at a time: two rollouts that assign different versions of it would undo each other, and neither
could say what it reached. Called by `controller`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.errors import Conflict, NotFound, Unprocessable
from cloud_hub.query import DeviceFacts, parse
from cloud_hub.roles import EVERYTHING, Scope
from cloud_hub.rollouts import records
from cloud_hub.rollouts.plan import NOT_ELIGIBLE, Execution, ExecutionState, Plan, split
from cloud_hub.rollouts.records import Build, Target

SHOWN = 5


async def executions_for(
    connection: AsyncConnection,
    module: str,
    version: int,
    target: str,
    plan: Plan,
    now: float,
    scope: Scope = EVERYTHING,
) -> list[Execution]:
    """The executions of a new rollout: devices out of `scope` are as if they were not there.

    Raises BadRequest `query-invalid`, NotFound `module-not-found`, Unprocessable `no-device-matches`, Conflict
    `no-device-eligible` or `device-in-rollout`.
    """
    builds = await records.builds(connection, module, version)
    if not builds:
        raise NotFound("module-not-found", f"no module {module} version {version}; build it first", name=module)
    query = parse(target)
    everyone = await records.targets(connection)
    facts = {target.id: DeviceFacts(target.id, target.profile, target.tags) for target in everyone}
    devices = [d for d in everyone if query.matches(facts[d.id]) and scope.matches(facts[d.id])]
    if not devices:
        raise Unprocessable("no-device-matches", f"target {target!r}: no device matches; nothing was created")
    rejected = [_rejected(d, module, version, builds, now) for d in devices if not _eligible(d, builds)]
    eligible = [d.id for d in devices if _eligible(d, builds)]
    if not eligible:
        raise Conflict("no-device-eligible", f"no device can take {module} version {version}: {rejected[0].reason}")
    await refuse_overlap(connection, module, "", eligible)
    groups = split(eligible, plan)
    return [Execution(device, index) for index, group in enumerate(groups) for device in group] + rejected


async def refuse_overlap(connection: AsyncConnection, module: str, rollout_id: str, ids: Sequence[str]) -> None:
    """Raises Conflict `device-in-rollout` when another active rollout of the module has one of the devices."""
    taken = await records.elsewhere(connection, module, rollout_id, ids)
    if not taken:
        return
    shown = ", ".join(f"{device} (in {taken[device]})" for device in sorted(taken)[:SHOWN])
    more = f" and {len(taken) - SHOWN} more" if len(taken) > SHOWN else ""
    raise Conflict(
        "device-in-rollout",
        f"another rollout of {module} is under way on {shown}{more}; wait for it, abort it, or leave those devices out",
        rollouts=sorted(set(taken.values())),
        devices=sorted(taken),
    )


def _eligible(device: Target, builds: Mapping[str, Build]) -> bool:
    return device.profile in builds and builds[device.profile].release_counter > 0


def _rejected(device: Target, module: str, version: int, builds: Mapping[str, Build], now: float) -> Execution:
    if device.profile in builds:
        key, reason = "module-not-signed", f"{module} version {version} for {device.profile} is not signed"
    else:
        key, reason = "no-module-for-profile", f"{module} version {version} is not built for {device.profile}"
    return Execution(device.id, NOT_ELIGIBLE).ended(ExecutionState.REJECTED, now, key, reason)
