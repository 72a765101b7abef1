"""Patches are exact, whatever the files are, and small where the tensors are alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_hub.patches.encode_layout import find_tensors
from cloud_hub.patches.encode_sections import EVERY_CODEC, WITHOUT_ZSTANDARD
from support.patches import (
    Arrays,
    onnx_file,
    onnx_with_external_data,
    safetensors_file,
    tflite_file,
    there_and_back,
)

FORMS = {"onnx": onnx_file, "safetensors": safetensors_file, "tflite": tflite_file}
ODD = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1")


def weights(seed: int = 1, *, rows: int = 64) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    random = np.random.default_rng(seed)
    return {
        "first": random.normal(0, 0.1, (rows, 48)).astype("f4"),
        "second": random.normal(0, 0.1, (96, rows)).astype("f4"),
        "bias": random.normal(0, 0.3, 96).astype("f4"),
    }


def moved(arrays: Arrays, by: float) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    random = np.random.default_rng(2)
    return {
        name: (array.astype("f8") * (1 + random.normal(0, by, array.shape))).astype(array.dtype)
        for name, array in arrays.items()
    }


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_tensor_is_found_with_its_name_shape_and_bytes(form: str) -> None:
    random = np.random.default_rng(3)
    arrays = {kind: random.integers(-99, 99, (3, 5)).astype(kind) for kind in ODD}
    data = FORMS[form](arrays)
    found = {tensor.name.strip("/"): tensor for tensor in find_tensors(data)}
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        tensor = found[name]
        assert data[tensor.start : tensor.end] == array.tobytes()
        assert tensor.shape == array.shape
        assert (tensor.element.floating, tensor.element.width) == (array.dtype.kind == "f", array.itemsize)


@pytest.mark.parametrize("by", [1e-3, 1e-5, 1.0])
def test_slightly_moved_weights_cost_their_differences(form: str, by: float, tmp_path: Path) -> None:
    base, target = FORMS[form](weights()), FORMS[form](moved(weights(), by))
    result = there_and_back(tmp_path, base, target)
    assert result.tensors == 3
    if by < 1:
        assert result.patch_size < {1e-3: 0.55, 1e-5: 0.35}[by] * len(target)


@pytest.mark.parametrize("kind", ODD)
def test_every_element_type_comes_back(form: str, kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    old = {"t": random.integers(0, 120, (500, 7)).astype(kind)}
    new = {"t": old["t"] + random.integers(0, 2, (500, 7)).astype(kind)}
    there_and_back(tmp_path, FORMS[form](old), FORMS[form](new))


@pytest.mark.parametrize(
    "values", [[np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324], [-1e300, 1e-300, 1.0, -1.0, 2.0, 0.5]]
)
def test_floats_that_are_no_numbers_keep_their_bits(values: list[float], tmp_path: Path) -> None:
    old, new = np.array(values * 50), np.array(list(reversed(values)) * 50)
    with np.errstate(over="ignore"):
        for kind in ("f8", "f4", "f2"):
            base, target = ({"t": array.astype(kind)} for array in (old, new))
            there_and_back(tmp_path, safetensors_file(base), safetensors_file(target))


def test_the_same_file_costs_a_few_bytes(form: str, tmp_path: Path) -> None:
    data = FORMS[form](weights())
    result = there_and_back(tmp_path, data, data)
    assert result.patch_size < 40
    assert result.referred == len(data)


def test_one_changed_tensor_costs_that_tensor(form: str, tmp_path: Path) -> None:
    new = {**weights(), "second": weights(9)["second"]}
    result = there_and_back(tmp_path, FORMS[form](weights()), FORMS[form](new))
    assert result.different + result.new <= new["second"].nbytes + 300
    assert result.patch_size <= new["second"].nbytes


@pytest.mark.parametrize("change", ["reordered", "renamed", "grown", "shrunk", "added", "gone"])
def test_tensors_that_moved_are_still_found_in_the_base(form: str, change: str, tmp_path: Path) -> None:
    old = weights()
    new = {
        "reordered": dict(reversed(old.items())),
        "renamed": {f"model.{name}": array for name, array in old.items()},
        "grown": {**old, "second": np.concatenate([old["second"], weights(7)["second"][:8]])},
        "shrunk": {**old, "second": old["second"][:-8]},
        "added": {"before": weights(7)["bias"], **old},
        "gone": {name: array for name, array in old.items() if name != "first"},
    }[change]
    result = there_and_back(tmp_path, FORMS[form](old), FORMS[form](new))
    fresh = weights(7)["second"][:8].nbytes
    assert result.patch_size < fresh + 1_000


def test_tensors_with_new_names_in_another_order_are_known_by_their_bytes(form: str, tmp_path: Path) -> None:
    one, other = weights(1, rows=1000)["first"], weights(7, rows=1000)["first"]
    old, new = FORMS[form]({"a": one, "b": other}), FORMS[form]({"c": other, "d": one})
    result = there_and_back(tmp_path, old, new)
    assert result.patch_size < 400


def test_a_layer_with_more_rows_is_compared_with_the_rows_it_had(form: str, tmp_path: Path) -> None:
    old, new = weights(rows=200), moved(weights(rows=200), 1e-3)
    new["second"] = np.concatenate([new["second"], weights(7, rows=200)["second"][:4]])
    target = FORMS[form](new)
    assert there_and_back(tmp_path, FORMS[form](old), target).patch_size < 0.56 * len(target)


def test_another_element_type_is_no_match_and_still_exact(form: str, tmp_path: Path) -> None:
    halves = {name: array.astype("f2") for name, array in weights().items()}
    result = there_and_back(tmp_path, FORMS[form](weights()), FORMS[form](halves))
    assert result.patch_size < sum(array.nbytes for array in halves.values()) + 600


def test_a_base_of_another_kind_is_no_hindrance(tmp_path: Path) -> None:
    files = [make(weights()) for make in FORMS.values()]
    for base, target in zip(files, [*files[1:], files[0]], strict=True):
        # The tensors' bytes are the same wherever they lie.
        assert there_and_back(tmp_path, base, target).patch_size < 2_000


def test_external_data_is_read_by_the_model_beside_it(tmp_path: Path) -> None:
    old, base = onnx_with_external_data(tmp_path, "old", weights())
    new, target = onnx_with_external_data(tmp_path, "new", dict(reversed(moved(weights(), 1e-3).items())))
    told = there_and_back(tmp_path, base, target, graphs=(old, new))
    assert told.tensors == 3
    assert told.patch_size < 0.55 * len(target)


def test_raw_weights_are_told_by_guessing_at_their_elements(tmp_path: Path) -> None:
    old = weights(rows=400)
    base, target = (b"".join(array.tobytes() for array in arrays.values()) for arrays in (old, moved(old, 1e-3)))
    result = there_and_back(tmp_path, base, target)
    assert result.tensors == 0
    assert result.patch_size < 0.55 * len(target)


@pytest.mark.parametrize("where", ["before", "behind"])
def test_raw_weights_beside_something_that_grew_are_found(where: str, tmp_path: Path) -> None:
    old, new = (arrays["first"].tobytes() for arrays in (weights(rows=400), moved(weights(rows=400), 1e-3)))
    name, longer = b"a name of 24 bytes, here", b"a much longer name that has forty-four bytes"
    base, target = (name + old, longer + new) if where == "before" else (old + name, new + longer)
    assert there_and_back(tmp_path, base, target).patch_size < 0.55 * len(target)


def test_a_device_without_zstandard_gets_a_patch_that_it_can_read(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, target = FORMS[form](weights()), FORMS[form](moved(weights(), 1e-3)) + b"A text. " * 50
    monkeypatch.setitem(__import__("sys").modules, "backports.zstd", None)
    monkeypatch.setitem(__import__("sys").modules, "compression.zstd", None)
    result = there_and_back(tmp_path, base, target, codecs=WITHOUT_ZSTANDARD)
    assert result.patch_size < 0.55 * len(target)


def test_text_costs_no_more_than_a_generic_patch(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    words = [bytes(random.integers(97, 123, size).astype("u1")) for size in random.integers(2, 9, 800)]
    old = b" ".join(words[place] for place in random.integers(0, 800, 40_000))
    new = old[:50_000] + b"inserted" + old[60_000:] + old[10_000:20_000]
    assert there_and_back(tmp_path, old, new).patch_size < 200


@pytest.mark.parametrize(
    ("base", "target"), [(b"", b""), (b"", b"x"), (b"x", b""), (b"", bytes(3_000_000)), (b"ab", b"ba")]
)
def test_empty_and_tiny_files(base: bytes, target: bytes, tmp_path: Path) -> None:
    assert there_and_back(tmp_path, base, target).patch_size < 200


def test_noise_costs_itself_and_a_few_bytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(6).bytes(2_500_000)
    assert there_and_back(tmp_path, noise[:1000], noise).patch_size < len(noise) + 100


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_model_has_tensors_within_it_or_none(form: str, data: st.DataObject) -> None:
    damaged = bytearray(FORMS[form](weights(rows=2)))
    for place in data.draw(st.lists(st.integers(0, min(400, len(damaged) - 9)), min_size=1, max_size=5)):
        damaged[place : place + data.draw(st.integers(1, 4))] = data.draw(st.binary(max_size=6))
    end = 0
    for tensor in find_tensors(bytes(damaged)):
        assert end <= tensor.start < tensor.end <= len(damaged)
        end = tensor.end


@st.composite
def two_files(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A target of stretches of the base, changed ones, and new ones."""
    base = draw(st.binary(max_size=2_000)) * draw(st.integers(1, 4))
    parts = []
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(base)))
        part = bytearray(base[start : start + draw(st.integers(0, 3_000))])
        for place in draw(st.lists(st.integers(0, 3_000), max_size=20)):
            if place < len(part):
                part[place] ^= draw(st.integers(1, 255))
        parts.append(bytes(part) + draw(st.binary(max_size=100)))
    return base, b"".join(parts)


@given(files=two_files(), zstandard=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_two_files_have_a_patch(files: tuple[bytes, bytes], zstandard: bool, tmp_path: Path) -> None:
    there_and_back(tmp_path, *files, codecs=EVERY_CODEC if zstandard else WITHOUT_ZSTANDARD)
