"""How a group runs against how it ran before: errors, slow answers, sensors that stand still."""

from typing import Any

import numpy as np
import pytest

from cloud_hub.monitoring.evidence import AlarmRate
from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.look_series import LookSeries
from cloud_hub.monitoring.verdict import judge, strength
from cloud_hub.reference import profile_training
from modules.tensors import TensorSpec
from modules.windows import LATENCY_BINS

Array = np.ndarray[Any, np.dtype[Any]]
RATE = AlarmRate(months=12, look_s=3600, groups=10)
WINDOWS = 12  # per look
ROWS = 360


def layout() -> Layout:
    training = np.random.default_rng(0).normal(size=(5000, 2))
    return Layout(profile_training({"x": training}, {}, [TensorSpec("x", "FP64", (-1, 2))], []))


LAYOUT = layout()


def series(looks: int, seed: int = 0, **changed: Any) -> LookSeries:
    """Looks in which nothing is wrong; `changed` columns replace theirs."""
    random = np.random.default_rng(seed)
    counts = np.concatenate([random.multinomial(ROWS, [0.1] * 10 + [0] * 3, size=looks) for _ in range(2)], axis=1)
    latency = np.zeros((looks, LATENCY_BINS), np.int64)
    latency[:, 8:12] = random.multinomial(ROWS, [0.2, 0.6, 0.15, 0.05], size=looks)
    columns: dict[str, Any] = {
        "still": np.zeros((looks, 2), np.int64),
        "windows": np.full(looks, WINDOWS),
        "rows": np.full(looks, ROWS),
        "errors": random.binomial(ROWS, 0.01, size=looks),
        "latency": latency,
        **changed,
    }
    return LookSeries(tuple(map(float, range(looks))), counts, np.zeros((looks, 4)), **columns)


def poor(looks: LookSeries) -> list[tuple[str, str]]:
    verdict = judge(LAYOUT, looks, RATE)
    assert bool(verdict.poor) == (strength(LAYOUT, looks, "quality").max() >= verdict_threshold())
    return [(rate.name, rate.problem) for rate in verdict.poor]


def verdict_threshold() -> float:
    return judge(LAYOUT, series(1), RATE).drift[0].threshold


def test_nothing_is_said_of_a_group_that_runs_as_ever() -> None:
    for seed in range(5):
        looks = series(200, seed)
        assert all(not poor(looks.until(end)) for end in range(1, 201, 7))


def test_errors_that_become_frequent_are_found_in_one_look_and_those_from_the_start_too() -> None:
    more = series(50).errors.copy()
    more[-1] = 60
    assert poor(series(50, errors=more)) == [("predictions", "errors")]
    assert poor(series(1, errors=np.array([180]))) == [("predictions", "errors")]


def test_a_little_more_errors_matter_to_nobody() -> None:
    rows = np.full(50, 10_000_000)
    errors = np.full(50, 10_000)
    errors[-10:] = 20_000
    found = judge(LAYOUT, series(50, rows=rows, errors=errors), RATE)
    assert not found.poor


def test_answers_that_take_twice_as_long_are_found() -> None:
    latency = series(50).latency.copy()
    latency[-3:] = np.roll(latency[-3:], 1, axis=1)
    latency[-3:, 9:13] = np.roll(latency[-3:, 9:13], 1, axis=1)
    assert poor(series(50, latency=latency)) == [("predictions", "slow")]


def test_answers_that_are_slow_now_and_then_are_no_alarm() -> None:
    random = np.random.default_rng(3)
    latency = series(128).latency.copy()
    for look in range(128):
        latency[look] = np.roll(latency[look], int(random.integers(0, 3)))
    looks = series(128, latency=latency)
    assert all(("predictions", "slow") not in poor(looks.until(end)) for end in range(20, 129, 4))


def test_a_sensor_that_gets_stuck_is_found_and_named() -> None:
    still = np.zeros((30, 2), np.int64)
    still[-2:, 1] = WINDOWS
    assert poor(series(30, still=still)) == [("x[1]", "still")]


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_a_slow_sensor_that_always_stood_still_is_no_alarm(share: float) -> None:
    random = np.random.default_rng(1)
    still = np.zeros((100, 2), np.int64)
    still[:, 0] = random.binomial(WINDOWS, share, size=100)
    looks = series(100, still=still)
    assert all(not poor(looks.until(end)) for end in range(1, 101, 5))


def test_a_series_without_the_columns_says_nothing_of_them() -> None:
    bare = LookSeries.of_counts(series(20).counts)
    assert strength(LAYOUT, bare, "quality").max() == 0
    assert strength(LAYOUT, LookSeries.empty(LAYOUT), "quality").max() == 0
