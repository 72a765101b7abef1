"""Which rows fit which stratum, and that weighing by 1/probability stays right with strata and a quota."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from agent.sampling.features import Names, PolicyError
from agent.sampling.quota import DAY_S, Quota
from agent.sampling.sampler import Rows, Sampler
from agent.sampling.strata import Strata
from modules.manifest import Lineage, Manifest, Runtime, SamplingPolicy
from modules.sampling import Stratum, When
from modules.tensors import TensorSpec
from modules.windows import Categorical, Numeric, ReferenceProfile

MANIFEST = Manifest(
    "m", 1, "pi", Lineage("m", 1),
    (TensorSpec("x", "FP32", (-1, 2), ("heat", "light")), TensorSpec("word", "BYTES", (-1, 1))),
    (TensorSpec("y", "FP32", (-1, 3), ("cat", "dog", "cow")),),
    (), Runtime(model=""),
)  # fmt: skip
REFERENCE = ReferenceProfile(
    10,
    (
        Numeric("x[heat]", "x", (0.0, 1.0, 2.0), (5, 5, 0, 0, 0), 1.0, 1.0),
        Numeric("x[light]", "x", (0.0, 10.0), (10, 0, 0, 0), 5.0, 1.0, index=1),
        Categorical("word", "word", ("a", "b"), (5, 5, 0, 0)),
    ),
    (Categorical("y.class", "y", ("cat", "dog", "cow"), (4, 3, 3, 0, 0), take="argmax"),),
)
NAMES = Names(MANIFEST, REFERENCE)
X = np.array([[0.5, 1], [3.0, 1], [1.5, 99], [math.nan, 1], [0.1, 1]], np.float32)
WORDS = np.array([[b"a"], [b"b"], [b"a"], [b"b"], [b"zebra"]], object)
Y = np.array([[0.9, 0.05, 0.05], [0.4, 0.35, 0.25], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [1, 0, 0]], np.float32)
INPUTS, OUTPUTS = {"x": X, "word": WORDS}, {"y": Y}


def fitting(when: When, **rest: Any) -> list[int]:
    policy = SamplingPolicy(rate=0.1, strata=(Stratum("it", 1.0, when, **rest),))
    return np.flatnonzero(Strata(policy, NAMES, "y").fits(INPUTS, OUTPUTS, len(X))).tolist()


@pytest.mark.parametrize(
    ("when", "rest", "rows"),
    [
        ("low_confidence", {"below": 0.5}, [1, 3]),
        ("low_margin", {"below": 0.08}, [1]),
        ("out_of_range", {}, [1, 2, 4]),
        ("out_of_range", {"feature": "x[light]"}, [2]),
        ("missing", {}, [3]),
        ("missing", {"feature": "x[light]"}, []),
        ("between", {"feature": "x[heat]", "at_least": 0.5, "below": 3.0}, [0, 2]),
        ("between", {"feature": "x[1]", "at_least": 99.0}, [2]),
        ("between", {"feature": "x[heat]", "below": 0.5}, [4]),
        ("equals", {"equals": "cat"}, [0, 1, 4]),
        ("equals", {"feature": "word", "equals": "b"}, [1, 3]),
        ("equals", {"feature": "y.class", "equals": "cow"}, [3]),
    ],
)
def test_a_stratum_is_the_rows_that_its_condition_says(when: When, rest: dict[str, Any], rows: list[int]) -> None:
    assert fitting(when, **rest) == rows


@pytest.mark.parametrize("feature", ["z", "x[9]", "x[cold]", "x[1", "y.confidence"])
def test_a_stratum_of_a_feature_that_the_module_does_not_have_is_refused(feature: str) -> None:
    with pytest.raises(PolicyError, match="expected"):
        fitting("between", feature=feature, below=1.0)


def test_a_row_is_kept_with_the_largest_rate_of_those_that_it_fits_in_any_order() -> None:
    strata = (
        Stratum("warm", 0.3, "between", "x[heat]", at_least=1.0),
        Stratum("odd", 0.8, "out_of_range"),
        Stratum("rare", 0.01, "equals", equals="cow"),
    )
    for order in (strata, strata[::-1]):
        found = Strata(SamplingPolicy(rate=0.1, strata=order), NAMES, "y")
        kept = [found.names[number] for number in found.fits(INPUTS, OUTPUTS, len(X))]
        assert kept == ["base", "odd", "odd", "rare", "odd"]
        assert {name: found.rate(number) for number, name in enumerate(found.names)} == {
            "base": 0.1, "warm": 0.3, "odd": 0.8, "rare": 0.1,
        }  # fmt: skip


def test_the_rows_of_the_base_are_those_that_fit_nothing_else() -> None:
    policy = SamplingPolicy(rate=0.1, strata=(Stratum("odd", 0.8, "out_of_range"),))
    strata = Strata(policy, NAMES, "y")
    assert np.flatnonzero(strata.which("base", INPUTS, OUTPUTS, len(X))).tolist() == [0, 3]
    assert np.flatnonzero(strata.which("odd", INPUTS, OUTPUTS, len(X))).tolist() == [1, 2, 4]


def estimate(policy: SamplingPolicy, run: int, rows: int, size: int = 0) -> tuple[float, float, int]:
    """The mean of a value by weighing the samples of a day, what it truly is, and the bytes spent."""
    random = np.random.default_rng(run)
    now, spent, total = [0.0], 0, 0.0
    quota = Quota(policy.quota_bytes_per_day or None, 0.0)
    sampler = Sampler(f"{run}", "y", NAMES, policy, quota, lambda: now[0])
    # The evening differs from the morning, and rows of one kind from another: both bend an estimate that is naive.
    values = random.normal(1.0, 0.5, rows) + np.linspace(0.0, 2.0, rows)
    for start in range(0, rows, 100):
        now[0] = DAY_S * start / rows
        some = values[start : start + 100]
        inputs = {"x": np.column_stack([some, some]).astype(np.float32), "word": np.full((100, 1), b"a", object)}
        outputs = {"y": np.tile(Y[0], (100, 1))}
        ids = [f"{run}-{start + row}" for row in range(100)]
        asked = Rows(inputs, outputs, 100, size)
        for choice in sampler.choose(ids, asked):
            total += some[choice.row] / choice.probability
            spent += asked.size
    return total / rows, float(values.mean()), spent


@pytest.mark.parametrize("quota", [None, 40_000])
def test_weighing_by_the_probability_is_right_with_strata_and_with_a_quota(quota: int | None) -> None:
    strata = (Stratum("high", 0.9, "between", "x[heat]", at_least=2.5),)
    policy = SamplingPolicy(rate=0.1, strata=strata, quota_bytes_per_day=quota or msgspec.UNSET)
    runs = [estimate(policy, run, rows=4000, size=100) for run in range(60)]
    errors = np.array([found - true for found, true, _ in runs])
    standard_error = errors.std(ddof=1) / math.sqrt(len(errors))
    assert abs(errors.mean()) < 4 * standard_error
    assert standard_error < 0.05  # so that the line above says something
    if quota:
        spent = [bytes_ for *_, bytes_ in runs]
        assert max(spent) < 1.1 * quota
        assert min(spent) > 0.5 * quota


def test_a_quota_is_not_overspent_however_much_is_predicted() -> None:
    now, spent = [0.0], 0
    quota = Quota(100_000, 0.0)
    sampler = Sampler("d", "y", NAMES, SamplingPolicy(rate=1.0), quota, lambda: now[0])
    for second in range(0, int(DAY_S), 60):
        now[0] = float(second)
        ids = [f"{second}-{row}" for row in range(50)]  # 70 times what the quota has room for
        spent += 100 * len(sampler.choose(ids, Rows({}, {}, 50, 100)))
    assert 50_000 < spent < 105_000
    assert sampler.thinned > 60_000


def test_one_sample_larger_than_the_bucket_does_not_shut_out_the_others() -> None:
    quota = Quota(80_000, 0.0)
    quota.spend(30_000, 0.0)  # the bucket holds 10,000
    assert quota.used_up(0.0)
    assert 0.0 < quota.factor(100, 0.0) < 1e-6
    assert quota.factor(30_000, 0.0) > 0.1
    assert not quota.used_up(DAY_S)
    assert quota.factor(100, DAY_S) == 1.0


def test_a_quota_goes_on_where_another_stood() -> None:
    first = Quota(80_000, 0.0)
    first.spend(9_000, 0.0)
    assert Quota(80_000, 0.0, first.level).level == first.level == pytest.approx(1_000)
    first.change(8_000, 0.0)
    assert first.level == pytest.approx(1_000)
    first.change(None, 0.0)
    assert first.factor(10**9, 0.0) == 1.0
