"""Probation against what was before: worse counts only where chance does not explain it."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.endpoint.counters import Latency
from agent.latency import above, percentile
from agent.runtimes.past import LATELY_S, Before, Past, Rates, rates
from agent.sandbox.protocol import Stats
from agent.update.compare import CHANCE, MEDIAN, TAIL, Factors, more_errors, slower, surely_more
from agent.update.probation import Seen, Verdict, judge
from modules.manifest import Health


def latency(*milliseconds: float, times: int = 1) -> tuple[int, ...]:
    counts = Latency()
    for one in milliseconds * times:
        counts.add(int(one * 1000))
    return counts.counts()


def stats(requests: int, errors: int = 0, counts: tuple[int, ...] = ()) -> Stats:
    return Stats(requests=requests, errors=errors, latency=counts)


def before(requests: int, errors: int = 0, counts: tuple[int, ...] = (), lately: Rates | None = None) -> Before:
    lived = Rates(requests, errors, counts)
    return Before(7, lived, lately or lived)


@pytest.mark.parametrize(
    ("was", "now", "worse"),
    [
        (before(100_000, 0), stats(1000, 3), True),
        (before(100_000, 0), stats(1000, 2), False),  # two are no rate
        (before(10, 0), stats(1000, 3), False),  # ten requests say little
        (before(10_000, 100), stats(1000, 12), False),
        (before(10_000, 100), stats(1000, 60), True),
        (before(10_000, 100), stats(1000, 22), False),  # more than twice, by chance
        (before(10_000, 5000), stats(1000, 900), False),  # within the factor
        (before(0), stats(1000, 500), False),
    ],
)
def test_more_errors_than_before_count_beyond_the_factor_and_beyond_chance(
    was: Before, now: Stats, worse: bool
) -> None:
    assert bool(more_errors(was, now, 2.0)) is worse
    assert more_errors(was, now, 0.0) == "", "zero does not compare"


def test_a_bad_hour_of_the_old_module_excuses_the_new_one() -> None:
    lately = Rates(1000, 60)
    assert more_errors(before(1_000_000, 60, lately=lately), stats(1000, 60), 2.0) == ""


def test_the_reason_says_both_numbers() -> None:
    text = more_errors(before(10_000, 10), stats(1000, 60), 2.0)
    assert "60 of 1000 requests failed" in text
    assert "of version 7 before it 10 of 10000" in text
    text = slower(
        before(1000, counts=latency(10.0, times=1000)), stats(1000, counts=latency(50.0, times=1000)), 2.0, MEDIAN
    )
    assert "50 of latency is 51.2 ms over 1000 predictions, of version 7 before it 9.73 ms" in text


FAST, SLOW = latency(10.0, times=1000), latency(50.0, times=1000)
LONG_TAIL = latency(*[10.0] * 95, *[200.0] * 5, times=10)


@pytest.mark.parametrize(
    ("was", "now", "worse"),
    [
        (FAST, SLOW, True),
        (FAST, FAST, False),
        (SLOW, FAST, False),
        (FAST, LONG_TAIL, True),  # the 99th percentile alone
        (LONG_TAIL, LONG_TAIL, False),
        (FAST, latency(*[10.0] * 99, 200.0, times=5), False),  # five of five hundred are what one in a hundred gives
        (FAST, latency(50.0, times=49), False),  # too few
        (latency(10.0, times=49), SLOW, False),
        (latency(0.2, times=1000), latency(1.0, times=1000), False),  # five times, and nobody minds
        ((), SLOW, False),
    ],
)
def test_slower_than_before_counts_beyond_the_factor_and_beyond_chance(
    was: tuple[int, ...], now: tuple[int, ...], worse: bool
) -> None:
    found = [slower(before(sum(was), counts=was), stats(sum(now), counts=now), 2.0, at) for at in (MEDIAN, TAIL)]
    assert any(found) is worse
    assert (was, now) != (FAST, LONG_TAIL) or not found[0], "its median is the same"


def test_being_slow_lately_excuses_the_new_module_as_well() -> None:
    was = before(1000, counts=FAST, lately=Rates(1000, 0, SLOW))
    assert not any(slower(was, stats(1000, counts=SLOW), 2.0, at) for at in (MEDIAN, TAIL))


def test_equal_modules_are_told_apart_by_chance_less_often_than_promised() -> None:
    chance, wrong, trials = random.Random(1), 0, 4000
    for _ in range(trials):
        old, new = (sum(chance.random() < 0.02 for _ in range(300)) for _ in range(2))
        wrong += bool(more_errors(before(300, old), stats(300, new), 1.0))
    assert wrong <= CHANCE * trials


@given(st.integers(1, 2000), st.floats(0.001, 0.999), st.data())
def test_what_is_called_surely_more_is_as_rare_as_promised(of: int, share: float, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, of))
    if surely_more(count, of, share):
        logs = (
            math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)
            + k * math.log(share) + (of - k) * math.log1p(-share)
            for k in range(count, of + 1)
        )  # fmt: skip
        assert sum(map(math.exp, logs)) <= CHANCE


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_a_percentile_is_right_to_an_eighth(values: list[int], share: float) -> None:
    counts = Latency()
    for value in values:
        counts.add(value)
    true = sorted(values)[min(len(values) - 1, max(0, math.ceil(share * len(values)) - 1))]
    assert percentile(counts.counts(), share) == pytest.approx(true, rel=0.13, abs=1)
    assert above(counts.counts(), max(values) * 1.2) == 0
    assert above(counts.counts(), min(values) / 1.2) == len(values)


def test_the_last_minutes_are_told_from_the_life() -> None:
    now = 0.0
    past = Past(lambda: now)
    for minute in range(60):
        now = minute * 60.0
        past.note(stats(100 * minute, minute, latency(1.0, times=minute)))
    found = past.before(3, stats(6000, 60, latency(1.0, times=60)))
    assert found.lived == Rates(6000, 60, latency(1.0, times=60))
    assert LATELY_S / 60 * 100 <= found.lately.requests <= 2 * LATELY_S / 60 * 100 + 100
    assert found.lately.predictions == found.lately.errors


def test_a_worker_that_has_just_begun_has_one_past() -> None:
    counted = stats(10, 1, latency(5.0))
    assert Past().before(1, counted) == Before(1, rates(counted), rates(counted))


HEALTH = Health(probation_s=60.0, max_error_rate=1.0)


@pytest.mark.parametrize(
    ("now", "elapsed_s", "verdict", "key"),
    [
        (stats(1000, 100, FAST), 1, Verdict.UNHEALTHY, "more-errors"),
        (stats(1000, 0, SLOW), 59, Verdict.WAITING, ""),  # the first minutes of a worker are not its best
        (stats(1000, 0, SLOW), 60, Verdict.UNHEALTHY, "slower"),
        (stats(1000, 0, FAST), 60, Verdict.HEALTHY, ""),
        (stats(1000, 0, LONG_TAIL), 60, Verdict.WAITING, ""),  # perhaps the device is busy just now
        (stats(1000, 0, LONG_TAIL), 3600, Verdict.UNHEALTHY, "slower"),
    ],
)
def test_probation_holds_the_new_module_against_the_old_one(
    now: Stats, elapsed_s: float, verdict: Verdict, key: str
) -> None:
    judgement = judge("m", HEALTH, Seen(now), elapsed_s, before(10_000, 10, FAST))
    assert (judgement.verdict, judgement.key) == (verdict, key)
    assert judge("m", HEALTH, Seen(now), 60, before(10_000, 10, FAST), Factors(0, 0)).verdict is Verdict.HEALTHY
