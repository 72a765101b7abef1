"""The profiler's cells and moments against a slow count that follows the definition word by word."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.watching.profiler import BLOCK_ROWS, Profiler
from modules.errors import WindowError
from modules.manifest import Lineage, Manifest, Runtime
from modules.tensors import TensorSpec
from modules.windows import Categorical, Feature, Numeric, ReferenceProfile

EDGES = (-1.0, -0.5, 0.0, 0.0, 0.1, 0.7, 2.0)
SPECIAL = [math.nan, math.inf, -math.inf, -1.0, -0.5, 0.0, -0.0, 2.0, 2.0000002, -1.0000001, 0.1, 1e30, 5e-324]


def manifest(*specs: TensorSpec, outputs: tuple[TensorSpec, ...] = ()) -> Manifest:
    return Manifest("m", 1, "pi", Lineage("m", 1), specs, outputs, (), Runtime(model=""))


def numeric(tensor: str = "x", index: int = 0, take: Any = "column") -> Numeric:
    return Numeric(f"{tensor}{index}", tensor, EDGES, (0,) * (len(EDGES) + 2), 0.3, 2.0, take, index)


def slow_cells(feature: Feature, rows: Any) -> list[int]:
    """One row after the other, in plain Python."""
    cells = [0] * feature.cells
    for row in rows:
        cells[_slow_cell(feature, list(np.ravel(row)))] += 1
    return cells


def _slow_cell(feature: Feature, row: list[Any]) -> int:
    if isinstance(feature, Numeric):
        if feature.take == "max":
            value = math.nan if any(math.isnan(v) for v in row) else max(float(v) for v in row)
        else:
            value = float(row[feature.index]) if feature.index < len(row) else math.nan
        if math.isnan(value):
            return feature.cells - 1
        if value < feature.edges[0]:
            return feature.bins
        if value > feature.edges[-1]:
            return feature.bins + 1
        inside = [i for i in range(feature.bins) if feature.edges[i] <= value < feature.edges[i + 1]]
        return inside[0] if inside else feature.bins - 1
    known = len(feature.categories)
    if feature.take == "argmax":
        if any(math.isnan(v) for v in row):
            return known + 1
        return min(row.index(max(row)), known)
    if feature.index >= len(row):
        return known + 1
    value = row[feature.index]
    text = value.decode() if isinstance(value, bytes) else str(value.item())
    if text == "nan":
        return known + 1
    return feature.categories.index(text) if text in feature.categories else known


def slow_moments(feature: Numeric, column: Any) -> list[float]:
    z = [(float(v) - feature.mean) / feature.scale for v in column if not math.isnan(v)]
    return [sum(z), sum(v * v for v in z)]


@given(
    st.lists(st.lists(st.sampled_from(SPECIAL) | st.floats(width=32), min_size=3, max_size=3), min_size=1, max_size=60),
    st.sampled_from(["FP16", "FP32", "FP64"]),
    st.integers(1, 7),
)
@settings(max_examples=60, deadline=None)
def test_cells_are_those_of_a_slow_count(values: list[list[float]], datatype: str, batch: int) -> None:
    dtype = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}[datatype]
    with np.errstate(over="ignore"):
        x = np.array(values, np.float64).astype(dtype)
    features = (numeric(index=0), numeric(index=2), numeric(take="max"), _classes("x"))
    profiler = Profiler(ReferenceProfile(1, features), manifest(TensorSpec("x", datatype, (-1, 3))))
    for start in range(0, len(x), batch):
        part = x[start : start + batch]
        profiler.add(len(part), {"x": part}, {})
    cells = profiler.close().cells
    assert cells == [count for feature in features for count in slow_cells(feature, x)]


def test_moments_are_the_sums_over_rows_that_are_not_missing() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3000, 3)).astype(np.float32)
    x[::7, 1] = np.nan
    features = (numeric(index=1), numeric(index=2))
    profiler = Profiler(ReferenceProfile(1, features), manifest(TensorSpec("x", "FP32", (-1, 3))))
    for row in x:
        profiler.add(1, {"x": row[np.newaxis]}, {})
    cells, moments = _closed(profiler)
    expected = [v for f in features for v in slow_moments(f, x[:, f.index])]
    np.testing.assert_allclose(np.frombuffer(moments, "<f4"), expected, rtol=1e-4)
    assert sum(cells) == 6000


def test_infinite_values_are_over_and_make_the_moment_infinite() -> None:
    feature = numeric()
    profiler = Profiler(ReferenceProfile(1, (feature,)), manifest(TensorSpec("x", "FP32", (-1, 1))))
    profiler.add(2, {"x": np.array([[np.inf], [np.nan]], np.float32)}, {})
    cells, moments = _closed(profiler)
    assert cells[feature.bins :] == [0, 1, 1]
    assert np.isinf(np.frombuffer(moments, "<f4")).all()


def test_closing_starts_a_new_window() -> None:
    profiler = Profiler(ReferenceProfile(1, (numeric(),)), manifest(TensorSpec("x", "FP32", (-1, 1))))
    profiler.add(1, {"x": np.ones((1, 1), np.float32)}, {})
    assert sum(profiler.close().cells) == 1
    cells, moments = _closed(profiler)
    assert sum(cells) == 0
    assert np.frombuffer(moments, "<f4").tolist() == [0.0, 0.0]


def test_inputs_come_before_outputs_whatever_the_block() -> None:
    spec, label = TensorSpec("x", "FP32", (-1, 1)), TensorSpec("label", "INT64", (-1,))
    named = Categorical("label", "label", ("0", "1"), (0, 0, 0, 0))
    profiler = Profiler(ReferenceProfile(1, (numeric(),), (named,)), manifest(spec, outputs=(label,)))
    for i in range(BLOCK_ROWS + 10):
        profiler.add(1, {"x": np.full((1, 1), 9, np.float32)}, {"label": np.array([i % 3])})
    cells = profiler.close().cells
    assert cells[: numeric().cells] == [0, 0, 0, 0, 0, 0, 0, BLOCK_ROWS + 10, 0]
    assert cells[numeric().cells :] == [345, 345, 344, 0]


@pytest.mark.parametrize(
    ("datatype", "values", "categories"),
    [
        ("INT64", np.array([[3], [4], [3], [-1]]), ("3", "4")),
        ("BOOL", np.array([[True], [False], [True]]), ("True", "False")),
        ("FP32", np.array([[1.5], [np.nan], [2.0]], np.float32), ("1.5",)),
        ("BYTES", np.array([[b"cat"], [b"dog"], [b"\xffx"], [b"cat"]], object), ("cat", "bird")),
    ],
)
def test_categories_are_found_by_their_text(datatype: str, values: Any, categories: tuple[str, ...]) -> None:
    feature = Categorical("c", "x", categories, (0,) * (len(categories) + 2))
    profiler = Profiler(ReferenceProfile(1, (feature,)), manifest(TensorSpec("x", datatype, (-1, 1))))
    profiler.add(len(values), {"x": values}, {})
    expected = [0] * feature.cells
    for (value,) in values.tolist():
        text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        missing = isinstance(value, float) and math.isnan(value)
        index = categories.index(text) if text in categories else len(categories)
        expected[len(categories) + 1 if missing else index] += 1
    assert profiler.close().cells == expected


def test_rows_that_are_too_short_for_a_feature_are_missing_there() -> None:
    features = (numeric(index=0), numeric(index=3))
    profiler = Profiler(ReferenceProfile(1, features), manifest(TensorSpec("x", "FP32", (-1, -1))))
    profiler.add(2, {"x": np.zeros((2, 2), np.float32)}, {})
    profiler.add(1, {"x": np.zeros((1, 4), np.float32)}, {})
    cells = profiler.close().cells
    assert cells == slow_cells(features[0], [[0.0]] * 3) + slow_cells(features[1], [[math.nan]] * 2 + [[0, 0, 0, 0.0]])


def test_a_tensor_without_batch_size_is_one_row() -> None:
    profiler = Profiler(ReferenceProfile(1, (numeric(index=1),)), manifest(TensorSpec("x", "FP32", (3,))))
    profiler.add(1, {"x": np.array([5, 0.05, 5], np.float32)}, {})
    assert profiler.close().cells == slow_cells(numeric(), [[0.05]])


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        (numeric("y"), "expected one of x, got tensor y"),
        (numeric("x"), "expected a tensor of numbers, got x of BYTES"),
    ],
)
def test_a_reference_that_does_not_fit_the_manifest_is_refused(feature: Feature, words: str) -> None:
    with pytest.raises(WindowError, match=words):
        Profiler(ReferenceProfile(1, (feature,)), manifest(TensorSpec("x", "BYTES", (-1, 1))))


def _classes(tensor: str) -> Categorical:
    return Categorical("class", tensor, ("a", "b"), (0, 0, 0, 0), take="argmax")


def test_wide_rows_do_not_wait_for_a_full_block() -> None:
    profiler = Profiler(ReferenceProfile(1, (numeric(),)), manifest(TensorSpec("x", "FP32", (-1, 1_000_000))))
    image = np.zeros((1, 1_000_000), np.float32)
    alive = weakref.ref(image)
    profiler.add(1, {"x": image}, {})
    del image
    assert alive() is None


def _closed(profiler: Profiler) -> tuple[list[int], bytes]:
    counted = profiler.close()
    return counted.cells, counted.moments
