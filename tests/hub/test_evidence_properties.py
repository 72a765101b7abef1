"""What holds for any counts: order and merging do not matter, nothing breaks, and the null's ratios have mean 1."""

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from cloud_hub.monitoring.alternatives import LOG_PRIOR, RATE_LOG_PRIOR, alternatives, rises
from cloud_hub.monitoring.dispersion import dispersion
from cloud_hub.monitoring.effects import chance, effect
from cloud_hub.monitoring.evidence import MAX_LOOKS, WINDOWS, Weights, merge_latest
from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.strengths import strength
from modules.windows import Categorical, Numeric, ReferenceProfile

Array = np.ndarray[Any, np.dtype[Any]]
CELLS = 6
COUNTS = arrays(np.int64, CELLS, elements=st.one_of(st.integers(0, 30), st.integers(0, 10**12)))
LOOKS = arrays(np.int64, st.tuples(st.integers(1, 12), st.just(CELLS)), elements=st.integers(0, 50))


def weights(reference: Array, ordered: bool = True) -> Weights:
    counts = reference.astype(np.float64)
    return Weights(1.0 + counts, alternatives(counts, ordered), LOG_PRIOR, np.zeros(1, np.int64))


@given(COUNTS, COUNTS, st.booleans())
def test_evidence_of_any_counts_is_finite_and_that_of_none_is_zero(now: Array, before: Array, ordered: bool) -> None:
    found = weights(before, ordered)
    assert np.isfinite(found.evidence(now.astype(np.float64))).all()
    assert found.evidence(np.zeros(CELLS))[0] == pytest.approx(0, abs=0.05)  # what doubles hold of 10**12 rows
    assert 0 <= chance(now, before) <= 1 if now.any() and before.any() else effect(now, before).psi == 0


@given(LOOKS, COUNTS, st.randoms(use_true_random=False))
def test_the_order_of_older_looks_and_of_categories_does_not_matter(looks: Array, before: Array, random: Any) -> None:
    shuffled = looks[random.sample(range(len(looks)), len(looks))]
    assert (merge_latest(shuffled)[-1] == merge_latest(looks)[-1]).all()
    places = random.sample(range(CELLS), CELLS)
    before = before % 10**6 + np.arange(CELLS)  # no two categories are as frequent, so that the same ones are tilted
    whole = looks.sum(axis=0).astype(np.float64)
    here = weights(before * CELLS + np.arange(CELLS), ordered=False).evidence(whole)
    there = weights((before * CELLS + np.arange(CELLS))[places], ordered=False).evidence(whole[places])
    assert there == pytest.approx(here, abs=1e-6)


@given(LOOKS)
def test_rows_may_come_late_into_a_look_or_in_pieces(looks: Array) -> None:
    pieces = [looks // 2, looks - looks // 2]
    assert (merge_latest(pieces[0]) + merge_latest(pieces[1]) == merge_latest(looks)).all()
    many = np.ones((MAX_LOOKS + 9, 1), np.int64)
    assert merge_latest(many)[:, 0].tolist() == list(WINDOWS)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.booleans())
def test_every_ratio_has_mean_one_while_nothing_changes(seed: int, ordered: bool) -> None:
    """Exactly so: over all counts of three rows in three cells, by the chances that the null gives them."""
    before = np.random.default_rng(seed).integers(0, 40, 3)
    counts = np.array([(a, b, 3 - a - b) for a in range(4) for b in range(4 - a)], np.float64)
    log_chances = [_log_chance(row, 1.0 + before) for row in counts.astype(int).tolist()]
    assert sum(map(math.exp, log_chances)) == pytest.approx(1)
    found = weights(before, ordered)
    means = np.exp(np.array(log_chances)[:, np.newaxis] + found.log_ratios(counts)[:, :, 0]).sum(axis=0)
    assert means == pytest.approx(np.ones(len(means)), rel=1e-6)
    assert np.exp(np.array(log_chances) + found.evidence(counts)[:, 0]).sum() == pytest.approx(1, rel=1e-6)


def _log_chance(counts: list[int], bound: Array) -> float:
    """Of the counts, order aside, by the Dirichlet-multinomial."""
    total = math.lgamma(bound.sum()) - math.lgamma(sum(counts) + bound.sum()) + math.lgamma(sum(counts) + 1)
    return total + sum(
        math.lgamma(n + w) - math.lgamma(w) - math.lgamma(n + 1) for n, w in zip(counts, bound.tolist(), strict=True)
    )


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_rate_that_falls_is_no_evidence_that_matters(good: int, bad: int, now: int) -> None:
    reference = np.array([good, bad], np.float64)
    found = Weights(1.0 + reference, rises(reference), RATE_LOG_PRIOR, np.zeros(1, np.int64))
    assert np.isfinite(found.evidence(np.array([now, 0.0]))).all()


@given(arrays(np.int64, st.tuples(st.integers(0, 20), st.just(CELLS)), elements=st.integers(0, 10**9)))
def test_dispersion_never_makes_more_of_rows(looks: Array) -> None:
    found = dispersion(looks, np.array([0, 3]))
    assert (found >= 1).all()
    assert np.isfinite(found).all()


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_independent_rows_are_hardly_taken_for_alike(seed: int) -> None:
    looks = np.random.default_rng(seed).multinomial(100, np.full(CELLS, 1 / CELLS), size=60)
    assert dispersion(looks, np.zeros(1, np.int64))[0] < 1.8


@given(st.lists(st.integers(0, 10**9), min_size=9, max_size=9), st.integers(0, 10**6))
def test_one_row_more_moves_the_evidence_by_little(counts: list[int], training: int) -> None:
    """Wherever it falls: beyond the range, or in a category that was never seen."""
    numeric = Numeric("x", "x", (0.0, 1.0, 2.0), (training + 20, training + 20, 0, 0, 0), 1.0, 1.0)
    colour = Categorical("c", "c", ("a", "b"), (training + 20, training + 20, 0, 0))
    layout = Layout(ReferenceProfile(2 * training + 40, (numeric, colour)))
    looks = np.array([[count % 500 for count in counts]])
    before = strength(layout, looks, "drift").max()
    for place in (2, 3, 7):
        spoiled = looks.copy()
        spoiled[0, place] += 1
        assert abs(strength(layout, spoiled, "drift").max() - before) < math.log(training + 100) + 6
