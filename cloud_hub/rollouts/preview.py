"""What a rollout would mean before there is one: which devices, how many bytes, how long. Writes nothing.

Devices are chosen exactly as `Controller.create` chooses them. What they have now stands in their assignments, so no
report is read; everything is counted by profile, version and time zone, in slices. Made by `composition`; asked by the
API.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
from sqlalchemy import ColumnElement, and_, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.roles import EVERYTHING, Scope
from cloud_hub.rollouts.approval import START, before_group, missing
from cloud_hub.rollouts.durations import Durations, expected
from cloud_hub.rollouts.estimate import Course, GroupTime, walk
from cloud_hub.rollouts.maintenance import zone
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.older import refusals
from cloud_hub.rollouts.plan import Plan
from cloud_hub.rollouts.states import Execution
from cloud_hub.rollouts.targeting import Chosen, Targeting
from cloud_hub.rollouts.transfers import Step, Transfer, transfers
from cloud_hub.store.bulk import in_slices
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import assignments, devices
from cloud_hub.words import counted

SHOWN: Final = 20  # ids that stand for a whole group
SHOWN_REASONS: Final = 20
TIMEZONE_TAG: Final = "timezone"


class GroupPreview(msgspec.Struct, frozen=True):
    """One group: how many devices, the first of them, what they load in all, and when it would be their turn.

    Times (epoch seconds) are estimates, null where none can be given. `approval` is what the group would wait for.
    """

    index: int
    size: int
    devices: tuple[str, ...]
    bytes: int
    approval: str = ""
    begins_at: float | None = None
    assigned_at: float | None = None
    done_at: float | None = None


class LeftOut(msgspec.Struct, frozen=True):
    """Devices of the target that take no part, by reason: how many, the first of them, and why the first does not."""

    key: str
    reason: str
    count: int
    devices: tuple[str, ...]


class Preview(msgspec.Struct, frozen=True):
    """What would happen. `bytes` are those of all devices; `transfers` say how many of them load what.

    `elsewhere`: how many devices another rollout of the module is under way on, which the plan's `conflict` is about.
    `notes` are what a person should know before they go on.
    """

    module: str
    version: int
    target: str
    devices: int
    bytes: int
    groups: tuple[GroupPreview, ...]
    left_out: tuple[LeftOut, ...]
    transfers: tuple[Transfer, ...]
    durations: Durations
    ends_at: float | None
    elsewhere: int
    notes: tuple[str, ...]


@dataclass
class _Group:
    """What is counted of one group."""

    steps: Counter[Step] = field(default_factory=Counter)
    zones: Counter[str] = field(default_factory=Counter)


class Previews:
    """`patched`: whether this hub offers patches."""

    def __init__(self, store: Store, blobs: Blobs, targeting: Targeting, clock: Clock, patched: bool) -> None:
        self._store = store
        self._blobs = blobs
        self._targeting = targeting
        self._clock = clock
        self._patched = patched

    async def ask(self, new: NewRollout, scope: Scope = EVERYTHING) -> Preview:
        """Raises as `Targeting.chosen` and `NewRollout.plan` do: what cannot be created cannot be looked at either."""
        plan = new.plan()
        async with self._store.read() as connection:
            chosen = await self._targeting.chosen(connection, new, plan, scope)
            groups = [await _count(connection, new.module, ids, bool(plan.windows)) for ids in chosen.groups]
            steps: Counter[Step] = Counter()
            for group in groups:
                steps.update(group.steps)
            known = steps if new.version else Counter[Step]()  # a configuration alone costs next to nothing
            found = await transfers(connection, self._blobs, new.module, new.version, known, self._patched)
            durations = await expected(connection, self._blobs, new.module, new.version)
            refused = await refusals(connection, new.module, new.version, known)
        now = self._clock()
        zones = [_by_zone(group.zones) for group in groups]
        course = Course(plan.windows, plan.rate, durations.most_s, plan.soak_s)
        times = await asyncio.to_thread(walk, zones, course, now)
        preview = _preview(new, plan, chosen, groups, found, durations, times, now)
        return msgspec.structs.replace(preview, notes=(refused, *preview.notes)) if refused else preview


async def _count(connection: AsyncConnection, module: str, ids: Sequence[str], with_zones: bool) -> _Group:
    """By slices, so that a target of some devices does not cost reading all that there are."""
    found = _Group()
    zone_of: ColumnElement[str] = devices.c.tags[TIMEZONE_TAG].as_string() if with_zones else literal("")
    on = and_(assignments.c.device == devices.c.id, assignments.c.module == module, assignments.c.role == "main")
    columns = select(devices.c.profile, zone_of.label("zone"), assignments.c.version)
    query = columns.select_from(devices.outerjoin(assignments, on))
    for some in in_slices(ids):
        for profile, name, version in await connection.execute(query.where(among(devices.c.id, some))):
            found.steps[Step(profile, version or 0)] += 1
            found.zones[name or ""] += 1
    return found


def _by_zone(named: Mapping[str, int]) -> Counter[str]:
    """Devices without a zone, and those whose tag is none, together."""
    found: Counter[str] = Counter()
    for name, count in named.items():
        found[_known(name)] += count
    return found


def _known(name: str) -> str:
    return name if name and zone(name) is not None else ""


def _preview(
    new: NewRollout,
    plan: Plan,
    chosen: Chosen,
    groups: Sequence[_Group],
    found: Sequence[Transfer],
    durations: Durations,
    times: Sequence[GroupTime] | None,
    now: float,
) -> Preview:
    cost = {Step(one.profile, one.from_version): one.bytes for one in found}
    shown = tuple(
        _group(plan, index, ids, sum(count * cost.get(step, 0) for step, count in groups[index].steps.items()), times)
        for index, ids in enumerate(chosen.groups)
    )
    unknown = {name for group in groups for name in group.zones if name != _known(name)}
    return Preview(
        module=new.module,
        version=new.version,
        target=new.target,
        devices=sum(group.size for group in shown),
        bytes=sum(group.bytes for group in shown),
        groups=shown,
        left_out=_left_out(chosen.rejected),
        transfers=tuple(found),
        durations=durations,
        ends_at=_end(times),
        elsewhere=len(chosen.elsewhere),
        notes=tuple(_notes(new, plan, chosen.elsewhere, unknown, durations, times, now)),
    )


def _group(plan: Plan, index: int, ids: Sequence[str], size: int, times: Sequence[GroupTime] | None) -> GroupPreview:
    stages = [START, before_group(0)] if index == 0 else [before_group(index)]
    waits = "; ".join(filter(None, (missing(plan.approval, (), stage) for stage in stages)))
    made = GroupPreview(index, len(ids), tuple(ids[:SHOWN]), size, waits)
    if times is None:
        return made
    at = times[index]
    return msgspec.structs.replace(made, begins_at=at.begins_at, assigned_at=at.assigned_at, done_at=at.done_at)


def _end(times: Sequence[GroupTime] | None) -> float | None:
    return times[-1].done_at if times else None


def _left_out(rejected: Sequence[Execution]) -> tuple[LeftOut, ...]:
    by_reason: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in rejected:
        # Reasons that name the device's own rollout differ from device to device; the key does not.
        by_reason[one.reason_key, "" if one.reason_key == "device-in-rollout" else one.reason].append(one.device)
    first = {one.reason_key: one.reason for one in reversed(rejected)}
    found = [
        LeftOut(key, reason or first[key], len(ids), tuple(ids[:SHOWN])) for (key, reason), ids in by_reason.items()
    ]
    return tuple(sorted(found, key=lambda one: -one.count)[:SHOWN_REASONS])


def _notes(
    new: NewRollout,
    plan: Plan,
    elsewhere: Mapping[str, str],
    unknown: Collection[str],
    durations: Durations,
    times: Sequence[GroupTime] | None,
    now: float,
) -> list[str]:
    ends_at = _end(times)
    notes = []
    if elsewhere:
        others = ", ".join(sorted(set(elsewhere.values()))[:5])
        ends = {
            "refuse": "creating this one would be refused",
            "skip": "they are left out",
            "supersede": "this one takes them over when it starts",
        }
        notes.append(
            f"in other rollouts of {new.module}: {counted(len(elsewhere), 'device')} ({others}): {ends[plan.conflict]}"
        )
    if unknown:
        some = ", ".join(repr(name[:40]) for name in sorted(unknown)[:3])
        notes.append(f"some devices have a tag {TIMEZONE_TAG} that is no time zone ({some}): the windows' own counts")
    if plan.approval or plan.gated:
        notes.append("approvals and gates take as long as they take; the times leave them out")
    if times is None:
        notes.append("it would take longer than can be said")
    elif ends_at is not None and ends_at > now + plan.deadline_s:
        notes.append(f"it would not end within its deadline of {plan.deadline_s:g} s")
    if durations.most_s > plan.device_deadline_s:
        notes.append(
            f"1 device of 10 took longer than {durations.most_s:.0f} s, and here has {plan.device_deadline_s:g} s"
        )
    return notes
