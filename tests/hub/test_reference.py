"""The reference profile of a training sample, held against counting by hand."""

import math
from typing import Any

import numpy as np
import pytest

from cloud_hub.reference import MAX_ELEMENTS, choose_edges, count_numeric, profile_training
from modules.errors import WindowError
from modules.tensors import TensorSpec
from modules.windows import Categorical, Numeric, decode_reference, encode_reference

Array = np.ndarray[Any, np.dtype[Any]]
WILD = np.array([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e300, 5e-324, 1.5, 1.5, -2.0])


def count_slowly(values: list[float], edges: list[float]) -> list[int]:
    bins = len(edges) - 1
    cells = [0] * (bins + 3)
    for value in values:
        if math.isnan(value):
            cells[bins + 2] += 1
        elif value < edges[0]:
            cells[bins] += 1
        elif value > edges[-1]:
            cells[bins + 1] += 1
        else:
            cells[next((i for i in range(bins) if edges[i] <= value < edges[i + 1]), bins - 1)] += 1
    return cells


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(1).normal(size=997),
        np.random.default_rng(2).integers(0, 17, 500).astype(float),
        np.r_[np.zeros(900), np.arange(1.0, 101.0)],
        np.full(7, 3.25),
        np.array([1.0, 2.0]),
        WILD,
    ],
    ids=["normal", "pixels", "mostly-zero", "constant", "two-values", "wild"],
)
def test_counts_are_those_of_counting_one_row_at_a_time(values: Array) -> None:
    edges = choose_edges(values[np.isfinite(values)])
    tried = np.concatenate([values, edges, edges - 1e-9, edges + 1e-9, WILD])
    assert count_numeric(tried, edges) == count_slowly(tried.tolist(), edges.tolist())


def test_continuous_values_fall_into_ten_bins_of_about_equal_count() -> None:
    values = np.random.default_rng(3).normal(size=5000).astype(np.float32)
    counts = count_numeric(values.astype(np.float64), choose_edges(values))
    assert len(counts) == 13
    assert all(abs(count - 500) <= 1 for count in counts[:10])


def test_pixel_values_are_never_on_an_inner_edge() -> None:
    values = np.random.default_rng(4).integers(0, 17, 2000)
    inner = choose_edges(values)[1:-1]
    assert not set(inner.tolist()) & set(range(17))


def test_a_value_that_fills_most_rows_gets_a_bin_of_its_own_and_the_rest_is_still_parted() -> None:
    values = np.r_[np.zeros(900), np.arange(1.0, 101.0)]
    counts = count_numeric(values, choose_edges(values))
    assert counts[0] == 900
    assert len(counts) > 9


def test_edges_of_float32_values_are_float32_values() -> None:
    edges = choose_edges(np.random.default_rng(5).normal(size=999).astype(np.float32))
    assert (edges.astype(np.float32).astype(np.float64) == edges).all()


def test_a_constant_feature_has_two_equal_edges_and_scale_one() -> None:
    (feature,) = profile_training({"x": np.full((5, 1), 2.0)}, {}, [TensorSpec("x", "FP64", (-1, 1))], []).inputs
    assert isinstance(feature, Numeric)
    assert (feature.edges, feature.scale, feature.counts) == ((2.0, 2.0), 1.0, (5, 0, 0, 0))


def test_a_feature_that_is_always_missing_still_has_a_profile() -> None:
    (feature,) = profile_training({"x": np.full((5, 1), np.nan)}, {}, [TensorSpec("x", "FP64", (-1, 1))], []).inputs
    assert feature.counts == (0, 0, 0, 5)


def test_huge_values_give_a_profile_that_survives_its_own_encoding() -> None:
    values = np.array([[1.7e308], [-1.7e308], [1.6e308]])
    profile = profile_training({"x": values}, {}, [TensorSpec("x", "FP64", (-1, 1))], [])
    assert decode_reference(encode_reference(profile)) == profile


def test_features_are_named_after_place_or_label() -> None:
    arrays = {"image": np.zeros((3, 2, 2)), "row": np.zeros((3, 2)), "t": np.zeros(3)}
    specs = [
        TensorSpec("image", "FP64", (-1, 2, 2)),
        TensorSpec("row", "FP64", (-1, 2), labels=("heat", "flow")),
        TensorSpec("t", "FP64", (-1,)),
    ]
    names = [feature.name for feature in profile_training(arrays, {}, specs, []).inputs]
    assert names == ["image[0,0]", "image[0,1]", "image[1,0]", "image[1,1]", "row[heat]", "row[flow]", "t"]


def test_texts_become_categories_and_none_is_missing() -> None:
    array = np.array([b"a", "b", "a", None], dtype=object)
    (feature,) = profile_training({"x": array}, {}, [TensorSpec("x", "BYTES", (-1,))], []).inputs
    assert feature == Categorical("x", "x", ("a", "b"), (2, 1, 0, 1))


def test_class_numbers_and_class_shares_become_categories_and_a_confidence() -> None:
    shares = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [np.float32(1 / 3)] * 3], np.float32)
    outputs = {"label": np.array([0, 1, 0]), "shares": shares}
    specs = [TensorSpec("label", "INT64", (-1,)), TensorSpec("shares", "FP32", (-1, 3))]
    label, winner, confidence = profile_training({}, outputs, [], specs).outputs
    assert label == Categorical("label", "label", ("0", "1"), (2, 1, 0, 0))
    assert winner == Categorical("shares.class", "shares", ("0", "1", "2"), (2, 1, 0, 0, 0), take="argmax")
    assert isinstance(confidence, Numeric)
    assert (confidence.name, confidence.take) == ("shares.confidence", "max")


def test_labels_name_the_classes_of_text_and_of_scores() -> None:
    outputs = {"label": np.array([b"cat", b"cat"], dtype=object), "scores": np.array([[5.0, -3.0], [1.0, 2.0]])}
    labels = ("cat", "dog")
    specs = [TensorSpec("label", "BYTES", (-1,), labels), TensorSpec("scores", "FP64", (-1, 2), labels)]
    label, winner, _ = profile_training({}, outputs, [], specs).outputs
    assert label == Categorical("label", "label", labels, (2, 0, 0, 0))
    assert winner == Categorical("scores.class", "scores", labels, (1, 1, 0, 0), take="argmax")


def test_a_regression_gives_numbers() -> None:
    outputs = {"y": np.array([[1.0, 10.0], [2.0, 20.0]])}
    features = profile_training({}, outputs, [], [TensorSpec("y", "FP64", (-1, 2))]).outputs
    assert [type(feature) for feature in features] == [Numeric, Numeric]


def test_more_elements_than_can_be_profiled_are_refused_with_both_numbers() -> None:
    array = np.full((2, MAX_ELEMENTS + 1), b"", object)
    with pytest.raises(WindowError, match="at most 4096 elements per row to profile, got 4097"):
        profile_training({"x": array}, {}, [TensorSpec("x", "BYTES", (-1, MAX_ELEMENTS + 1))], [])


def test_inputs_and_outputs_of_different_length_are_refused() -> None:
    specs = [TensorSpec("x", "FP64", (-1, 1))], [TensorSpec("y", "FP64", (-1, 1))]
    with pytest.raises(WindowError, match="same number of rows"):
        profile_training({"x": np.zeros((2, 1))}, {"y": np.zeros((3, 1))}, *specs)
