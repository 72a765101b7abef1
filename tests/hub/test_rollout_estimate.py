"""How long a rollout will take: a walk through its groups, its rate and its windows."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.rollouts.estimate import Course, walk
from cloud_hub.rollouts.maintenance import MaintenanceWindow, next_open
from cloud_hub.rollouts.rate import Rate

NIGHT = MaintenanceWindow.parse("02:00-04:00")
NOON = datetime.fromisoformat("2026-11-21T12:00Z").timestamp()
HOUR_S = 3600.0


def test_without_rate_or_windows_a_group_takes_as_long_as_a_device_and_its_soak() -> None:
    found = walk([{"": 10}, {"": 90}], Course(device_s=60.0, soak_s=600.0), 0.0)
    assert found is not None
    assert [(one.begins_at, one.assigned_at, one.done_at) for one in found] == [(0, 0, 60), (660, 660, 720)]


def test_a_rate_spreads_a_group_over_time_and_growth_shortens_it() -> None:
    steady = walk([{"": 1200}], Course(rate=Rate(60.0)), 0.0)
    assert steady is not None
    assert steady[-1].assigned_at == pytest.approx(1200)
    grown = walk([{"": 1200}], Course(rate=Rate(60.0, factor=2.0, after=300, max_per_minute=240.0)), 0.0)
    assert grown is not None
    # 300 at one a second, 300 at two, and then four a second.
    assert grown[-1].assigned_at == pytest.approx(300 + 150 + 600 / 4)


def test_devices_wait_for_the_night_where_they_are() -> None:
    found = walk([{"Europe/Berlin": 5, "Asia/Tokyo": 5}], Course((NIGHT,)), NOON)
    assert found is not None
    tokyo = datetime.fromisoformat("2026-11-22T02:00+09:00").timestamp()
    berlin = datetime.fromisoformat("2026-11-22T02:00+01:00").timestamp()
    assert (found[0].begins_at, found[0].assigned_at) == (tokyo, berlin)


def test_what_does_not_fit_into_one_night_goes_on_in_the_next() -> None:
    found = walk([{"UTC": 300}], Course((NIGHT,), Rate(2.0)), NOON)
    assert found is not None
    # 240 in the first two hours, 60 in half an hour of the second night.
    assert found[0].assigned_at - found[0].begins_at == pytest.approx(24 * HOUR_S + 0.5 * HOUR_S)


def test_a_rollout_of_many_years_is_not_walked_through() -> None:
    weekly = MaintenanceWindow.parse("sun 02:00-02:10")
    assert walk([{"UTC": 1_000_000}], Course((weekly,), Rate(1.0)), NOON) is None
    assert walk([{"UTC": 2}, {"UTC": 2}], Course((NIGHT,), Rate(1e-12)), NOON) is None
    assert walk([{"": 2}, {"": 2}], Course((), Rate(1e-300)), NOON) is None


def test_nobody_takes_no_time() -> None:
    found = walk([{}], Course((NIGHT,), Rate(1.0), 60.0), NOON)
    assert found is not None
    assert found[0].begins_at == found[0].assigned_at == NOON


groups = st.lists(
    st.dictionaries(st.sampled_from(["", "Asia/Tokyo", "Europe/Berlin"]), st.integers(0, 5000)), min_size=1, max_size=4
)
rates = st.none() | st.builds(
    Rate, st.floats(0.5, 1000), factor=st.floats(1, 3), after=st.integers(1, 1000), max_per_minute=st.just(5000.0)
)
windows = st.sampled_from([(), (NIGHT,), (NIGHT, MaintenanceWindow.parse("sat,sun 00:00-24:00"))])


@given(groups, rates, windows, st.floats(0, 3600), st.floats(0, 3600))
def test_groups_follow_each_other_inside_windows_and_never_faster_than_the_rate(
    sizes: list[dict[str, int]], rate: Rate | None, open_: tuple[MaintenanceWindow, ...], device_s: float, soak_s: float
) -> None:
    found = walk(sizes, Course(open_, rate, device_s, soak_s), NOON)
    if found is None:
        return
    at, given_ = NOON, 0
    for size, times in zip(sizes, found, strict=True):
        assert at <= times.begins_at <= times.assigned_at <= times.done_at
        assert times.done_at == pytest.approx(times.assigned_at + device_s)
        if sum(size.values()):
            spans = [next_open(open_, name, times.begins_at) for name, count in size.items() if count]
            assert any(span is not None and span[0] <= times.begins_at for span in spans)
        if rate is not None:
            least = sum(size.values()) * 60 / rate.speed(given_ + sum(size.values()))
            assert times.assigned_at - times.begins_at >= least - 1
        given_ += sum(size.values())
        at = times.done_at + soak_s
