"""Two versions against each other: how often a wrong word is said over a whole campaign, and that right ones come."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_hub.arms.compare import compare, verdict_of
from cloud_hub.arms.designs import Arm
from cloud_hub.arms.margins import Margins
from cloud_hub.arms.measure import ERRORS, LATENCY, Measure
from cloud_hub.arms.sequential import LEAST_UNITS, mean_of, spread

LOOK_S = 600.0
MARGINS = Margins()
ALPHA = 0.05


def looks(
    rng: np.random.Generator,
    arm: Arm,
    devices: int,
    start: int,
    count: int,
    rate: float,
    rows: int = 100,
    offsets: np.ndarray | None = None,
    first: int = 0,
    world: float = 0.0,
) -> None:
    """Error rates as devices report them: each has its own, `offsets` apart; the world adds to all."""
    for look in range(start, start + count):
        for device in range(first, first + devices):
            own = 0.0 if offsets is None else float(offsets[device])
            errors = rng.binomial(rows, min(max(rate + own + world, 0.0), 1.0))
            key = f"device-{device:03}"
            arm.add(key, look * LOOK_S, [Measure(ERRORS, errors / rows, rows)], rows)


def words(candidate: Arm, baseline: Arm) -> str:
    return verdict_of(compare(candidate, baseline, MARGINS, ALPHA)[2])


def test_the_sequence_covers_the_mean_at_all_times_at_once() -> None:
    rng = np.random.default_rng(7)
    missed = 0
    for _ in range(200):
        values = rng.exponential(size=400) - 1.0
        ones = np.ones(400)
        means = (mean_of(values[:n], ones[:n], 100 * n, ALPHA) for n in range(LEAST_UNITS, 401, 5))
        missed += any(abs(mean.value) > mean.half for mean in means)
    assert missed <= 0.05 * 200 + 5


def test_with_few_units_nothing_is_said() -> None:
    mean = mean_of(np.zeros(LEAST_UNITS - 1), np.ones(LEAST_UNITS - 1), 100, ALPHA)
    assert math.isinf(mean.half)
    assert mean_of(np.zeros(0), np.zeros(0), 0, ALPHA).units == 0


def test_no_error_so_far_is_no_proof_that_there_will_be_none() -> None:
    mean = mean_of(np.zeros(100), np.ones(100), 100, ALPHA)
    assert mean.half >= 0.029


@pytest.mark.parametrize("design", ["paired", "switched", "arms"])
def test_versions_that_are_alike_are_not_called_worse_however_often_one_looks(design: str) -> None:
    """40 fleets that are looked at 15 times each; devices differ, and the world gets worse for both versions."""
    wrong = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        offsets = rng.normal(0, 0.01, 40)
        candidate, baseline = Arm(), Arm()
        if design == "switched":
            looks(rng, baseline, 40, 0, 20, 0.05, offsets=offsets)
        said = set()
        for step in range(15):
            at, world = 20 + 3 * step, 0.02 if step > 3 else 0.0
            looks(rng, candidate, 20, at, 3, 0.05, offsets=offsets, world=world)
            first = 0 if design == "paired" else 20
            looks(rng, baseline, 20, at, 3, 0.05, offsets=offsets, first=first, world=world)
            said.add(words(candidate, baseline))
        wrong += "worse" in said
    assert wrong <= 4


@pytest.mark.parametrize("design", ["paired", "switched", "arms"])
def test_a_version_that_is_worse_is_found_and_one_that_is_as_good_is_let_through(design: str) -> None:
    for rate, expected in ((0.12, "worse"), (0.05, "fine")):
        rng = np.random.default_rng(3)
        candidate, baseline = Arm(), Arm()
        if design == "switched":
            looks(rng, baseline, 60, 0, 60, 0.05, rows=400)
        looks(rng, candidate, 30, 60, 60, rate, rows=400)
        looks(rng, baseline, 30, 60, 60, 0.05, rows=400, first=0 if design == "paired" else 30)
        found, controlled, differences = compare(candidate, baseline, MARGINS, ALPHA)
        assert (found, controlled) == (design, True)
        assert verdict_of(differences) == expected, differences


def test_a_world_that_changed_at_the_switch_is_not_held_against_the_candidate() -> None:
    rng = np.random.default_rng(5)
    candidate, baseline = Arm(), Arm()
    looks(rng, baseline, 40, 0, 60, 0.02, rows=400)
    looks(rng, candidate, 20, 60, 60, 0.02, rows=400, world=0.06)
    alone = compare(candidate, baseline, MARGINS, ALPHA)
    assert verdict_of(alone[2]) == "worse"
    assert alone[0] == "switched"
    looks(rng, baseline, 20, 60, 60, 0.02, rows=400, world=0.06, first=20)
    assert words(candidate, baseline) != "worse"


def test_a_switch_without_devices_that_kept_the_baseline_says_that_nobody_controls_it() -> None:
    rng = np.random.default_rng(5)
    candidate, baseline = Arm(), Arm()
    looks(rng, baseline, 20, 0, 30, 0.02)
    looks(rng, candidate, 20, 30, 30, 0.02)
    assert compare(candidate, baseline, MARGINS, ALPHA)[:2] == ("switched", False)


def test_a_device_that_changes_versions_in_mid_look_makes_no_pair() -> None:
    rng = np.random.default_rng(1)
    candidate, baseline = Arm(), Arm()
    looks(rng, baseline, 5, 0, 11, 0.02)
    looks(rng, candidate, 5, 10, 10, 0.02)
    assert compare(candidate, baseline, MARGINS, ALPHA)[0] == "switched"


def test_two_devices_against_two_others_prove_nothing() -> None:
    rng = np.random.default_rng(1)
    candidate, baseline = Arm(), Arm()
    looks(rng, candidate, 2, 0, 200, 0.5)
    looks(rng, baseline, 2, 0, 200, 0.05, first=2)
    (difference,) = compare(candidate, baseline, MARGINS, ALPHA)[2]
    assert (difference.word, difference.low) == ("undecided", None)


def test_one_side_without_looks_is_no_comparison() -> None:
    candidate = Arm()
    looks(np.random.default_rng(1), candidate, 2, 0, 3, 0.5)
    assert compare(candidate, Arm(), MARGINS, ALPHA) == ("none", True, ())
    assert verdict_of(()) == "undecided"


def test_twice_as_slow_is_worse() -> None:
    rng = np.random.default_rng(2)
    candidate, baseline = Arm(), Arm()
    for look in range(30):
        for device in range(5):
            for arm, octaves in ((candidate, 11.0), (baseline, 10.0)):
                value = octaves + rng.normal(0, 0.1)
                arm.add(f"device-{device}", look * LOOK_S, [Measure(LATENCY, value, 50)], 50)
    (difference,) = compare(candidate, baseline, MARGINS, ALPHA)[2]
    assert difference.word == "worse"
    assert difference.difference == pytest.approx(1.0, abs=0.05)


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 9), st.floats(0, 1), st.integers(1, 10**6)),
        max_size=60,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_looks_make_a_comparison_and_their_order_does_not_matter(
    found: list[tuple[bool, int, int, float, int]],
) -> None:
    once = {(side, device, look): (value, rows) for side, device, look, value, rows in found}

    def arms(order: list[tuple[bool, int, int]]) -> tuple[Arm, Arm]:
        sides = {True: Arm(), False: Arm()}
        for side, device, look in order:
            value, rows = once[(side, device, look)]
            sides[side].add(f"device-{device}", float(look), [Measure(ERRORS, value, rows)], rows)
        return sides[True], sides[False]

    assert compare(*arms(list(once)), MARGINS, ALPHA) == compare(*arms(list(reversed(once))), MARGINS, ALPHA)


def test_devices_that_differ_widen_the_interval() -> None:
    assert spread(np.array([0.0, 1.0, 2.0, 3.0]), ALPHA) > 2.0
    assert spread(np.array([0.0, 1.0]), ALPHA) == 0.0
