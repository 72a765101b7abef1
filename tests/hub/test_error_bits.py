"""The detector on error bits: silent on a steady rate, quick after a change, and it knows when."""

import random

import pytest

from cloud_hub.monitoring.error_bits import ErrorBits


def bits(rate: float, rows: int, seed: int) -> list[float]:
    source = random.Random(seed)
    return [float(source.random() < rate) for _ in range(rows)]


def test_a_steady_rate_of_errors_raises_no_alarm() -> None:
    for seed in range(4):
        detector = ErrorBits(1e5)
        assert not any(detector.update(error) for error in bits(0.1, 5000, seed))
        assert detector.rate == pytest.approx(0.1, abs=0.03)


def test_more_errors_are_an_alarm_within_a_few_rows_and_the_row_is_named() -> None:
    for seed in range(4):
        detector = ErrorBits(1e5)
        assert not any(detector.update(error) for error in bits(0.1, 3000, seed))
        alarms = [row for row, error in enumerate(bits(0.6, 100, 50 + seed)) if detector.update(error)]
        assert alarms[0] < 40
        assert detector.since == pytest.approx(3000, abs=15)


def test_the_alarm_ends_when_the_errors_do() -> None:
    detector = ErrorBits(1e5)
    for error in bits(0.1, 2000, 1) + bits(0.8, 1000, 2):
        detector.update(error)
    assert detector.alarm
    for error in bits(0.1, 1500, 3):
        detector.update(error)
    assert not detector.alarm


@pytest.mark.parametrize(("error", "weight"), [(1.1, 1.0), (-0.1, 1.0), (float("nan"), 1.0), (0.0, 0.0), (0.0, 2.0)])
def test_what_is_no_error_rate_is_refused_and_changes_nothing(error: float, weight: float) -> None:
    detector = ErrorBits(1000)
    with pytest.raises(ValueError, match="expected an error from 0 to 1"):
        detector.update(error, weight)
    assert detector.rows == 0


def test_an_error_rate_that_rises_by_a_quarter_is_found_in_the_long_run() -> None:
    detector = ErrorBits(1e5)
    found = [detector.update(error) for error in bits(0.12, 10_000, 5) + bits(0.16, 10_000, 6)]
    assert not any(found[:10_000])
    assert any(found[10_000:])


def test_errors_between_right_and_wrong_count_for_their_part() -> None:
    detector = ErrorBits(1e5)
    small = [0.2 * error for error in bits(0.5, 3000, 7)]
    assert not any(detector.update(error) for error in small)
    assert any(detector.update(4 * error) for error in small[:300])


def test_memory_does_not_grow_with_the_rows() -> None:
    detector = ErrorBits(1e9)
    for error in bits(0.1, 20_000, 8):
        detector.update(error)
    assert len(detector._marks) < 20
