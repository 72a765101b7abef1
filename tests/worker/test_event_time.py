"""Windows by event time: which window a row falls into, when it is sent, and what a set clock does to it."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.endpoint.counters import Counters
from agent.watching.periods import FUTURE_S, MAX_AGE_S, MAX_EARLY, MAX_OPEN
from agent.watching.windows import Subject, Windows
from modules.manifest import Lineage, Manifest, Runtime, SamplingPolicy
from modules.tensors import TensorSpec
from modules.windows import STILL_ROWS, Numeric, ReferenceProfile, Window, unpack_counts
from support.waiting import until

SPEC = TensorSpec("x", "FP32", (-1, 1))
MANIFEST = Manifest("m", 1, "pi", Lineage("m", 1), (SPEC,), (), (), Runtime(model=""))
FEATURE = Numeric("x", "x", (0.0, 1.0, 2.0), (5, 5, 0, 0, 0), 1.0, 1.0)
REFERENCE = ReferenceProfile(10, (FEATURE,))
BASE = 1_800_000_000.0  # a multiple of the window's length


class World:
    """A worker's windows under clocks that the test sets."""

    def __init__(self, window_s: float = 100.0, reference: ReferenceProfile | None = REFERENCE, **policy: Any) -> None:
        self.now, self.ran = BASE + 10.0, 5000.0
        self.sent: list[Window] = []
        self.failures: list[Exception] = []
        self.counters = Counters()
        self.policy = SamplingPolicy(window_s=window_s, **policy)
        self.takes = True
        self.windows = Windows(
            Subject(MANIFEST, "d" * 64, reference, "r" * 64), self.policy, self.counters, lambda: self.now,
            lambda: self.ran, self._send, self.failures.append,
        )  # fmt: skip

    def _send(self, window: Window) -> bool:
        self.sent.append(window)
        return self.takes

    def add(self, value: float = 0.5, rows: int = 1, at: float = 0.0) -> None:
        self.windows.add(rows, {"x": np.full((rows, 1), value, np.float32)}, {}, at)

    def wait(self, seconds: float) -> list[Window]:
        """Time goes on; what was sent by then."""
        self.now, self.ran = self.now + seconds, self.ran + seconds
        return self.look()

    def set_clock(self, by: float) -> list[Window]:
        self.now += by
        return self.look()

    def look(self) -> list[Window]:
        self.windows.look()
        return self.taken()

    def stop(self) -> list[Window]:
        asyncio.run(self.windows.stop())
        return self.taken()

    def taken(self) -> list[Window]:
        sent, self.sent = self.sent, []
        return sent


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    assert world.failures == []


def cells(window: Window) -> list[int]:
    return unpack_counts(window.counts, FEATURE.cells)


def test_without_event_times_a_window_is_sent_as_soon_as_it_ends(world: World) -> None:
    world.add(0.5, 3)
    assert world.wait(89.0) == []
    (window,) = world.wait(1.0)
    assert (window.start, window.end, window.rows, window.late) == (BASE, BASE + 100, 3, 0)
    assert cells(window) == [3, 0, 0, 0, 0]
    assert world.wait(100.0) == []  # nothing happened in it


def test_a_row_falls_into_the_window_of_its_event_time_within_the_grace(world: World) -> None:
    world.add(0.5, at=BASE + 50)
    assert world.wait(100.0) == []  # the time of grace, because there are event times
    world.add(1.5, at=BASE + 99.9)
    world.add(1.5, at=BASE + 100.0)
    (first,) = world.wait(20.0)
    assert (first.start, first.end, first.rows, first.late, cells(first)) == (BASE, BASE + 100, 2, 0, [1, 1, 0, 0, 0])
    (second,) = world.wait(100.0)
    assert (second.start, second.rows, cells(second)) == (BASE + 100, 1, [0, 1, 0, 0, 0])


def test_a_row_that_comes_too_late_is_sent_in_a_part_of_its_own(world: World) -> None:
    world.add(0.5, at=BASE + 50)
    (first,) = world.wait(121.0)
    world.add(1.5, 2, at=BASE + 20)
    world.add(0.5)
    late, current = world.wait(100.0) + world.stop()
    assert (late.start, late.end, late.rows, late.late, cells(late)) == (BASE, BASE + 100, 2, 2, [0, 2, 0, 0, 0])
    assert (current.rows, current.late) == (1, 0)
    assert len({first.id, late.id, current.id}) == 3


def test_a_window_that_ended_before_anybody_said_an_event_time_is_closed(world: World) -> None:
    world.add()
    assert len(world.wait(100.0)) == 1
    world.add(at=BASE + 50)
    (late,) = world.stop()
    assert (late.start, late.rows, late.late) == (BASE, 1, 1)


@pytest.mark.parametrize("grace_s", [0.0, 7.0, 100.0])
def test_the_policy_says_how_long_a_window_stays_open(grace_s: float) -> None:
    world = World(grace_s=grace_s)
    world.add(at=BASE + 1)
    if grace_s:
        assert world.wait(90.0 + grace_s - 0.5) == []
        (window,) = world.wait(0.5)
    else:
        (window,) = world.wait(90.0)
    assert (window.start, window.rows) == (BASE, 1)


@pytest.mark.parametrize(
    "at", [math.nan, math.inf, -math.inf, 1e300, -1e300, 1.0, BASE + 10 + FUTURE_S + 1, BASE + 10 - MAX_AGE_S - 1]
)
def test_an_event_time_that_cannot_be_is_counted_as_arrival(world: World, at: float) -> None:
    world.add(0.5, 2, at=at)
    (window,) = world.stop()
    assert (window.start, window.rows, window.late) == (BASE, 2, 0)
    assert world.counters.odd_times == 2


def test_a_sensor_whose_clock_is_a_little_ahead_is_counted_now(world: World) -> None:
    world.add(at=BASE + 10 + FUTURE_S)
    world.add(at=BASE + 65)
    (window,) = world.stop()
    assert (window.start, window.rows) == (BASE, 2)
    assert world.counters.odd_times == 0


def test_few_windows_are_open_at_once_and_no_row_is_lost() -> None:
    world = World()
    drawn = random.Random(1)
    times = [BASE - drawn.uniform(0, 6 * 86_400) for _ in range(2000)]
    for at in times:
        world.add(0.5, at=at)
        assert len(world.windows._periods._others) <= MAX_OPEN
    sent = world.stop()
    assert sum(window.rows for window in sent) == sum(sum(cells(window)) for window in sent) == len(times)
    assert len(sent) <= MAX_EARLY + MAX_OPEN + 1
    assert world.counters.odd_times == len(times) - sum(window.late for window in sent)
    assert all(window.end - window.start <= 100 for window in sent)


def test_rows_in_order_of_an_old_day_make_one_window_per_period() -> None:
    world = World()
    for hour in range(24):
        world.add(0.5, 5, at=BASE - 86_400 + hour * 3600)
    late = [window for window in world.stop() if window.late]
    assert [(window.start, window.rows) for window in late] == [(BASE - 86_400 + h * 3600, 5) for h in range(24)]


STEPS = st.one_of(
    st.tuples(st.just("arrive"), st.integers(1, 5)),
    st.tuples(st.just("happened"), st.floats(-2000, 200)),
    st.tuples(st.just("wait"), st.floats(0, 150)),
    st.tuples(st.just("set"), st.floats(-4e8, 4e8)),
    st.tuples(st.just("policy"), st.sampled_from([50.0, 100.0, 300.0])),
)


@given(st.lists(STEPS, max_size=60))
@settings(deadline=None, max_examples=150)
def test_whatever_happens_each_row_is_in_one_window_and_none_is_too_long(steps: list[tuple[str, Any]]) -> None:
    world = World()
    sent: list[Window] = []
    rows, longest = 0, 300.0
    for step, value in steps:
        if step == "arrive":
            world.add(0.5, value)
            rows += value
        elif step == "happened":
            world.add(0.5, at=world.now + value)
            rows += 1
        elif step == "wait":
            sent += world.wait(value)
        elif step == "set":
            sent += world.set_clock(value)
        else:
            world.windows.set_policy(SamplingPolicy(window_s=value))
    sent += world.stop()
    assert world.failures == []
    assert sum(window.rows for window in sent) == sum(sum(cells(window)) for window in sent) == rows
    assert all(0 <= window.end - window.start <= longest and 0 <= window.late <= window.rows for window in sent)
    assert len({window.id for window in sent}) == len(sent)


def test_a_clock_set_back_by_a_year_ends_the_window_and_is_told(world: World) -> None:
    world.add(0.5, 3)
    world.ran += 40.0
    (before,) = world.set_clock(-365 * 86_400.0 + 40.0)
    assert (before.rows, before.clock_jumps) == (3, 1)
    assert before.clock_jump_s == pytest.approx(-365 * 86_400, abs=1)
    assert (before.start, before.end) == (world.now - 40.0, world.now)
    world.add(1.5, 2)
    (after,) = world.wait(100.0)
    assert (after.rows, after.clock_jumps, cells(after)) == (2, 0, [0, 2, 0, 0, 0])
    assert 0 < after.end - after.start <= 100
    assert after.start <= world.now


def test_a_clock_set_ahead_makes_no_window_of_a_year(world: World) -> None:
    world.add(0.5, 3)
    (before,) = world.set_clock(365 * 86_400.0)
    assert (before.rows, before.clock_jumps) == (3, 1)
    assert 0 <= before.end - before.start <= 100
    world.add()
    (after,) = world.wait(100.0)
    assert after.end - after.start == 100
    assert after.end <= world.now


def test_rows_after_the_clock_was_set_back_a_little_are_not_added_to_those_before(world: World) -> None:
    world.add(0.5, 3)
    (before,) = world.set_clock(-5.0)
    world.add(0.5, 4)
    (after,) = world.stop()
    assert (before.rows, after.rows) == (3, 4)
    assert before.id != after.id


def test_a_clock_that_is_slewed_has_not_jumped(world: World) -> None:
    for _ in range(100):
        world.now += 0.05
        world.wait(0.9)
    assert sum(window.clock_jumps for window in world.stop()) == 0


def test_jumps_while_nothing_is_predicted_are_told_with_the_next_window(world: World) -> None:
    assert world.set_clock(500.0) == []
    assert world.set_clock(-7200.0) == []
    world.add()
    (window,) = world.stop()
    assert window.clock_jumps == 2
    assert window.clock_jump_s == pytest.approx(-7200.0)


def test_errors_and_latency_belong_to_the_window_in_which_they_were(world: World) -> None:
    world.counters.answered(500)
    world.counters.answered(404)
    world.counters.latency.add(5)
    (first,) = world.wait(90.0)
    assert (first.rows, first.errors, first.refused, sum(unpack_counts(first.latency, 32))) == (0, 1, 1, 1)
    world.counters.answered(500)
    (second,) = world.wait(100.0)
    assert (second.errors, second.refused, sum(unpack_counts(second.latency, 32))) == (1, 0, 0)


def test_another_length_of_windows_closes_the_ones_that_are_open(world: World) -> None:
    world.add(0.5, 3)
    world.windows.set_policy(SamplingPolicy(window_s=60.0))
    (window,) = world.taken()
    assert (window.start, window.end, window.rows) == (BASE, BASE + 10, 3)
    world.add()
    (window,) = world.wait(50.0)
    assert (window.start, window.end) == (BASE, BASE + 60)


def test_another_rate_of_samples_closes_nothing(world: World) -> None:
    world.add()
    world.windows.set_policy(SamplingPolicy(window_s=100.0, rate=0.5))
    assert world.taken() == []


def test_a_sensor_that_stands_still_is_seen_and_one_that_moves_is_not() -> None:
    features = tuple(Numeric(f"x{i}", "x", (0.0, 9.0), (1, 0, 0, 0), 1.0, 1.0, index=i) for i in range(9))
    spec = TensorSpec("x", "FP32", (-1, 9))
    manifest = Manifest("m", 1, "pi", Lineage("m", 1), (spec,), (), (), Runtime(model=""))
    sent: list[Window] = []
    subject = Subject(manifest, "d", ReferenceProfile(1, features), "r")

    def send(window: Window) -> bool:
        sent.append(window)
        return True

    windows = Windows(subject, SamplingPolicy(), Counters(), lambda: BASE, lambda: 1.0, send, lambda _: None)
    rows = np.tile(np.arange(9, dtype=np.float32), (STILL_ROWS, 1))
    rows[:, 1] = np.linspace(0, 1, STILL_ROWS)
    rows[3, 2] = np.nan  # one too few
    rows[:, 3] = np.nan
    rows[:, 4] = np.inf
    for row in rows:
        windows.add(1, {"x": row[np.newaxis]}, {})
    asyncio.run(windows.stop())
    windows.add(1, {"x": rows[:1]}, {})
    asyncio.run(windows.stop())
    first, second = sent
    assert first.still == bytes([0b11110001, 0b1])
    assert second.still == b""


def test_what_cannot_be_counted_raises_nothing_and_the_rest_is_counted() -> None:
    world = World()
    odd: list[Any] = [
        np.array([["a"]], object), np.zeros((1, 7), np.float32), np.zeros((0, 1), np.float32), np.float32(1.0),
        np.zeros((1, 1, 1, 1), np.float64), None,
    ]  # fmt: skip
    for array in odd:
        world.windows.add(1, {"x": array}, {})
        world.add(0.5)
    world.windows.add(1, {}, {})
    (window,) = world.stop()
    assert window.rows == 2 * len(odd) + 1
    assert len(odd) <= sum(cells(window)) <= window.rows
    assert world.failures


def test_a_window_that_is_not_taken_is_lost_and_the_next_one_goes_on(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.takes = False
    world.add()
    world.wait(90.0)
    assert "could not be sent" in caplog.text
    world.takes = True
    world.add(0.5, 2)
    assert [window.rows for window in world.stop()] == [2]


async def test_windows_are_sent_on_time_and_the_rest_at_the_end() -> None:
    world = World(window_s=100.0)
    world.windows.start()
    world.add()
    world.now, world.ran = world.now + 95, world.ran + 95
    world.windows.set_policy(SamplingPolicy(window_s=0.05))  # closes what is open
    world.add()
    world.now, world.ran = world.now + 1, world.ran + 1
    await until(lambda: len(world.sent) == 2, "both windows", 20)
    world.add(at=world.now - 50)
    world.add()
    await world.windows.stop()
    assert [window.rows for window in world.sent] == [1, 1, 1, 1]
