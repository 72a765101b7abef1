"""How long a rollout will take, if every device takes as long as devices usually do and nothing fails. Pure.

A walk through the plan in time: who may be assigned now (windows), how fast (rate), how long devices then take, how
long a group soaks. People and comparisons take as long as they take, so approvals and gates are not in it. Called by
`preview`, and for the rest of a running rollout by whoever shows one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from cloud_hub.rollouts.maintenance import MaintenanceWindow, next_open
from cloud_hub.rollouts.rate import Rate

MAX_STEPS: Final = 5000
_GROWTH_STEPS: Final = 200  # a rate that grows with each device is taken as one that grows now and then
_NOBODY: Final = 1e-6
_MOST_S: Final = 50 * 366 * 86_400.0  # beyond that nobody plans, and calendars end


class GroupTime(msgspec.Struct, frozen=True):
    """When the first device of a group is assigned, when the last, and when the last is verified (epoch seconds)."""

    begins_at: float
    assigned_at: float
    done_at: float


@dataclass(frozen=True)
class Course:
    """What holds for every group; without a rate all devices whose window is open are assigned at once."""

    windows: tuple[MaintenanceWindow, ...] = ()
    rate: Rate | None = None
    device_s: float = 0.0
    soak_s: float = 0.0


def walk(groups: Sequence[Mapping[str, int]], course: Course, now: float) -> list[GroupTime] | None:
    """When each group comes; a group is its number of devices by time zone.

    None where it would take more turns than can be walked through, or more than fifty years.
    """
    calendar, at, given, found = _Calendar(course.windows, now + _MOST_S), now, 0.0, []
    for group in groups:
        times = _assigned(group, course, calendar, at, given)
        if times is None:
            return None
        begins, assigned = times
        given += sum(group.values())
        found.append(GroupTime(begins, assigned, assigned + course.device_s))
        at = found[-1].done_at + course.soak_s
    return found


class _Calendar:
    """Openings by time zone, each found once while the walk passes through it."""

    def __init__(self, windows: Sequence[MaintenanceWindow], end: float) -> None:
        self.end = end
        self._windows = windows
        self._spans: dict[str, tuple[float, float]] = {}

    def span(self, timezone: str, at: float) -> tuple[float, float] | None:
        known = self._spans.get(timezone)
        if known is None or at >= known[1]:
            known = next_open(self._windows, timezone, at)
            if known is not None:
                self._spans[timezone] = known
        return known


def _assigned(
    group: Mapping[str, int], course: Course, calendar: _Calendar, at: float, given: float
) -> tuple[float, float] | None:
    """When the first and the last of a group are assigned, from `at` on."""
    left = {timezone: float(count) for timezone, count in group.items() if count}
    begins: float | None = None
    for _ in range(MAX_STEPS):
        if at > calendar.end:
            return None
        if not left:
            return at if begins is None else begins, at
        spans = {timezone: calendar.span(timezone, at) for timezone in left}
        known = {timezone: span for timezone, span in spans.items() if span is not None}
        if len(known) < len(spans):
            return None
        ready = [timezone for timezone, span in known.items() if span[0] <= at]
        if not ready:
            at = min(opens for opens, _ in known.values())
            continue
        begins = at if begins is None else begins
        until = min(closes if opens <= at else opens for opens, closes in known.values())
        at, taken = _taken(course.rate, sum(left[timezone] for timezone in ready), at, until, given)
        given += taken
        _take(left, ready, taken)
    return None


def _taken(rate: Rate | None, ready: float, at: float, until: float, given: float) -> tuple[float, float]:
    """How many are assigned before the rate grows or windows change, and when that is."""
    if rate is None:
        return at, ready
    count, speed = ready, rate.speed(int(given)) / 60
    if rate.factor > 1:
        count = min(count, max(rate.after - given % rate.after, ready / _GROWTH_STEPS))
    if at + count / speed > until:
        return until, (until - at) * speed
    return at + count / speed, count


def _take(left: dict[str, float], ready: Sequence[str], count: float) -> None:
    """Takes them away, zone by zone."""
    for timezone in ready:
        taken = min(left[timezone], count)
        left[timezone] -= taken
        count -= taken
        if left[timezone] <= _NOBODY:
            del left[timezone]
