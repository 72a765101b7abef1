"""Evidence: exact against slow formulas, silent without a change, quick with one, deaf to one wild value."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from cloud_hub.monitoring.effects import chance, effect, unbiased_psi
from cloud_hub.monitoring.evidence import MONTH_S, AlarmRate, lgamma, log_bayes_factor, merge_latest
from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.verdict import (
    LookSeries,
    Verdict,
    calm_since,
    detecting_window,
    group_threshold,
    judge,
    looks_since,
    strength,
)
from cloud_hub.reference import count_numeric, profile_training
from modules.tensors import TensorSpec
from modules.windows import Numeric

Array = np.ndarray[Any, np.dtype[Any]]
FEATURES = 20
ROWS = 100
RATE = AlarmRate(months=12, look_s=3600, groups=10)


@dataclass
class World:
    """A profile of standard normal features, and looks drawn from its true distribution."""

    rows: int
    seed: int

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        training = self.random.normal(size=(self.rows, FEATURES))
        profile = profile_training({"x": training}, {}, [TensorSpec("x", "FP64", (-1, FEATURES))], [])
        self.layout = Layout(profile)
        self.features = [feature for feature in profile.inputs if isinstance(feature, Numeric)]

    def looks(self, number: int, shift: float = 0.0) -> Array:
        """Counts of `number` looks of ROWS rows; `shift` moves the first feature, in standard deviations."""
        parts = [
            self.random.multinomial(ROWS, _cells(feature, shift if index == 0 else 0.0), size=number)
            for index, feature in enumerate(self.features)
        ]
        return np.concatenate(parts, axis=1)

    def verdict(self, counts: Array) -> Verdict:
        moments = np.zeros((len(counts), 2 * FEATURES))
        return judge(self.layout, LookSeries(tuple(map(float, range(len(counts)))), counts, moments), RATE)


def _cells(feature: Numeric, shift: float) -> Array:
    below = np.array([0.5 * (1 + math.erf((edge - shift) / math.sqrt(2))) for edge in feature.edges])
    return np.concatenate([np.diff(below), [below[0], 1 - below[-1], 0.0]])


def test_lgamma_is_that_of_the_standard_library() -> None:
    values = np.concatenate([np.logspace(-2, 12, 400), np.arange(1, 50) / 4])
    expected = np.array([math.lgamma(value) for value in values.tolist()])
    assert np.allclose(lgamma(values), expected, rtol=1e-13, atol=1e-9)


def test_the_bayes_factor_is_the_ratio_of_two_sequential_predictions() -> None:
    # The same marginal likelihoods, row by row: the chance of each row given the weights and the rows before it.
    reference, current = [30, 0, 70], [4, 2, 9]

    def predict(weights: list[float]) -> float:
        logs, weights = 0.0, list(weights)
        for cell, count in enumerate(current):
            for _ in range(count):
                logs += math.log(weights[cell] / sum(weights))
                weights[cell] += 1
        return logs

    expected = predict([1, 0.1, 1]) - predict([31, 1, 71])
    found = log_bayes_factor(np.array(current), np.array(reference), np.array([0]))
    assert found.tolist() == pytest.approx([expected])


def test_features_are_weighed_apart() -> None:
    reference, current = np.array([50, 50, 10, 90, 0]), np.array([9, 1, 1, 9, 0])
    both = log_bayes_factor(current, reference, np.array([0, 2]))
    assert both[0] == pytest.approx(log_bayes_factor(current[:2], reference[:2], np.array([0]))[0])
    assert both[1] == pytest.approx(log_bayes_factor(current[2:], reference[2:], np.array([0]))[0])


def test_the_latest_looks_are_merged_in_growing_windows() -> None:
    looks = np.arange(1, 7).reshape(6, 1)
    assert merge_latest(looks)[:6, 0].tolist() == [6, 11, 15, 18, 21, 21]


def test_cells_that_are_empty_on_both_sides_hardly_dull_the_evidence() -> None:
    reference, current = np.array([500, 500]), np.array([90, 10])
    bare = log_bayes_factor(current, reference, np.array([0]))[0]
    padded = log_bayes_factor(np.append(current, [0, 0]), np.append(reference, [0, 0]), np.array([0]))[0]
    assert 0 < bare - padded < 2


def test_the_threshold_pays_for_looks_features_and_groups() -> None:
    rate = AlarmRate(months=1, look_s=MONTH_S / 100, groups=3)
    assert rate.threshold(20) == pytest.approx(math.log(100 * 20 * 3))


@pytest.mark.parametrize("rows", [1000, 3000, 10_000])
def test_nothing_alarms_while_nothing_changes(rows: int) -> None:
    for seed in range(2):
        world = World(rows, seed)
        counts = world.looks(200)
        peak = max(
            max(
                strength(world.layout, counts[:end], "drift").max(),
                strength(world.layout, counts[:end], "quality").max(),
            )
            for end in range(1, len(counts) + 1)
        )
        assert peak < group_threshold(world.layout, RATE), f"seed {seed}"


@pytest.mark.parametrize("rows", [1000, 3000, 10_000])
def test_half_a_standard_deviation_is_found_within_a_few_looks_and_named(rows: int) -> None:
    for seed in range(4):
        world = World(rows, 100 + seed)
        calm = world.looks(200)
        counts = np.concatenate([calm, world.looks(8, shift=0.5)])
        assert not world.verdict(calm).drifted
        assert [feature.name for feature in world.verdict(counts).drifted] == ["x[0]"]
        assert world.verdict(counts).drift[0].psi > 0.05


def test_one_wild_value_changes_no_verdict() -> None:
    world = World(3000, 7)
    counts = world.looks(50)
    for end in (1, 10, 50):
        spoiled = counts[:end].copy()
        feature = world.features[0]
        spoiled[-1, : feature.cells] += count_numeric(np.array([1e6]), np.array(feature.edges))
        before, after = world.verdict(counts[:end]), world.verdict(spoiled)
        assert (before.drifted, before.poor) == (after.drifted, after.poor) == ((), ())
    shifted = np.concatenate([counts, world.looks(8, shift=0.5)])
    shifted[-1, : world.features[0].cells] += count_numeric(np.array([1e6]), np.array(world.features[0].edges))
    assert [feature.name for feature in world.verdict(shifted).drifted] == ["x[0]"]


def test_values_that_stop_coming_are_poor_quality_and_not_drift() -> None:
    world = World(3000, 8)
    counts = world.looks(10)
    missing = world.features[0].cells - 1
    counts[-3:, :missing] //= 2
    counts[-3:, missing] = ROWS - counts[-3:, :missing].sum(axis=1)
    verdict = world.verdict(counts)
    assert not verdict.drifted
    assert [(rate.name, rate.problem) for rate in verdict.poor] == [("x[0]", "missing")]
    assert verdict.poor[0].rate > 0.3


def test_fewer_missing_values_than_in_training_are_no_alarm() -> None:
    training = np.where(np.random.default_rng(1).random((2000, 1)) < 0.5, np.nan, 1.0)
    layout = Layout(profile_training({"x": training}, {}, [TensorSpec("x", "FP64", (-1, 1))], []))
    counts = np.array([[2000, 0, 0, 0]])
    assert strength(layout, counts, "quality").max() == 0


def test_a_real_but_tiny_change_alarms_nobody() -> None:
    layout = Layout(
        profile_training({"x": np.tile([[0.0], [1.0]], (50_000, 1))}, {}, [TensorSpec("x", "FP64", (-1, 1))], [])
    )
    counts = np.array([[520_000, 480_000, 0, 0, 0]])
    scan = layout.scan(counts)
    assert scan.drift.max() > 10
    assert strength(layout, counts, "drift").max() == 0


def test_calm_is_found_once_the_window_that_alarmed_no_longer_does() -> None:
    world = World(5000, 9)
    threshold = group_threshold(world.layout, RATE)
    drifted = np.concatenate([world.looks(20), world.looks(6, shift=2.0)])
    window = detecting_window(world.layout, drifted, "drift", threshold)
    assert window == 0
    assert calm_since(world.layout, drifted, "drift", threshold, window, 3) is None
    back = np.concatenate([drifted, world.looks(3)])
    assert calm_since(world.layout, back[:-1], "drift", threshold, window, 3) is None
    assert calm_since(world.layout, back, "drift", threshold, window, 3) == len(back) - 3
    assert detecting_window(world.layout, back, "drift", threshold) > 0  # the long windows still hold the past


def test_psi_has_its_null_bias_removed_and_agrees_for_many_features() -> None:
    random = np.random.default_rng(3)
    shares = np.full(10, 0.1)
    raw = [
        unbiased_psi(random.multinomial(100, shares), random.multinomial(5000, shares), np.array([0]))[0]
        for _ in range(300)
    ]
    assert np.median(raw) < 0.02  # without the removal it is about 0.09
    now, before = np.array([10, 30, 0, 5, 5]), np.array([20, 20, 0, 50, 50])
    together = unbiased_psi(now, before, np.array([0, 3]))
    assert together.tolist() == pytest.approx([effect(now[:3], before[:3]).psi, effect(now[3:], before[3:]).psi])


def test_effects_of_equal_and_of_disjoint_samples() -> None:
    assert effect(np.array([5, 5]), np.array([50, 50])) == effect(np.array([0, 0]), np.array([1, 1]))
    apart = effect(np.array([0, 100]), np.array([100, 0]))
    assert apart.js == pytest.approx(1.0)
    assert apart.ks == 1.0
    assert apart.psi > 5


def test_live_counts_may_be_the_reference_and_bring_their_own_noise() -> None:
    world = World(10_000, 11)
    period = world.looks(100, shift=0.5)
    against = world.layout.against(period.sum(axis=0))
    looks = world.looks(30, shift=0.5)
    threshold = group_threshold(world.layout, RATE)
    assert strength(world.layout, looks, "drift").max() > threshold
    assert strength(against, looks, "drift").max() < threshold
    few = world.layout.against(period[:1].sum(axis=0))
    assert strength(few, world.looks(30), "drift").max() < strength(against, world.looks(30), "drift").max()
    assert world.layout.reference.sum() == 10_000 * FEATURES
    with pytest.raises(ValueError, match="expected 260 of at least 0"):
        world.layout.against(period.sum(axis=0)[1:])


def test_a_series_is_cut_with_all_that_it_holds() -> None:
    counts = np.arange(6).reshape(3, 2)
    series = LookSeries((0.0, 1.0, 2.0), counts, counts.astype(float), joint=counts, rows=np.arange(3))
    cut = series.until(2)
    assert (len(cut), cut.joint.tolist(), cut.rows.tolist()) == (2, [[0, 1], [2, 3]], [0, 1])
    assert cut.still.shape == (0, 0)


def test_the_chance_of_a_distance_is_as_common_as_it_says() -> None:
    random = np.random.default_rng(4)
    for shares in (np.full(10, 0.1), np.array([0.9, 0.1]), np.array([0.6, 0.2, 0.1, 0.05, 0.05])):
        chances = [effect(random.multinomial(200, shares), random.multinomial(3000, shares)).p for _ in range(800)]
        assert np.mean(np.array(chances) <= 0.05) == pytest.approx(0.05, abs=0.03)
        assert np.mean(np.array(chances) <= 0.5) == pytest.approx(0.5, abs=0.08)
    assert effect(np.array([50, 50]), np.array([500, 500])).p == pytest.approx(1)
    assert effect(np.array([90, 10]), np.array([500, 500])).p < 1e-9
    assert effect(np.array([2, 0]), np.array([0, 500])).p == 1, "two rows are too few for the test"


def test_private_counts_are_weighed_with_their_noise_inside() -> None:
    world = World(10_000, 21)
    random = np.random.default_rng(0)
    noise = np.full(60, 400.0)
    calm, drifted = world.looks(60), np.concatenate([world.looks(40), world.looks(20, shift=1.5)])
    threshold = group_threshold(world.layout, RATE)

    def spoiled(counts: Array) -> Array:
        return np.asarray(counts + np.rint(random.normal(0, 20, size=counts.shape)).astype(np.int64))

    for counts, alarms in ((calm, False), (drifted, True)):
        private = dataclasses.replace(LookSeries.of_counts(spoiled(counts)), noise=noise)
        assert (strength(world.layout, private, "drift").max() >= threshold) == alarms
        assert strength(world.layout, private, "quality").max() == 0, "rates of noisy counts mean nothing"
        verdict = judge(world.layout, dataclasses.replace(private, moments=np.zeros((60, 2 * FEATURES))), RATE)
        assert [feature.name for feature in verdict.drifted] == ["x[0]"] * alarms
    private = dataclasses.replace(LookSeries.of_counts(spoiled(drifted)), noise=noise)
    assert looks_since(world.layout, private, 0) == pytest.approx(20, abs=6)


@pytest.mark.parametrize("thin", [[40, 40, 1], [40, 40, 40, 1, 1], [40, 1], [1, 40], [1, 1]])
def test_cells_of_few_rows_are_tested_together_with_their_neighbours(thin: list[int]) -> None:
    counts = np.array(thin, np.int64)
    assert chance(counts, 100 * counts) > 0.99
    assert chance(counts, np.ones_like(counts) * 1000) <= 1.0


def test_night_is_held_against_nights_once_some_have_been_seen() -> None:
    random = np.random.default_rng(5)
    training = random.normal(size=(10_000, 1)) + 0.5 * np.sin(2 * np.pi * random.uniform(size=(10_000, 1)))
    profile = profile_training({"x": training}, {}, [TensorSpec("x", "FP64", (-1, 1))], [])
    layout, feature = Layout(profile), profile.inputs[0]
    assert isinstance(feature, Numeric)
    hours = 0.5 * np.sin(2 * np.pi * np.arange(180) / 24)
    hours[140:] += 0.7
    counts = np.array([count_numeric(random.normal(hour, size=ROWS), np.array(feature.edges)) for hour in hours])
    threshold = group_threshold(layout, RATE)
    peaks = np.array([strength(layout, counts[max(end - 128, 0) : end], "drift").max() for end in range(1, 181)])
    assert (peaks[60:140] < threshold).all(), "the third night is no drift"
    assert (peaks[140:] >= threshold).any(), "a change is, beside nights"
