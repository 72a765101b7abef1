"""What a policy promises, against what OpenDP says of the same mechanism; and the noise that is really drawn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opendp.combinators import make_zCDP_to_approxDP
from opendp.domains import atom_domain, vector_domain
from opendp.measurements import make_gaussian
from opendp.metrics import l2_distance
from opendp.mod import enable_features

from agent.watching.noise import Noise
from modules.errors import ManifestError
from modules.privacy import DAY_S, Privacy, epsilon_of
from modules.sampling import SamplingPolicy, Stratum


@given(st.floats(0.01, 50.0), st.floats(1e-9, 1e-3))
def test_the_budget_of_a_day_is_what_was_promised(epsilon: float, delta: float) -> None:
    privacy = Privacy(epsilon, delta)
    assert epsilon_of(privacy.rho_per_day, delta) == pytest.approx(epsilon, rel=1e-6)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("window_s", [300.0, 3600.0, 86_400.0])
def test_opendp_agrees_that_a_whole_day_of_windows_keeps_the_promise(epsilon: float, window_s: float) -> None:
    """All windows of a day as one release are at most what the policy promises; OpenDP's bound is the tighter one."""
    enable_features("contrib")
    privacy, features = Privacy(epsilon), 20
    windows = math.ceil(DAY_S / window_s)
    space = vector_domain(atom_domain(T="i64")), l2_distance(T="f64")
    measure = make_gaussian(*space, scale=privacy.scale(features, window_s))
    together = make_zCDP_to_approxDP(measure).map(privacy.distance(features) * math.sqrt(windows))  # type: ignore[no-untyped-call]
    assert together.epsilon(privacy.delta) <= epsilon * (1 + 1e-6)


def test_the_noise_has_the_variance_that_it_says_and_no_bias() -> None:
    noise = Noise(Privacy(8.0), features=2, window_s=3600.0)
    drawn = np.array(noise.add([1000] * 20_000)) - 1000
    assert noise.variance == pytest.approx(drawn.var(), rel=0.05)
    assert abs(drawn.mean()) < 5 * math.sqrt(noise.variance / 20_000)
    assert noise.rho == pytest.approx(Privacy(8.0).rho_per_window(3600.0), rel=1e-6)


def test_people_with_more_rows_cost_more_noise() -> None:
    assert Privacy(1.0, rows_per_person=10).scale(20, 300) == pytest.approx(10 * Privacy(1.0).scale(20, 300))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"epsilon_per_day": 0.0}, "epsilon_per_day"),
        ({"epsilon_per_day": math.nan}, "epsilon_per_day"),
        ({"epsilon_per_day": 1.0, "delta": 0.5}, "delta"),
        ({"epsilon_per_day": 1.0, "rows_per_person": 0}, "rows_per_person"),
    ],
)
def test_a_promise_that_is_none_is_refused(fields: dict[str, float], words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        Privacy(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "others",
    [
        {"rate": 0.01},
        {"first": 3},
        {"low_confidence_rate": 0.5},
        {"strata": (Stratum("odd", 1.0, "out_of_range"),)},
        {"ring_rows": 10},
    ],
)
def test_no_samples_leave_beside_private_windows(others: dict[str, object]) -> None:
    with pytest.raises(ManifestError, match="no samples beside private windows"):
        SamplingPolicy(**({"rate": 0.0, "privacy": Privacy(1.0)} | others))  # type: ignore[arg-type]
