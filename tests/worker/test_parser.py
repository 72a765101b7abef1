"""The request parser against anything: it refuses with words or understands, and never raises something else."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.endpoint.codec import DTYPES, from_bytes, from_json, to_bytes, to_json
from agent.endpoint.exchange import Refused
from agent.endpoint.oip import Call, Parser
from modules.errors import TensorError
from modules.manifest import Lineage, Manifest, Runtime
from modules.tensors import DATATYPES, ITEM_SIZE, TensorSpec
from worker.driver import bytes_tensor

SPECS = tuple(TensorSpec(name.lower(), name, (-1, 2)) for name in sorted(DATATYPES))
ONE = Manifest("m", 1, "pi", Lineage("m", 1), SPECS[:1], SPECS[:1], (), Runtime(model=""))
ALL = Manifest("m", 1, "pi", Lineage("m", 1), SPECS, SPECS, (), Runtime(model=""))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from([spec.name for spec in SPECS]) | JSON,
        "datatype": st.sampled_from(sorted(DATATYPES)) | JSON,
        "shape": st.just([1, 2]) | st.lists(st.integers(-2, 2**70), max_size=4) | JSON,
        "data": st.lists(JSON, min_size=2, max_size=2) | JSON,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "x"]), st.integers(0, 40) | JSON) | JSON,
    },
)
REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=4) | JSON,
        "inputs": st.lists(TENSOR, max_size=3) | JSON,
        "outputs": st.lists(TENSOR, max_size=3) | JSON,
        "parameters": st.dictionaries(st.just("binary_data_output"), JSON) | JSON,
    },
)


def outcome(parser: Parser, body: bytes, length: int | None) -> Call | Refused:
    try:
        return parser.parse(body, length)
    except Refused as error:
        refused = error
    assert refused.status == 400
    assert str(refused)
    return refused


@given(st.binary(max_size=200), st.none() | st.integers(0, 300))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_refused(body: bytes, length: int | None) -> None:
    assert isinstance(outcome(Parser(ALL, frozenset()), body, length), Refused)


@given(REQUEST, st.binary(max_size=50), st.booleans())
@settings(max_examples=400, deadline=None)
def test_anything_that_looks_like_a_request_is_refused_or_understood(
    head: dict[str, Any], blobs: bytes, announce: bool
) -> None:
    text = json.dumps(head).encode()
    parsed = outcome(Parser(ONE, frozenset({"bool"})), text + blobs, len(text) if announce else None)
    if isinstance(parsed, Call):
        assert parsed.inputs["bool"].shape[1:] == (2,)
        assert parsed.inputs["bool"].dtype == np.bool_


def arrays(datatype: str) -> list[np.ndarray[Any, Any]]:
    if datatype == "BYTES":
        words = np.empty(4, object)
        words[:] = [b"", "grün".encode(), b"three", b"x" * 300]
        return [words.reshape(2, 2)]
    if datatype == "BOOL":
        return [np.array([[True, False], [False, True]])]
    dtype = DTYPES[datatype]
    if dtype.kind == "f":
        return [np.array([[1.5, -2.25], [0, 1e4]], dtype), np.array([[np.inf, -0.0]], dtype)]
    limits = np.iinfo(dtype)
    return [np.array([[limits.min, limits.max], [0, 1]], dtype)]


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_every_datatype_survives_the_way_through_bytes(datatype: str) -> None:
    for array in arrays(datatype):
        data = to_bytes(datatype, array)
        again = from_bytes("x", datatype, array.shape, data)
        assert again.tolist() == array.tolist()
        assert again.dtype == DTYPES[datatype]


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_every_datatype_survives_the_way_through_json(datatype: str) -> None:
    for array in arrays(datatype)[:1]:
        data = json.dumps(to_json(datatype, array)).encode()
        assert from_json("x", datatype, array.shape, data).tolist() == array.tolist()


@pytest.mark.parametrize("datatype", sorted(set(ITEM_SIZE) - {"FP16", "FP32", "FP64", "BOOL"}))
def test_a_number_outside_an_integer_type_is_refused(datatype: str) -> None:
    limits = np.iinfo(DTYPES[datatype])
    for number in (int(limits.max) + 1, int(limits.min) - 1, 1.5):
        with pytest.raises(TensorError, match=f"x: expected {datatype}"):
            from_json("x", datatype, (1,), json.dumps([number]).encode())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x05\0\0\0abc", "expected an element of 5 bytes at byte 4, got 3"),
        (b"\x05\0", "expected a 4-byte length at byte 0, got 2 bytes"),
        (bytes_tensor(b"a"), "expected 2 elements, got 1"),
        (bytes_tensor(b"a", b"b", b"c"), "expected 2 elements, got 2 and 5 bytes after them"),
        (b"\xff\xff\xff\xff", "expected an element of 4294967295 bytes"),
    ],
)
def test_broken_lengths_of_bytes_elements_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(TensorError, match=words):
        from_bytes("x", "BYTES", (2,), data)


def test_rows_of_text_that_differ_in_length_are_the_callers_fault() -> None:
    with pytest.raises(TensorError, match="lists of different lengths"):
        from_json("x", "BYTES", (2, 2), b'[["a", "b"], ["c"]]')
