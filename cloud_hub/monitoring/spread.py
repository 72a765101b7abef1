"""Who is behind the evidence of many devices, and whether some of them explain all of it. The rule of scopes.

An alert belongs to the smallest scope that explains the evidence, and to the largest when it is spread:

- A device whose strongest fault is its own, or that of less than half of the devices that were looked at, speaks for
  itself. When without such devices the rest is calm, they explain everything.
- Some groups of one kind (sites, versions, profiles) with less than half of all devices explain the fleet when it is
  calm without them.
- A group explains another one when, without the devices of the first, the rest of the second is calm. Where each
  explains the other, the first in the order of `group_by` speaks.

What is explained is taken out, so that what is left is weighed as if the others were not there. Used by `deciding`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.monitoring import looks
from cloud_hub.monitoring.alert_book import Common, DeviceShare
from cloud_hub.monitoring.balance import balance, share_allowed, without
from cloud_hub.monitoring.evidence import WINDOWS
from cloud_hub.monitoring.finding import Finding
from cloud_hub.monitoring.looks import FLEET, Group
from cloud_hub.monitoring.population import MAX_LOOKED, Chosen, Population, choose
from cloud_hub.monitoring.strengths import drift_by_name
from cloud_hub.monitoring.verdict import LookSeries, judge, strength

MAX_SHOWN: Final = 20
MAX_GROUPS: Final = 128
# Of the devices behind an alert and of all others: from these shares on something in common is worth telling.
MOST_BEHIND: Final = 0.8
FEW_OTHERS: Final = 0.5


@dataclass(frozen=True)
class Spread:
    """`rest` are the looks without what explains them: `explained` names that, "" where nothing does."""

    rest: LookSeries
    explained: str = ""
    devices: tuple[DeviceShare, ...] = ()
    affected: tuple[str, ...] = ()
    common: tuple[Common, ...] = ()


@dataclass(frozen=True)
class Whole:
    """What the members of a scope sent, before any of it was thinned; `heavy` are those that may have to be."""

    looks: LookSeries
    heavy: Mapping[str, LookSeries]
    members: int

    def less(self, series: Sequence[LookSeries], devices: Collection[str]) -> LookSeries:
        """Without these looks, which are all that `devices` sent; what is left is balanced anew."""
        heavy = [own for device, own in self.heavy.items() if device not in devices]
        return balance(without(self.looks, series), heavy, max(self.members - len(devices), 1))


async def balanced(
    connection: AsyncConnection, finding: Finding, group: Group, people: Population, heavy: Sequence[str]
) -> LookSeries:
    """The looks of many, with no device counting for more than its share."""
    members = len(people.members(group.device))
    if share_allowed(members) >= 1.0 or not len(finding.looks) or not heavy:
        return finding.looks
    since = finding.looks.starts[0]
    parts = await looks.series_of(connection, finding.layout, group.manifest_sha256, heavy, since)
    return balance(finding.looks, list(parts.values()), members)


async def look_behind(
    connection: AsyncConnection,
    finding: Finding,
    sent: LookSeries,
    group: Group,
    people: Population,
    suspects: Collection[str],
    heavy: Sequence[str],
) -> Spread:
    """For a group or a fleet that alarms. `sent` are the finding's looks before they were balanced."""
    chosen = choose(people.members(group.device), suspects, heavy)
    since = finding.looks.starts[0]
    parts = await looks.series_of(connection, finding.layout, group.manifest_sha256, chosen.all, since)
    whole = Whole(sent, {name: parts[name] for name in heavy if name in parts}, len(people.members(group.device)))
    found, alone = await asyncio.to_thread(_judge_devices, finding, whole, chosen, parts)
    spread = replace(found, common=in_common(found.affected, group, people))
    if spread.explained:
        return spread
    finding = replace(finding, looks=spread.rest)
    others = await _others(connection, finding, group)
    if group.device == FLEET:
        return await asyncio.to_thread(_judge_groups, finding, whole, people, others, alone, spread)
    return await _judge_overlaps(connection, finding, group, whole, people, others, alone, spread)


def _judge_devices(
    finding: Finding, whole: Whole, chosen: Chosen, parts: Mapping[str, LookSeries]
) -> tuple[Spread, dict[str, LookSeries]]:
    """Devices with a fault that few others have are taken out, and named; when the rest is calm, they explain
    everything.
    """
    window = finding.window
    since = finding.looks.starts[-min(WINDOWS[window], len(finding.looks))]
    own = {device: _evidence_since(finding, series, since) for device, series in parts.items()}
    faults = {device: found for device, series in parts.items() if (found := _faults(finding, series))}
    present = {device for device in chosen.drawn if device in parts and parts[device].starts[-1] >= since}
    having = Counter(fault for found in faults.values() for fault in found)
    drawn = Counter(fault for device in present for fault in faults.get(device, ()))
    alone = {d: parts[d] for d, f in faults.items() if having[f[0]] == 1 or drawn[f[0]] < len(present) / 2}
    rest = whole.less(list(alone.values()), alone.keys()) if alone else finding.looks
    explained = "devices" if alone and _is_calm(finding, rest) else ""
    return Spread(rest, explained, _shares(own), tuple(faults)), alone


async def _others(connection: AsyncConnection, finding: Finding, group: Group) -> dict[str, LookSeries]:
    """Every other group that alarms by itself."""
    since = finding.looks.starts[0]
    names = [
        name for name in await looks.scopes_since(connection, group.manifest_sha256, since) if name != group.device
    ]
    return await looks.series_of(connection, finding.layout, group.manifest_sha256, names[:MAX_GROUPS], since)


def _judge_groups(
    finding: Finding,
    whole: Whole,
    people: Population,
    groups: Mapping[str, LookSeries],
    alone: Mapping[str, LookSeries],
    spread: Spread,
) -> Spread:
    """Whether alarming groups of a kind, a minority, explain the fleet: of several kinds those with fewest rows."""
    kinds: dict[str, list[str]] = {}
    for name in groups:
        kinds.setdefault(name.partition("=")[0], []).append(name)
    explaining: list[tuple[int, tuple[str, ...], LookSeries]] = []
    for names in kinds.values():
        # Looks of a kind that is no longer grouped by stay for a while: nobody knows whose they are.
        bad = [name for name in names if people.members(name) and not _is_calm(finding, groups[name])]
        behind = sum(len(people.members(name)) for name in bad)
        if not bad or len(names) < 2 or behind >= len(people.rows) / 2:
            continue
        gone = {device for name in bad for device in people.members(name)}
        also = [series for device, series in alone.items() if device not in gone]
        rest = whole.less([*(groups[name] for name in bad), *also], gone | alone.keys())
        if _is_calm(finding, rest):
            explaining.append((sum(int(groups[name].rows.sum()) for name in bad), tuple(bad), rest))
    if not explaining:
        return spread
    _, bad_ones, left = min(explaining, key=lambda one: one[:2])
    return replace(spread, rest=left, explained=", ".join(bad_ones))


async def _judge_overlaps(
    connection: AsyncConnection,
    finding: Finding,
    group: Group,
    whole: Whole,
    people: Population,
    others: Mapping[str, LookSeries],
    alone: Mapping[str, LookSeries],
    spread: Spread,
) -> Spread:
    """Whether another group explains this one."""
    own = set(people.members(group.device))
    for name, series in others.items():
        both = sorted(own & set(people.members(name)))
        if not both or len(both) > MAX_LOOKED or await asyncio.to_thread(_is_calm, finding, series):
            continue
        since = finding.looks.starts[0]
        parts = await looks.series_of(connection, finding.layout, group.manifest_sha256, both, since)
        also = [series for device, series in alone.items() if device not in both]
        rest = whole.less([*parts.values(), *also], {*both, *alone})
        if not await asyncio.to_thread(_is_calm, finding, rest):
            continue
        theirs = without(series, list(parts.values()))
        mutual = await asyncio.to_thread(_is_calm, finding, theirs)
        if not mutual or _goes_first(name, group.device, people):
            return replace(spread, rest=rest, explained=name)
    return spread


def in_common(affected: Collection[str], group: Group, people: Population) -> tuple[Common, ...]:
    """What most of the affected devices have and most others have not, the most telling first."""
    behind = set(affected) & set(people.rows)
    others = set(people.rows) - behind
    if len(behind) < 2 or not others:
        return ()
    names = {name for device in behind for name in people.groups_of(device)} - {group.device}
    found = []
    for name in sorted(names):
        having = set(people.members(name))
        one = Common(name, len(behind & having), len(behind), len(others & having), len(others))
        if one.behind >= MOST_BEHIND * one.behind_all and one.others <= FEW_OTHERS * one.others_all:
            found.append(one)
    return tuple(sorted(found, key=lambda c: (c.others / c.others_all - c.behind / c.behind_all, c.group)))


def _goes_first(name: str, other: str, people: Population) -> bool:
    def place(scope: str) -> tuple[int, str]:
        kind = scope.partition("=")[0]
        return (people.order.index(kind) if kind in people.order else len(people.order), scope)

    return place(name) < place(other)


def _is_calm(finding: Finding, series: LookSeries) -> bool:
    return bool(strength(finding.layout, series, finding.kind).max() < finding.threshold)


def _evidence_since(finding: Finding, series: LookSeries, since: float) -> float:
    """The strongest evidence of the device's looks from then on, as one."""
    latest = series.counts[[start >= since for start in series.starts]]
    return float(strength(finding.layout, latest.sum(axis=0, keepdims=True), finding.kind).max())


def _faults(finding: Finding, series: LookSeries) -> tuple[str, ...]:
    """What the device alarms on by itself, the strongest first; nothing when it does not."""
    if finding.kind == "drift":
        found = drift_by_name(finding.layout, series)
        alarming = [(-value, name) for name, value in found.items() if value >= finding.threshold]
        return tuple(name for _, name in sorted(alarming))
    if _is_calm(finding, series):
        return ()
    verdict = judge(finding.layout, series, finding.rate)
    return tuple(f"{rate.name} {rate.problem}" for rate in verdict.poor)


def _shares(own: Mapping[str, float]) -> tuple[DeviceShare, ...]:
    total = sum(max(value, 0.0) for value in own.values())
    ranked = sorted(own.items(), key=lambda item: (-item[1], item[0]))[:MAX_SHOWN]
    return tuple(DeviceShare(device, max(value, 0.0) / total if total else 0.0, value) for device, value in ranked)
