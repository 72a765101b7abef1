"""Maintenance windows: open when the clock on the wall reads a time in them, whatever the zone does."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.rollouts.maintenance import DAYS, MaintenanceWindow, next_open, zone

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/St_Johns",  # half an hour beside the hour
    "Australia/Lord_Howe",  # summer time is half an hour
    "Pacific/Apia",  # left out a whole Friday
    "America/Sao_Paulo",  # changed at midnight, so some days began at one o'clock
    "Asia/Kathmandu",
    "Africa/Casablanca",
)
times = st.integers(0, 24 * 60 - 1).map(lambda minute: f"{minute // 60:02}:{minute % 60:02}")
some_days = st.lists(st.sampled_from(DAYS), unique=True, max_size=7).map(
    lambda days: tuple(day for day in DAYS if day in days)
)
windows = (
    st.tuples(times, times | st.just("24:00"), some_days, st.sampled_from(("", *ZONES)))
    .filter(lambda parts: parts[0] != parts[1])
    .map(lambda parts: MaintenanceWindow(*parts))
)
# From 2005 to 2035, and often within a day of a change of some zone's clock.
CHANGES = ("2026-03-29T01:00Z", "2026-10-25T01:00Z", "2011-12-30T10:00Z", "2018-11-04T03:00Z")
moments = st.integers(1_104_534_400, 2_051_222_400) | st.tuples(
    st.sampled_from([int(datetime.fromisoformat(text).timestamp()) for text in CHANGES]), st.integers(-86_400, 86_400)
).map(sum)


def reads(window: MaintenanceWindow, timezone: str, at: float) -> bool:
    """Whether the clock on the wall reads a time in the window: said in another way than the code does."""
    local = datetime.fromtimestamp(at, ZoneInfo(timezone or window.timezone or "UTC"))
    now, (start, end) = local.strftime("%H:%M"), (window.start, window.end)
    today, yesterday = (DAYS[(local.date() - timedelta(days=back)).weekday()] for back in (0, 1))
    if start < end:
        return start <= now < end and (not window.days or today in window.days)
    after = now >= start and (not window.days or today in window.days)
    return after or (now < end and (not window.days or yesterday in window.days))


def at(text: str, timezone: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(timezone)).timestamp()


def local(moment: float, timezone: str) -> str:
    return datetime.fromtimestamp(moment, ZoneInfo(timezone)).strftime("%Y-%m-%d %H:%M %Z")


@given(st.lists(windows, min_size=1, max_size=3), st.sampled_from(("", *ZONES)), moments, st.data())
def test_a_window_is_open_exactly_while_the_wall_clock_reads_a_time_in_it(
    chosen: list[MaintenanceWindow], timezone: str, now: int, data: st.DataObject
) -> None:
    def is_open(moment: float) -> bool:
        return any(reads(window, timezone, moment) for window in chosen)

    found = next_open(chosen, timezone, now)
    assert found is not None
    opens, closes = found
    assert now < closes
    assert opens < closes
    assert is_open(now) == (opens <= now)
    assert is_open(max(opens, now))
    assert is_open(closes - 1)
    assert not is_open(closes) or closes >= now + 16 * 86_400  # windows that follow each other are open for ever
    assert is_open(data.draw(st.integers(int(max(opens, now)), int(closes) - 1)))
    if opens > now:
        assert not is_open(opens - 1)
        assert not is_open(data.draw(st.integers(now, int(opens) - 1)))


@given(windows)
def test_a_window_reads_back_as_it_was_written(window: MaintenanceWindow) -> None:
    assert MaintenanceWindow.parse(str(window)) == window
    assert msgspec.json.decode(msgspec.json.encode(window), type=MaintenanceWindow) == window


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_starts() -> None:
    window = MaintenanceWindow.parse("fri 22:00-04:00")
    saturday_night = at("2026-11-21 01:00", "Europe/Berlin")
    found = next_open([window], "Europe/Berlin", saturday_night)
    assert found is not None
    assert [local(moment, "Europe/Berlin") for moment in found] == ["2026-11-20 22:00 CET", "2026-11-21 04:00 CET"]
    friday_night = next_open([window], "Europe/Berlin", at("2026-11-20 01:00", "Europe/Berlin"))
    assert friday_night == found


def test_the_hour_that_spring_leaves_out_is_in_no_window_and_the_window_shrinks() -> None:
    window = MaintenanceWindow.parse("02:30-05:00")
    found = next_open([window], "Europe/Berlin", at("2027-03-28 00:00", "Europe/Berlin"))
    assert found is not None
    assert [local(moment, "Europe/Berlin") for moment in found] == ["2027-03-28 03:00 CEST", "2027-03-28 05:00 CEST"]
    swallowed = next_open([MaintenanceWindow.parse("02:10-02:50")], "Europe/Berlin", at("2027-03-28 00:00", "UTC"))
    assert swallowed is not None
    assert local(swallowed[0], "Europe/Berlin") == "2027-03-29 02:10 CEST"


def test_the_hour_that_autumn_repeats_is_in_the_window_twice() -> None:
    found = next_open([MaintenanceWindow.parse("02:00-04:00")], "Europe/Berlin", at("2026-10-25 00:00", "UTC"))
    assert found is not None
    assert found[1] - found[0] == 3 * 3600
    night = next_open([MaintenanceWindow.parse("sat 22:00-04:00")], "Europe/Berlin", at("2026-10-24 12:00", "UTC"))
    assert night is not None
    assert night[1] - night[0] == 7 * 3600


def test_the_device_s_own_zone_goes_before_the_window_s_and_one_that_is_none_counts_as_none() -> None:
    window = MaintenanceWindow.parse("02:00-05:00 Asia/Tokyo")
    now = at("2026-11-21 12:00", "UTC")
    opens = {name: (next_open([window], name, now) or (0, 0))[0] for name in ("", "Europe/Berlin", "Mars/Base", "..")}
    assert local(opens["Europe/Berlin"], "Europe/Berlin") == "2026-11-22 02:00 CET"
    assert local(opens[""], "Asia/Tokyo") == "2026-11-22 02:00 JST"
    assert opens["Mars/Base"] == opens[".."] == opens[""]


def test_without_windows_it_is_always_open() -> None:
    assert next_open([], "Europe/Berlin", 5.0) == (5.0, math.inf)


@pytest.mark.parametrize("name", ["", "Europe", "../../etc/passwd", "/etc/passwd", "a\0b", "x" * 5000, "Nowhere", "."])
def test_a_name_that_is_no_zone_is_none_whatever_it_is(name: str) -> None:
    assert zone(name) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected days, hours"),
        ("2:00-5:00", "expected days, hours"),
        ("02:00-25:00", "window end: expected a time"),
        ("24:00-02:00", "window start"),
        ("02:60-05:00", "window start: expected a time"),
        ("02:00-02:00", "an end other than its start"),
        ("some 02:00-05:00", "expected days, hours"),
        ("xyz 02:00-05:00", "window days"),
        ("mon-tue-wed 02:00-05:00", "window days"),
        ("sat 02:00-05:00 Mars/Base", "window timezone"),
    ],
)
def test_what_is_no_window_is_refused_with_what_was_expected(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MaintenanceWindow.parse(text)


def test_days_may_be_a_range_that_goes_over_the_end_of_the_week() -> None:
    assert MaintenanceWindow.parse("fri-mon,wed 02:00-05:00").days == ("mon", "wed", "fri", "sat", "sun")


def test_an_unknown_day_in_a_plan_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="Invalid enum value 'someday'"):
        msgspec.json.decode(b'{"start": "02:00", "end": "05:00", "days": ["someday"]}', type=MaintenanceWindow)
