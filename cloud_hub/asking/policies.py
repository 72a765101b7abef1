"""Sampling policies of devices: shown, and changed in the signed desired state, without a new version of the module.

A change is a part of a policy: what it names is set, what it names as null goes back to nothing said, and all else
stays as it counts for each device. It is checked for every device first; then nothing, or all of it, is changed. Called
by `api.asking`; devices hear of it by their doorbells, and their workers take it without a restart.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

import msgspec

from cloud_hub.agents import older
from cloud_hub.asking.holders import Holder, holders
from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.desired import Desired
from cloud_hub.errors import BadRequest, Conflict, Unprocessable
from cloud_hub.events import Events
from cloud_hub.groups.resolving import meant
from cloud_hub.query import Moment
from cloud_hub.rollouts.targeting import refuse_overlap
from cloud_hub.store.bulk import in_slices
from cloud_hub.store.engine import Store
from modules.errors import ModuleError
from modules.manifest import SamplingPolicy
from modules.tensors import TensorSpec

SLICE: Final = 500  # devices in one transaction
SHOWN: Final = 5
ALL: Final = "all"
Ring = Callable[[str, int], Awaitable[object]]


class PolicyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to change for the devices that hold `module` and match `target` ("" is all of them).

    `set` is part of a SamplingPolicy as JSON; null takes a value back. `strata` and `redact` are by name: those that
    are not named stay, null for one of them removes it. With `default` the manifest's own policy counts again, and
    `set` is empty. With `dry_run` nothing is changed.
    """

    module: str
    target: str = ""
    set: dict[str, Any] = {}  # whatever a policy holds
    default: bool = False
    dry_run: bool = False


class DevicePolicy(msgspec.Struct, frozen=True):
    """The policy that counts on one device; `own` if it is not the manifest's. `changed` says what a change changes."""

    device: str
    version: int
    profile: str
    own: bool
    agent_version: str
    policy: SamplingPolicy
    changed: dict[str, list[Any]] = {}  # field: before, after


class Policies:
    """`ring` tells a device that its desired state has a new version."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        events: Events,
        desired: Desired,
        ring: Ring,
        clock: Clock,
        offline_after_s: float = 900.0,
    ) -> None:
        self._offline_after_s = offline_after_s
        self._store, self._blobs, self._events, self._desired, self._ring = store, blobs, events, desired, ring
        self._clock = clock

    async def show(self, module: str, target: str, devices: Collection[str] | None = None) -> list[DevicePolicy]:
        """By device id. Raises BadRequest `query-invalid`."""
        return [_shown(one, one.policy) for one in await self._matching(module, target, devices)]

    async def change(
        self, change: PolicyChange, actor: str, devices: Collection[str] | None = None
    ) -> list[DevicePolicy]:
        """The devices whose policy changes, with what changes. Raises BadRequest `query-invalid` or `policy-invalid`,
        Unprocessable `no-device-matches`, Conflict `agent-outdated` or `device-in-rollout`.
        """
        found = await self._matching(change.module, change.target, devices)
        if not found:
            matching = f" that matches {change.target!r}" if change.target else ""
            text = f"no device{matching} holds module {change.module}; nothing was changed"
            raise Unprocessable("no-device-matches", text, module=change.module, target=change.target)
        planned = [(one, after) for one in found if _counts(one, after := _after(one, change))]
        _check_agents(planned)
        shown = [_shown(one, after or one.manifest.sampling) for one, after in planned]
        if not change.dry_run:
            for some in in_slices(planned, SLICE):
                await self._write(change, some, actor)
        return shown

    async def _matching(self, module: str, target: str, devices: Collection[str] | None) -> list[Holder]:
        async with self._store.read() as connection:
            wanted = None
            if target and target != ALL:
                wanted = await meant(connection, target, Moment(self._clock(), self._offline_after_s))
            found = await holders(connection, self._blobs, module, wanted)
        return [one for one in found if devices is None or one.device in devices]

    async def _write(
        self, change: PolicyChange, some: Collection[tuple[Holder, SamplingPolicy | None]], actor: str
    ) -> None:
        rings: list[tuple[str, int]] = []
        names = [one.device for one, _ in some]
        async with self._store.write() as connection:
            await refuse_overlap(connection, change.module, "", names)
            for one, after in some:
                stands = await self._desired.current(connection, one.device, change.module)
                if stands != one.assignment:
                    text = f"device {one.device}: its desired state changed meanwhile; look again"
                    raise Conflict("changed-meanwhile", text, device=one.device)
                wanted = msgspec.structs.replace(one.assignment, sampling=after)
                rings.append((one.device, await self._desired.assign(connection, one.device, wanted)))
            said = {"set": change.set, "default": change.default, "target": change.target}
            await self._events.record(connection, "sampling.changed", actor, change.module, devices=names, **said)
        for device, version in rings:
            await self._ring(device, version)


def _after(holder: Holder, change: PolicyChange) -> SamplingPolicy | None:
    """The device's policy after the change. Raises BadRequest `policy-invalid`."""
    if change.default:
        if change.set:
            raise BadRequest("policy-invalid", "expected nothing to set beside the manifest's default")
        return None
    before = msgspec.to_builtins(holder.policy)
    try:
        policy = msgspec.convert(_merged(before, change.set), SamplingPolicy)
        _check_names(policy, holder)
    except (msgspec.ValidationError, ModuleError, ValueError) as error:
        raise BadRequest("policy-invalid", f"{error}; nothing was changed") from error
    return policy


def _merged(before: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    after = dict(before)
    for name, value in change.items():
        if value is None:
            after.pop(name, None)
        elif name == "strata":
            if not isinstance(value, dict):
                raise ValueError("strata: expected an object by name")
            old = {one["name"]: one for one in before.get(name, ())}
            kept = {key: one for key, one in (old | value).items() if one is not None}
            if not all(isinstance(one, dict) for one in kept.values()):
                raise ValueError("strata: expected objects by name")
            after[name] = [{**one, "name": key} for key, one in kept.items()]
        elif name == "redact":
            if not isinstance(value, dict):
                raise ValueError("redact: expected an object by name")
            after[name] = {key: one for key, one in (before.get(name, {}) | value).items() if one is not None}
        else:
            after[name] = value
    return {name: value for name, value in after.items() if name not in ("strata", "redact") or value}


def _check_names(policy: SamplingPolicy, holder: Holder) -> None:
    """Features of the reference profile, tensors, and places in them, which the device checks. Raises ValueError."""
    manifest = holder.manifest
    tensors = {spec.name for spec in manifest.inputs + manifest.outputs}
    named = [*(policy.redact or {}), *(one.feature for one in policy.strata or () if one.feature)]
    for name in named:
        if name not in holder.features and name.partition("[")[0] not in tensors:
            some = ", ".join(_examples(manifest.inputs))
            raise ValueError(f"{manifest.name}: expected a tensor or feature such as {some}, got {name!r}")


def _examples(specs: tuple[TensorSpec, ...]) -> list[str]:
    return [name for spec in specs[:3] for name in (spec.name, f"{spec.name}[{spec.labels[0] if spec.labels else 0}]")]


def _counts(holder: Holder, after: SamplingPolicy | None) -> bool:
    """Whether anything changes on the device."""
    return holder.own if after is None else after != holder.policy


def _check_agents(planned: Collection[tuple[Holder, SamplingPolicy | None]]) -> None:
    """Raises Conflict `agent-outdated`: for a word that it does not know, an agent refuses the whole desired state."""
    old = [one for one, after in planned if after is not None and older(one.agent_version, after.agent_version)]
    if old:
        shown = ", ".join(f"{one.device} ({one.agent_version})" for one in old[:SHOWN])
        more = f" and {len(old) - SHOWN} more" if len(old) > SHOWN else ""
        text = f"this policy needs an agent of 0.2.0; older are those of {shown}{more}; nothing was changed"
        raise Conflict("agent-outdated", text, devices=[one.device for one in old])


def _shown(holder: Holder, after: SamplingPolicy) -> DevicePolicy:
    before, now = (msgspec.to_builtins(policy) for policy in (holder.policy, after))
    changed = {
        name: [before.get(name), now.get(name)]
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    }
    one = holder.assignment
    return DevicePolicy(holder.device, one.version, one.profile, holder.own, holder.agent_version, after, changed)
