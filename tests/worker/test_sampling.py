"""Which predictions are sampled: once per id, with the share and the strata that the policy asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agent.endpoint.codec import from_tensor
from agent.sampling.features import Names
from agent.sampling.making import Maker
from agent.sampling.quota import Quota
from agent.sampling.redaction import Redactor
from agent.sampling.sampler import Choice, Rows, Sampler, row_id, scores_output, share
from modules.manifest import Lineage, Manifest, Runtime, SamplingPolicy
from modules.messages import decode_sample
from modules.tensors import TensorSpec
from modules.windows import Numeric, ReferenceProfile

MANIFEST = Manifest(
    "m", 1, "pi", Lineage("m", 1),
    (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("size", "INT64", (1,))),
    (TensorSpec("y", "FP32", (-1, 3)), TensorSpec("word", "BYTES", (-1,))),
    (), Runtime(model=""),
)  # fmt: skip


def sampler(digest: str = "d" * 64, **policy: Any) -> Sampler:
    return Sampler(digest, "y", Names(MANIFEST, None), SamplingPolicy(**policy), Quota(None, 0.0), lambda: 0.0)


def kept(chooser: Sampler, ids: list[str], scores: Any = None) -> list[Choice]:
    outputs = {} if scores is None else {"y": scores}
    return chooser.choose(ids, Rows({}, outputs, len(ids), 100))


def chosen(chooser: Sampler) -> list[str]:
    return [IDS[choice.row] for choice in kept(chooser, IDS)]


IDS = [f"prediction-{i}" for i in range(4000)]


def test_the_share_of_an_id_is_the_same_wherever_it_is_computed() -> None:
    assert share("id", "digest", "salt") == share("id", "digest", "salt") == pytest.approx(0.3, abs=0.7)
    others = {share("id", "digest", "other"), share("id", "another", "salt"), share("id2", "digest", "salt")}
    assert share("id", "digest", "salt") not in others


def test_about_the_asked_share_is_kept_and_the_same_one_each_time() -> None:
    first = chosen(sampler(rate=0.1))
    assert 300 < len(first) < 500
    assert first == chosen(sampler(rate=0.1))


def test_a_higher_rate_keeps_what_a_lower_one_kept() -> None:
    assert set(chosen(sampler(rate=0.05))) < set(chosen(sampler(rate=0.2)))


@pytest.mark.parametrize(("rate", "count"), [(0.0, 0), (1.0, 4000)])
def test_nothing_and_everything_are_exact(rate: float, count: int) -> None:
    assert len(kept(sampler(rate=rate), IDS)) == count


def test_the_first_rows_after_a_start_are_all_kept_and_say_so() -> None:
    choices = kept(sampler(rate=0.0, first=3), IDS)
    assert choices == [Choice(row, "first", 1.0) for row in range(3)]


def test_rows_of_low_confidence_have_their_own_chance_and_it_is_recorded() -> None:
    scores = np.full((len(IDS), 3), 0.1, np.float32)
    scores[::2, 1] = 0.9
    scores[1::4, 0] = np.nan
    choices = kept(sampler(rate=0.1, low_confidence=0.5, low_confidence_rate=0.5), IDS, scores)
    low = [c for c in choices if c.stratum == "low_confidence"]
    base = [c for c in choices if c.stratum == "base"]
    assert {c.probability for c in low} == {0.5}
    assert {c.probability for c in base} == {0.1}
    assert 900 < len(low) < 1100
    assert 150 < len(base) < 260


def test_rows_of_a_batch_are_predictions_of_their_own() -> None:
    assert row_id("a", 0, 1) == "a"
    assert [row_id("a", i, 3) for i in range(3)] == ["a#0", "a#1", "a#2"]


def test_a_sample_is_one_row_of_every_input_and_output() -> None:
    inputs = {"x": np.array([[2, 3]], np.float32), "size": np.array([7])}
    outputs = {"y": np.ones((1, 3), np.float32), "word": np.array([b"bc"], object)}
    maker, policy = Maker(MANIFEST, "d" * 64, lambda: 12.5), SamplingPolicy()
    maker.set(policy, Redactor(policy, Names(MANIFEST, None), b""))
    made = maker.make("p#1", Choice(1, "base", 0.25), inputs, outputs)
    sample = decode_sample(made.sample)
    assert made.pieces == []
    assert (sample.prediction_id, sample.at, sample.stratum, sample.probability) == ("p#1", 12.5, "base", 0.25)
    arrays = {t.name: from_tensor(t).tolist() for t in sample.inputs + sample.outputs}
    assert arrays == {"x": [[2.0, 3.0]], "size": [7], "y": [[1.0, 1.0, 1.0]], "word": [b"bc"]}


def test_the_confidence_is_that_of_the_reference_else_of_the_first_scores() -> None:
    feature = Numeric("c", "z", (0.0, 1.0), (0, 0, 0, 0), 0.0, 1.0, "max")
    assert scores_output(MANIFEST, ReferenceProfile(1, (), (feature,))) == "z"
    assert scores_output(MANIFEST, None) == "y"
