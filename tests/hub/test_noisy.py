"""Evidence under noise: chance and noise alone stay below every threshold as often as promised, changes are seen."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_hub.monitoring.evidence import AlarmRate
from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.look_series import LookSeries
from cloud_hub.monitoring.noisy import evidence, psi
from cloud_hub.monitoring.verdict import judge
from cloud_hub.reference import profile_training
from modules.privacy import Privacy
from modules.tensors import TensorSpec

CELLS = 12
FEATURES = 4
STARTS = np.arange(FEATURES) * CELLS


def shares(shift: float = 0.0) -> np.ndarray:
    """Ten bins of equal share of a normal value, moved by `shift` standard deviations, between two empty ones."""
    edges = np.array([-1.2816, -0.8416, -0.5244, -0.2533, 0.0, 0.2533, 0.5244, 0.8416, 1.2816])
    below = np.array([0.5 * math.erfc(-(edge - shift) / math.sqrt(2)) for edge in edges])
    return np.array([0.0, *np.diff([0.0, *below, 1.0]), 0.0])


def counted(rng: np.random.Generator, spans: int, rows: int, sigma: float, shift: float = 0.0) -> np.ndarray:
    drawn = np.concatenate([rng.multinomial(rows, shares(shift), spans) for _ in range(FEATURES)], axis=1)
    return drawn + np.rint(rng.normal(0, sigma, drawn.shape)).astype(np.int64)


@pytest.mark.parametrize(("rows", "sigma"), [(100, 5.0), (100, 500.0), (100_000, 5_000.0), (1_000_000, 10.0)])
def test_chance_and_noise_alone_exceed_a_threshold_as_seldom_as_it_says(rows: int, sigma: float) -> None:
    """The ratio's mean is 1, so evidence above t nats comes at most once in exp(t): here 2,000 spans of 4 features."""
    rng = np.random.default_rng(11)
    found = []
    for _ in range(20):
        reference = np.concatenate([rng.multinomial(5_000, shares()) for _ in range(FEATURES)])
        found.append(evidence(counted(rng, 100, rows, sigma), reference, STARTS, np.full(100, sigma**2)))
    values = np.concatenate(found)
    for nats in (2.0, 4.0, 6.0):
        assert (values > nats).mean() <= math.exp(-nats) + 3 * math.sqrt(math.exp(-nats) / values.size)


def test_a_fleet_sees_through_the_noise_what_one_device_cannot_show() -> None:
    """Ten thousand devices at epsilon 8 a day, hourly windows of 100 rows: a shift of a quarter standard deviation."""
    rng = np.random.default_rng(3)
    sigma = Privacy(8.0).scale(FEATURES, 3600.0)
    reference = np.concatenate([rng.multinomial(10_000, shares()) for _ in range(FEATURES)])
    one = evidence(counted(rng, 1, 100, sigma, 0.25), reference, STARTS, np.array([sigma**2]))
    noise = np.array([10_000 * sigma**2])
    fleet = evidence(counted(rng, 1, 1_000_000, 100 * sigma, 0.25), reference, STARTS, noise)
    assert one.max() < 5
    assert fleet.min() > 100


def test_the_size_of_a_change_is_told_without_what_noise_makes_of_it() -> None:
    rng = np.random.default_rng(4)
    sigma = 2_000.0
    reference = np.concatenate([rng.multinomial(100_000, shares()) for _ in range(FEATURES)])
    reference[reference == 0] = 500  # else an empty cell's share is a division by next to nothing
    noise = np.full(200, sigma**2)
    nothing = psi(counted(rng, 200, 100_000, sigma), reference, STARTS, noise)
    moved = psi(counted(rng, 200, 100_000, sigma, 0.5), reference, STARTS, noise)
    assert np.median(moved) == pytest.approx(0.25, rel=0.3)
    assert np.median(nothing) < 0.02


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1e6), st.integers(0, 10**9))
@settings(max_examples=40, deadline=None)
def test_whatever_is_counted_the_evidence_is_a_number(seed: int, variance: float, rows: int) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.integers(0, 1000, CELLS * FEATURES)
    now = rng.integers(-1000, 1000 + rows, (3, CELLS * FEATURES))
    assert np.isfinite(evidence(now, reference, STARTS, np.full(3, variance))).all()
    assert np.isfinite(psi(now, reference, STARTS, np.full(3, variance))).all()


@pytest.mark.parametrize("sigma", [50.0, 5000.0])
def test_private_looks_of_one_device_are_told_with_finite_numbers(sigma: float) -> None:
    rng = np.random.default_rng(11)
    training = rng.normal(size=(400, 3))
    layout = Layout(profile_training({"x": training}, {}, [TensorSpec("x", "FP64", (-1, 3))], []))
    counts = np.rint(rng.normal(3, sigma, (4, layout.cells))).astype(np.int64)
    looks = LookSeries((0.0, 1.0, 2.0, 3.0), counts, np.zeros((4, 2 * layout.numeric)), noise=np.full(4, sigma**2))
    verdict = judge(layout, looks, AlarmRate(12.0, 3600.0, 1))
    assert len(verdict.drift) == 3
    for feature in verdict.drift:
        assert not feature.alarm
        assert feature.rows >= 0
        assert feature.psi < 10.0
        assert feature.mean_shift is None
        assert all(map(math.isfinite, (feature.psi, feature.js, feature.w1 or 0.0, feature.log_bf)))
