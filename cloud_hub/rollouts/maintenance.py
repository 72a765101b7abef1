"""Maintenance windows: the hours of the week in which a device may be updated, by the clock where it stands. Pure.

A window is open at every instant at which the wall clock of the zone reads a time between its start and its end. So
hours that the clock skips in spring are in no window, and hours that it repeats in autumn are in a window twice. Called
by the rollout engine, once per time zone, and by `preview`. Zones: the IANA database (the tzdata package, or the
system's).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Final, Literal, get_args
from zoneinfo import ZoneInfo

import msgspec

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: Final[tuple[Day, ...]] = get_args(Day)
MAX_WINDOWS: Final = 32
_DAY_S: Final = 86_400
_EPOCH: Final = date(1970, 1, 1)
_STEP_S: Final = _DAY_S  # no zone has changed its offset twice within so short a time since 1970
# Twice a week and a day: one opening may fall into hours, or (Samoa, 2011) into a whole day, that the clock skips.
_HORIZON_S: Final = 16 * _DAY_S
_TEXT: Final = re.compile(
    r"(?:(?P<days>[a-z]{3}(?:[,-][a-z]{3})*) +)?"
    r"(?P<start>[0-9]{2}:[0-9]{2})-(?P<end>[0-9]{2}:[0-9]{2})"
    r"(?: +(?P<zone>\S+))?"
)
_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])|24:00")


class MaintenanceWindow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From `start` to `end` (HH:MM, wall clock) on the days on which it starts; without `days` on every day.

    An end that is not after the start is on the next day. `timezone` is for devices that name none of their own.
    """

    start: str
    end: str
    days: tuple[Day, ...] = ()
    timezone: str = ""

    def __post_init__(self) -> None:
        for name, text in (("start", self.start), ("end", self.end)):
            if _TIME.fullmatch(text) is None:
                raise ValueError(f"window {name}: expected a time such as 02:30, got {text!r:.40}")
        if self.start == "24:00":
            raise ValueError("window start: expected a time before 24:00, which is 00:00 of the next day")
        if self.start == self.end:
            raise ValueError(f"window: expected an end other than its start {self.start}; all day is 00:00-24:00")
        if unknown := [day for day in self.days if day not in DAYS]:
            raise ValueError(f"window days: expected some of {', '.join(DAYS)}, got {unknown[0]!r:.40}")
        if self.timezone and zone(self.timezone) is None:
            raise ValueError(f"window timezone: expected a name such as Europe/Berlin, got {self.timezone!r:.60}")

    @classmethod
    def parse(cls, text: str) -> MaintenanceWindow:
        """Such as `02:00-05:00`, `sat,sun 02:00-05:00` or `mon-fri 22:00-04:00 Europe/Berlin`. Raises ValueError."""
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"window: expected days, hours and maybe a time zone, such as 'sat,sun 02:00-05:00 Europe/Berlin', "
                f"got {text[:60]!r}"
            )
        return cls(match["start"], match["end"], _days(match["days"] or ""), match["zone"] or "")

    def __str__(self) -> str:
        return " ".join(filter(None, (",".join(self.days), f"{self.start}-{self.end}", self.timezone)))

    @property
    def span(self) -> tuple[int, int]:
        """Seconds after the midnight at which its day begins, by the wall clock; the end may lie beyond one day."""
        start, end = _seconds(self.start), _seconds(self.end)
        return start, end if end > start else end + _DAY_S

    def starts_on(self, day: date) -> bool:
        return not self.days or DAYS[day.weekday()] in self.days


@lru_cache(maxsize=1024)
def zone(name: str) -> ZoneInfo | None:
    """The time zone of that name; None for a name that is none. Names come from tags, so they may be anything."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # OSError: the name of a folder of the database, or one that is too long
        return None


def next_open(windows: Sequence[MaintenanceWindow], timezone: str, now: float) -> tuple[float, float] | None:
    """When some window is open, from `now` on: opens_at (at most `now` when one is open) and closes_at.

    `timezone` is the device's own and goes before the windows'; one that is unknown counts as none. Without windows it
    is always open. None when none opens within two weeks.
    """
    return _next_open(tuple(windows), timezone, now) if windows else (now, math.inf)


@lru_cache(maxsize=1024)  # thousands of devices of a zone ask at the same moment
def _next_open(windows: tuple[MaintenanceWindow, ...], timezone: str, now: float) -> tuple[float, float] | None:
    begin, horizon = math.floor(now) - 2 * _DAY_S, math.floor(now) + _HORIZON_S
    spans = sorted(span for window in windows for span in _openings(window, timezone, begin, horizon))
    for opens, closes in _merged(spans):
        if closes > now:
            return opens, closes
    return None


def _days(text: str) -> tuple[Day, ...]:
    """`sat,sun` and `mon-fri`, in the order of the week; `fri-mon` goes over its end."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        names = part.split("-")
        if len(names) > 2 or any(name not in DAYS for name in names):
            raise ValueError(f"window days: expected some of {', '.join(DAYS)}, got {part[:40]!r}")
        first, last = (DAYS.index(name) for name in (names[0], names[-1]))
        found.update(index % len(DAYS) for index in range(first, last + 1 + (len(DAYS) if last < first else 0)))
    return tuple(DAYS[index] for index in sorted(found))


def _seconds(text: str) -> int:
    return int(text[:2]) * 3600 + int(text[3:]) * 60


def _openings(window: MaintenanceWindow, timezone: str, begin: int, horizon: int) -> Iterator[tuple[int, int]]:
    """Every opening of one window that touches the time from `begin` to `horizon`, piece by piece of one offset."""
    place = zone(timezone) or zone(window.timezone) or UTC
    start, end = window.span
    for since, until, offset in _pieces(place, begin, horizon):
        day = datetime.fromtimestamp(since + offset, UTC).date() - timedelta(days=1)  # it may reach over midnight
        midnight = (day - _EPOCH).days * _DAY_S - offset
        while midnight < until:
            opens, closes = max(midnight + start, since), min(midnight + end, until)
            if window.starts_on(day) and opens < closes:
                yield opens, closes
            day, midnight = day + timedelta(days=1), midnight + _DAY_S


def _pieces(place: tzinfo, begin: int, horizon: int) -> Iterator[tuple[int, int, int]]:
    """Spans of time in which the zone's offset (seconds east of UTC) stays the same, in order and without gaps."""
    since, at, offset = begin, begin, _offset(place, begin)
    while at < horizon:
        following = min(at + _STEP_S, horizon)
        if (other := _offset(place, following)) != offset:
            change = _change(place, at, following)
            yield since, change, offset
            since, offset = change, other
        at = following
    yield since, horizon, offset


def _change(place: tzinfo, before: int, after: int) -> int:
    """The first second with the offset that holds at `after`, where it changes once in between."""
    offset = _offset(place, after)
    while after - before > 1:
        middle = (before + after) // 2
        if _offset(place, middle) == offset:
            after = middle
        else:
            before = middle
    return after


def _offset(place: tzinfo, at: int) -> int:
    shift = datetime.fromtimestamp(at, place).utcoffset()
    return 0 if shift is None else round(shift.total_seconds())


def _merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order of their begin, with those that touch or overlap made one."""
    found: list[tuple[int, int]] = []
    for opens, closes in spans:
        if found and opens <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], closes)
        else:
            found.append((opens, closes))
    return found
