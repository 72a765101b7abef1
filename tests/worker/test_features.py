"""What is counted on the device is what the hub counted in the training sample, for every kind of feature.

The hub's profile of some rows and the device's count of the same rows must be the same numbers: that is all that
evidence is made of.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from agent.watching import profiler as profiling
from agent.watching.profiler import STRIDE, Counted, Profiler
from cloud_hub.reference import profile_training
from cloud_hub.wide_reference import PROJECTIONS, WIDE
from modules.errors import WindowError
from modules.manifest import Lineage, Manifest, Runtime
from modules.projection import TERMS, projection
from modules.tensors import TensorSpec
from modules.windows import (
    JOINT_TICK,
    Categorical,
    Feature,
    Numeric,
    ReferenceProfile,
    decode_reference,
    encode_reference,
    unpack_joint,
)

RNG = np.random.default_rng(4)


@pytest.fixture(autouse=True)
def _every_row_is_in_the_joint_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "STRIDE_S", 0.0)


def manifest(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...] = ()) -> Manifest:
    return Manifest("m", 1, "pi", Lineage("m", 1), inputs, outputs, (), Runtime(model=""))


def counted(profile: ReferenceProfile, specs: tuple[TensorSpec, ...], arrays: dict[str, Any], batch: int) -> Counted:
    profiler = Profiler(decode_reference(encode_reference(profile)), manifest(specs))
    rows = len(next(iter(arrays.values())))
    for start in range(0, rows, batch):
        part = {name: array[start : start + batch] for name, array in arrays.items()}
        profiler.add(min(batch, rows - start), part, {})
    return profiler.close()


def joint_of(profile: ReferenceProfile, closed: Counted) -> tuple[int, Any]:
    assert profile.joint is not None
    rows, ticks = unpack_joint(closed.joint, profile.joint.dimensions)
    return rows, np.array(ticks) * JOINT_TICK


IMAGES = RNG.integers(0, 256, (300, 12, 12, 3)).astype(np.uint8)
SOUNDS = (np.sin(np.arange(400) * RNG.uniform(0.01, 1, (300, 1))) * RNG.uniform(0, 1, (300, 1))).astype(np.float32)
TEXTS = np.array([[b"x" * int(n)] for n in RNG.integers(0, 300, 300)], object)
KINDS: dict[str, tuple[TensorSpec, Any]] = {
    "table": (TensorSpec("x", "FP32", (-1, 5)), RNG.normal(size=(300, 5)).astype(np.float32)),
    "whole numbers": (TensorSpec("x", "INT64", (-1, 2)), RNG.integers(-5, 100, (300, 2))),
    "booleans": (TensorSpec("x", "BOOL", (-1, 2)), RNG.random((300, 2)) < [0.2, 0.7]),
    "categories": (TensorSpec("x", "BYTES", (-1, 1)), RNG.choice([b"a", b"b"], (300, 1)).astype(object)),
    "free text": (TensorSpec("x", "BYTES", (-1, 1)), np.array([[b"t%d" % i] for i in range(300)], object)),
    "lengths": (TensorSpec("x", "BYTES", (-1, 1)), TEXTS),
    "image, channels last": (TensorSpec("x", "UINT8", (-1, 12, 12, 3)), IMAGES),
    "image, channels first": (
        TensorSpec("x", "FP32", (-1, 3, 12, 12)),
        np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2) / np.float32(255), np.float32),
    ),
    "half precision": (TensorSpec("x", "FP16", (-1, 20, 20)), RNG.normal(size=(300, 20, 20)).astype(np.float16)),
    "sound": (TensorSpec("x", "FP32", (-1, 400)), SOUNDS),
    "images of any size": (TensorSpec("x", "FP32", (-1, -1, -1)), RNG.normal(size=(300, 18, 18)).astype(np.float32)),
    "one row at a time": (TensorSpec("x", "FP32", (1, 4)), RNG.normal(size=(300, 4)).astype(np.float32)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 7, 300])
def test_the_device_counts_the_training_rows_as_the_hub_did(kind: str, batch: int) -> None:
    spec, array = KINDS[kind]
    if spec.shape[0] == 1:
        batch = 1
    profile = profile_training({"x": array}, {}, [spec], [])
    closed = counted(profile, (spec,), {"x": array}, batch)
    assert closed.cells == [count for feature in profile.inputs for count in feature.counts]
    moments = np.frombuffer(closed.moments, "<f4").reshape(-1, 2)
    assert np.abs(moments[:, 0]).max(initial=0) < 0.05  # sums of standardised values
    if profile.joint is not None:
        assert joint_of(profile, closed)[0] == 300
        assert np.abs(joint_of(profile, closed)[1]).max() < 1


@pytest.mark.parametrize(
    ("kind", "takes"),
    [
        ("booleans", ["False|True"] * 2),
        ("free text", ["length"]),
        ("image, channels last", ["brightness", "contrast", "sharpness"] + ["projection"] * PROJECTIONS),
        ("sound", ["energy", "crossings", "sharpness"] + ["projection"] * PROJECTIONS),
        ("table", ["column"] * 5),
    ],
)
def test_the_features_are_few_and_fit_what_the_input_is(kind: str, takes: list[str]) -> None:
    spec, array = KINDS[kind]
    profile = profile_training({"x": array}, {}, [spec], [])
    assert [_said(feature) for feature in profile.inputs] == takes
    assert profile.is_plain == (kind in ("booleans", "table"))


def _said(feature: Feature) -> str:
    return "|".join(feature.categories) if isinstance(feature, Categorical) else feature.take


@pytest.mark.parametrize(
    ("shape", "labels", "features"),
    [((8, 8), (), 64), ((WIDE,), (), WIDE), ((WIDE + 1,), (), 11), ((WIDE + 1,), "named", WIDE + 1)],
)
def test_only_wide_rows_whose_elements_have_no_names_are_taken_as_a_whole(
    shape: tuple[int, ...], labels: Any, features: int
) -> None:
    names = tuple(f"sensor{i}" for i in range(math.prod(shape))) if labels else ()
    spec = TensorSpec("x", "FP32", (-1, *shape), names)
    profile = profile_training({"x": RNG.normal(size=(50, *shape)).astype(np.float32)}, {}, [spec], [])
    assert len(profile.inputs) == features


def value_of(feature: Numeric, array: Any, shape: tuple[int, ...]) -> float:
    """The only row's, read from the sum of z."""
    spec = TensorSpec("x", {"f": "FP32", "u": "UINT8", "O": "BYTES"}[array.dtype.kind], (-1, *shape))
    closed = counted(ReferenceProfile(1, (feature,)), (spec,), {"x": array[np.newaxis]}, 1)
    return math.nan if closed.cells[-1] else float(np.frombuffer(closed.moments, "<f4")[0])


def taken(take: Any, axes: tuple[int, ...] = (), index: int = 0) -> Numeric:
    return Numeric("n", "x", (0.0, 1.0), (0,) * 4, 0.0, 1.0, take, index, axes)


def test_what_is_taken_of_an_image_by_hand() -> None:
    image = np.array([[0, 10], [30, 40]], np.uint8)
    assert value_of(taken("brightness"), image, (2, 2)) == 20
    assert value_of(taken("contrast"), image, (2, 2)) == pytest.approx(math.sqrt(250))
    assert value_of(taken("energy"), image, (2, 2)) == pytest.approx(math.sqrt(650))
    assert value_of(taken("sharpness", (-2, -1)), image, (2, 2)) == (30 + 30 + 10 + 10) / 4
    assert value_of(taken("sharpness", (-1,)), image, (2, 2)) == 10


def test_what_is_taken_of_a_sound_and_of_a_text_by_hand() -> None:
    sound = np.array([1, -1, -2, 0, 3], np.float32)
    assert value_of(taken("crossings", (-1,)), sound, (5,)) == 0.5
    assert value_of(taken("energy"), sound, (5,)) == pytest.approx(math.sqrt(3))
    assert value_of(taken("length"), np.array(["grün".encode()], object), (1,)) == 5


def test_a_projection_is_the_weighted_sum_of_what_is_drawn() -> None:
    row = RNG.normal(size=1000).astype(np.float32)
    places, weights = projection(2, 1000)
    expected = sum(float(row[place]) * weight for place, weight in zip(places, weights, strict=True))
    assert len(places) == TERMS
    assert value_of(taken("projection", index=2), row, (1000,)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("take", ["brightness", "contrast", "energy", "sharpness", "crossings", "max"])
def test_a_row_with_a_missing_element_is_missing(take: str) -> None:
    row = np.array([1.0, math.nan, 2.0], np.float32)
    assert math.isnan(value_of(taken(take, (-1,) if take in ("sharpness", "crossings") else ()), row, (3,)))


def test_axes_that_a_row_does_not_have_are_refused() -> None:
    profile = ReferenceProfile(1, (taken("sharpness", (-2, -1)),))
    with pytest.raises(WindowError, match="expected axes from -1 to -1, got"):
        Profiler(profile, manifest((TensorSpec("x", "FP32", (-1, 5)),)))


def test_length_is_of_texts_only() -> None:
    with pytest.raises(WindowError, match="expected a tensor of BYTES, got x of FP32"):
        Profiler(ReferenceProfile(1, (taken("length"),)), manifest((TensorSpec("x", "FP32", (-1, 5)),)))


TABLE = TensorSpec("x", "FP32", (-1, 6))


def related(rows: int, correlation: float, rng: np.random.Generator) -> Any:
    x = rng.normal(size=(rows, 6))
    x[:, 1] = correlation * x[:, 0] + math.sqrt(1 - correlation**2) * x[:, 1]
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def world() -> ReferenceProfile:
    return profile_training({"x": related(5000, 0.7, np.random.default_rng(7))}, {}, [TABLE], [])


def distance(profile: ReferenceProfile, rows: Any) -> float:
    """Squared length of the sums over the rows: about the number of dimensions where nothing changed."""
    count, sums = joint_of(profile, counted(profile, (TABLE,), {"x": rows}, 64))
    return float(sums @ sums) / count


def test_without_a_change_the_sums_are_as_large_as_chance_makes_them(world: ReferenceProfile) -> None:
    assert world.joint is not None
    rng = np.random.default_rng(8)
    found = [distance(world, related(300, 0.7, rng)) for _ in range(40)]
    assert 0.6 * world.joint.dimensions < np.mean(found) < 1.3 * world.joint.dimensions


def test_inputs_that_go_together_otherwise_than_before_show_though_each_is_as_it_was(world: ReferenceProfile) -> None:
    rng = np.random.default_rng(9)
    usual = [distance(world, related(300, 0.7, rng)) for _ in range(40)]
    changed = [distance(world, related(300, -0.2, rng)) for _ in range(40)]
    assert min(changed) > max(usual)


def test_one_wild_value_moves_the_sums_no_more_than_a_row_can(world: ReferenceProfile) -> None:
    rng = np.random.default_rng(10)
    rows = related(300, 0.7, rng)
    spoiled = rows.copy()
    spoiled[17, 3] = 1e6
    assert world.joint is not None
    (_, before), (_, after) = (joint_of(world, counted(world, (TABLE,), {"x": x}, 300)) for x in (rows, spoiled))
    assert np.linalg.norm(after - before) < 0.2 * np.linalg.norm(before)
    assert distance(world, spoiled) < 2 * world.joint.dimensions


def test_a_row_with_a_missing_input_is_in_no_sum(world: ReferenceProfile) -> None:
    rows = related(300, 0.7, np.random.default_rng(11))
    expected = joint_of(world, counted(world, (TABLE,), {"x": rows}, 300))
    storm = np.concatenate([rows, np.full((200, 6), np.nan, np.float32)])
    storm[300:, :5] = 0.0
    count, sums = joint_of(world, counted(world, (TABLE,), {"x": storm}, 50))
    assert count == expected[0] == 300
    np.testing.assert_allclose(sums, expected[1], atol=2 * JOINT_TICK)
    assert counted(world, (TABLE,), {"x": storm[300:]}, 50).joint == b""


def test_sums_of_parts_add_up_to_the_sum_of_the_whole(world: ReferenceProfile) -> None:
    rows = related(1000, 0.7, np.random.default_rng(12))
    whole = joint_of(world, counted(world, (TABLE,), {"x": rows}, 100))
    parts = [joint_of(world, counted(world, (TABLE,), {"x": rows[i : i + 250]}, 10)) for i in range(0, 1000, 250)]
    assert sum(count for count, _ in parts) == whole[0]
    np.testing.assert_allclose(sum(sums for _, sums in parts), whole[1], atol=3 * JOINT_TICK)


def test_where_rows_are_very_many_some_of_them_stand_for_all(
    world: ReferenceProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "STRIDE_S", math.inf)
    rows = related(5000, 0.7, np.random.default_rng(13))
    closed = counted(world, (TABLE,), {"x": rows}, 100)
    count, sums = joint_of(world, closed)
    assert sum(closed.cells) == 6 * 5000
    assert 5000 // STRIDE <= count < 5000 // STRIDE + 10
    assert world.joint is not None
    assert float(sums @ sums) / count < 2.5 * world.joint.dimensions


@pytest.mark.parametrize(
    ("rows", "constant"), [(100, False), (5000, True)], ids=["few rows", "inputs that do not vary"]
)
def test_there_are_no_joint_features_where_they_would_say_nothing(rows: int, constant: bool) -> None:
    x = related(rows, 0.7, np.random.default_rng(14))
    if constant:
        x[:, 1:] = 3.0
    assert profile_training({"x": x}, {}, [TABLE], []).joint is None


def test_inputs_of_several_tensors_are_joined_row_by_row() -> None:
    rng = np.random.default_rng(15)
    x = related(3000, 0.9, rng)
    arrays = {"a": x[:, :1], "b": x[:, 1].astype(np.float64), "image": rng.normal(size=(3000, 300)).astype(np.float32)}
    specs = (
        TensorSpec("a", "FP32", (-1, 1)), TensorSpec("b", "FP64", (-1,)), TensorSpec("image", "FP32", (-1, 300)),
    )  # fmt: skip
    profile = profile_training(arrays, {}, list(specs), [])
    assert profile.joint is not None
    assert len(profile.joint.inputs) == 2 + 11
    count, sums = joint_of(profile, counted(profile, specs, arrays, 100))
    assert count == 3000
    assert np.abs(sums).max() < 2
    swapped = {**arrays, "b": arrays["b"][::-1].copy()}
    assert np.abs(joint_of(profile, counted(profile, specs, swapped, 100))[1]).max() > 100


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        ({"inputs": (0, 1, 2, 3, 4, 99)}, "expected places of numeric inputs, got 99"),
        ({"inputs": (0, 1)}, "bytes of frequencies"),
        ({"inputs": ()}, "got 48 dimensions, 0 inputs"),
        ({"dimensions": 3}, "bytes of frequencies"),
        ({"whiten": b""}, "bytes of whiten, got 0"),
        ({"dimensions": 100_000}, "expected 1 to 512 dimensions"),
        ({"mean": b"\0\0\xc0\x7f" * 24}, "expected finite mean"),
    ],
)
def test_joint_features_that_contradict_themselves_are_refused(
    world: ReferenceProfile, spoiled: dict[str, Any], words: str
) -> None:
    assert world.joint is not None
    if "mean" in spoiled:
        spoiled = {"mean": spoiled["mean"][:4] * world.joint.dimensions}
    with pytest.raises(WindowError, match=words):
        _spoil(world, spoiled)


def _spoil(world: ReferenceProfile, fields: dict[str, Any]) -> None:
    assert world.joint is not None
    joint = msgspec.structs.replace(world.joint, **fields)
    Profiler(msgspec.structs.replace(world, joint=joint), manifest((TABLE,)))
