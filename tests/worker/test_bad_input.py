"""Everything a client can get wrong is a 4xx that says what was expected and what came; the worker survives it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from agent.sandbox.protocol import Drain, Drained
from modules.manifest import Manifest, Resources
from modules.windows import ReferenceProfile, encode_reference, unpack_counts
from worker.conftest import INPUTS, OUTPUTS, Digits
from worker.driver import WorkerDriver, binary_input, infer_request, json_input, request, write_module

ROW = np.zeros((1, 64), np.float32)
GOOD = json_input(ROW)


@pytest.fixture
async def serving(tmp_path: Path, digits_module: Manifest) -> AsyncIterator[WorkerDriver]:
    """After each test the worker must still answer, and must have counted no error of its own."""
    small = msgspec.structs.replace(digits_module, resources=Resources(max_request_bytes=100_000))
    async with WorkerDriver(tmp_path / "slot", small) as driver:
        await driver.serve()
        yield driver
        assert (await driver.infer({"inputs": [GOOD]})).status == 200
        stats = await driver.stats()
        assert (stats.requests, stats.errors, stats.in_flight) == (stats.refused + 1, 0, 0)


def nan_row() -> np.ndarray[Any, np.dtype[np.float32]]:
    row = ROW.copy()
    row[0, 5] = np.nan
    return row


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "expected an infer request in JSON"),
        (b"{", "expected an infer request in JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b"[" * 100_000, "expected an infer request in JSON"),
        ({"id": "1"}, "missing required field `inputs`"),
        ({"inputs": []}, "inputs: expected x, got none"),
        ({"inputs": "x"}, "Expected `array`, got `str`"),
        ({"inputs": [GOOD], "id": 5}, "Expected `str`, got `int`"),
        ({"inputs": [GOOD], "id": "i" * 300}, "id: expected at most 256 characters, got 300"),
        ({"inputs": [GOOD, GOOD]}, "input x: expected once, got it twice"),
        ({"inputs": [{**GOOD, "name": "pixels"}]}, "inputs: expected x, got 'pixels'"),
        ({"inputs": [{**GOOD, "datatype": "FP64"}]}, "input x: expected FP32, got 'FP64'"),
        ({"inputs": [{**GOOD, "shape": [1, 63]}]}, "input x: expected shape [-1, 64], got [1, 63]"),
        ({"inputs": [{**GOOD, "shape": [64]}]}, "expected shape [-1, 64], got [64]"),
        ({"inputs": [{**GOOD, "shape": [0, 64], "data": []}]}, "expected shape [-1, 64], got [0, 64]"),
        ({"inputs": [{**GOOD, "shape": [-1, 64]}]}, "expected shape [-1, 64], got [-1, 64]"),
        ({"inputs": [{**GOOD, "shape": [10**15, 64]}]}, "expected 64000000000000000 elements"),
        ({"inputs": [{**GOOD, "shape": [2, 64]}]}, "input x: expected 128 elements for [2, 64], got [64]"),
        ({"inputs": [{**GOOD, "data": [0.0] * 63}]}, "input x: expected 64 elements for [1, 64], got [63]"),
        ({"inputs": [{**GOOD, "data": ["0"] * 64}]}, "Expected `float | null`, got `str`"),
        ({"inputs": [{**GOOD, "data": [True] * 64}]}, "Expected `float | null`, got `bool`"),
        ({"inputs": [{**GOOD, "data": [[0.0] * 63, [0.0]]}]}, "input x: expected FP32 [1, 64]"),
        ({"inputs": [{**GOOD, "data": [[[0.0] * 64]]}]}, "expected a flat list or one nested 2 deep, got 3"),
        ({"inputs": [{**GOOD, "data": {}}]}, "expected a flat list"),
        ({"inputs": [{k: v for k, v in GOOD.items() if k != "data"}]}, "expected data or parameters.binary_data_size"),
        ({"inputs": [{**GOOD, "parameters": {"binary_data_size": 256}}]}, "got both"),
        ({"inputs": [{**GOOD, "parameters": {"shared_memory_region": "r"}}]}, "got a shared memory region"),
        ({"inputs": [GOOD], "outputs": [{"name": "score"}]}, "outputs: expected label, probabilities, got 'score'"),
        ({"inputs": [{**GOOD, "data": [None] * 64}]}, "got NaN in 64 of 64 elements, the first at 0"),
    ],
)
async def test_a_wrong_request_is_answered_with_what_was_expected(
    serving: WorkerDriver, head: object, words: str
) -> None:
    response = await serving.infer(head)
    assert response.status == 400
    assert words in response.error


@pytest.mark.parametrize(
    ("head", "blobs", "words"),
    [
        (binary_input(ROW), ROW.tobytes()[:-1], "input x: expected 256 bytes of binary data, got 255"),
        (binary_input(ROW), ROW.tobytes() + b"\0", "bytes of body by its sizes"),
        (binary_input(ROW[:, :3]), b"\0" * 12, "expected shape [-1, 64], got [1, 3]"),
        (
            {**binary_input(ROW), "parameters": {"binary_data_size": 8}},
            b"\0" * 8,
            "expected 256 bytes for FP32 [1, 64]",
        ),
        (
            {**binary_input(ROW), "parameters": {"binary_data_size": -1}},
            b"\0" * 8,
            "expected binary_data_size as a numb",
        ),
        ({**binary_input(ROW), "parameters": {"binary_data_size": "256"}}, b"\0" * 256, "as a number, got '256'"),
        ({**binary_input(ROW), "parameters": {"binary_data_size": True}}, b"\0" * 256, "as a number, got 'True'"),
        ({**binary_input(ROW), "shape": [2**62, 64]}, ROW.tobytes(), "expected 1180591620717411303424 bytes for FP32"),
        (
            {**binary_input(ROW), "parameters": {"binary_data_size": 2**70}},
            ROW.tobytes(),
            "expected 1180591620717411303424 bytes of binary data, got 256",
        ),
        (binary_input(ROW), nan_row().tobytes(), "input x: expected numbers (the training data has no missing values)"),
    ],
)
async def test_wrong_binary_data_is_answered_with_what_was_expected(
    serving: WorkerDriver, head: object, blobs: bytes, words: str
) -> None:
    response = await serving.infer({"inputs": [head]}, blobs)
    assert response.status == 400
    assert words in response.error


async def test_json_that_is_known_does_not_excuse_another_size_of_body(tmp_path: Path, digits_module: Manifest) -> None:
    async with WorkerDriver(tmp_path / "slot", digits_module) as worker:
        await worker.serve()
        head, data = {"inputs": [binary_input(ROW)]}, ROW.tobytes()
        for wrong in (data[:-4], data[:-1], data + b"\0", data + data, b""):
            assert (await worker.infer(head, data)).status == 200
            response = await worker.infer(head, wrong, header=len(json.dumps(head)))
            assert (response.status, "expected" in response.error) == (400, True)


@pytest.mark.parametrize("length", [0, 10, 10_000])
async def test_a_header_length_that_lies_is_refused(serving: WorkerDriver, length: int) -> None:
    response = await serving.infer({"inputs": [GOOD]}, header=length)
    assert response.status == 400
    assert "expected" in response.error


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/other/infer", 404),
        ("/v2/models/digits/versions/8/infer", 404),
        ("/v2/models/digits/versions/x/infer", 404),
        ("/v2/models/digits", 405),
        ("/elsewhere", 404),
        ("/v2/repository/models/digits/unload", 403),
    ],
)
async def test_a_post_elsewhere_is_refused_by_name(
    tmp_path: Path, digits_module: Manifest, path: str, status: int
) -> None:
    async with WorkerDriver(tmp_path / "slot", digits_module) as worker:
        await worker.serve()
        response = await worker.infer({"inputs": [GOOD]}, path=path)
        assert response.status == status
        assert "digits" in response.error or "GET" in response.error


@pytest.mark.parametrize(("method", "path"), [("GET", "/v2/models/digits/infer"), ("DELETE", "/v2/models/digits")])
async def test_a_wrong_method_is_405_with_the_right_one(serving: WorkerDriver, method: str, path: str) -> None:
    response = await serving.ask(request(method, path))
    assert response.status == 405
    assert response.headers["allow"] in ("GET", "POST")


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/digits/versions/9/ready", "/v2/%ff%00"])
async def test_another_model_is_404_with_its_name(serving: WorkerDriver, path: str) -> None:
    response = await serving.ask(request("GET", path))
    assert response.status == 404
    assert "expected /v2/models/digits" in response.error


async def test_a_request_over_the_limit_is_413_before_it_is_read(serving: WorkerDriver) -> None:
    client = await serving.connect()
    response = await client.ask(b"POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: 100001\r\n\r\n{")
    assert response.status == 413
    assert "at most 100000 bytes, got at least 100001" in response.error
    assert response.headers["connection"] == "close"
    await client.close()


async def test_chunks_over_the_limit_are_413(serving: WorkerDriver) -> None:
    client = await serving.connect()
    chunk = b"%x\r\n%b\r\n" % (60_000, b" " * 60_000)
    response = await client.ask(
        b"POST /v2/models/digits/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 2
    )
    assert response.status == 413
    await client.close()


async def test_more_body_than_announced_is_no_next_request(serving: WorkerDriver) -> None:
    client = await serving.connect()
    text = json.dumps({"inputs": [GOOD]}).encode()
    raw = b"POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (len(text) - 5)
    assert (await client.ask(raw + text)).status == 400
    assert (await client.read()).status == 400
    assert await client.ended()
    await client.close()


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"HELLO\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nContent-Length: -3\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\nX: " + b"a" * 20_000, 431),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\n" + b"A: b\r\n" * 9000 + b"\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nabc", 200),
        (b"POST /v2 HTTP/1.1\r\nContent-Encoding: br\r\nContent-Length: 3\r\n\r\nabc", 415),
        (b"POST /v2 HTTP/1.1\r\nInference-Header-Content-Length: x\r\nContent-Length: 3\r\n\r\nabc", 400),
    ],
)
async def test_what_is_not_http_as_we_speak_it_is_refused_and_closed(
    serving: WorkerDriver, raw: bytes, status: int
) -> None:
    client = await serving.connect()
    response = await client.ask(raw)
    assert response.status == status
    assert response.headers["connection"] == "close"
    assert await client.ended()
    await client.close()


async def test_what_came_whole_before_the_nonsense_is_still_answered(serving: WorkerDriver) -> None:
    client = await serving.connect()
    client.writer.write(request("GET", "/v2") + b"\0\0nonsense\r\n\r\n" + request("GET", "/v2"))
    assert [(await client.read()).status, (await client.read()).status] == [200, 400]
    assert await client.ended()
    await client.close()


async def test_a_client_that_leaves_in_the_middle_harms_nobody(serving: WorkerDriver) -> None:
    whole = infer_request({"inputs": [GOOD]})
    for length in range(1, len(whole), 97):
        client = await serving.connect()
        client.writer.write(whole[:length])
        await client.close()


async def test_nan_is_a_value_where_the_training_data_had_missing_ones(
    tmp_path: Path, digits: Digits, reference: ReferenceProfile
) -> None:
    seen = [msgspec.structs.replace(f, counts=(*f.counts[:-1], 3)) for f in reference.inputs[:1]]
    files = {"model.onnx": digits.onnx, "r.json": encode_reference(ReferenceProfile(100, tuple(seen)))}
    manifest = write_module(tmp_path / "slot", files, inputs=INPUTS, outputs=OUTPUTS, reference="r.json")
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        await worker.serve()
        head = {"inputs": [binary_input(ROW)]}
        assert (await worker.infer(head, nan_row().tobytes())).status == 200
        assert (await worker.infer({"inputs": [{**GOOD, "data": [None] * 64}]})).status == 200


async def test_nan_is_a_value_where_nobody_knows_the_training_data(tmp_path: Path, digits: Digits) -> None:
    manifest = write_module(tmp_path / "slot", {"model.onnx": digits.onnx}, inputs=INPUTS, outputs=OUTPUTS)
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        await worker.serve()
        assert (await worker.infer({"inputs": [binary_input(ROW)]}, nan_row().tobytes())).status == 200


async def test_infinite_numbers_are_answered_and_counted_as_over(
    worker: WorkerDriver, reference: ReferenceProfile
) -> None:
    row = np.full((1, 64), np.inf, np.float32)
    assert (await worker.infer({"inputs": [binary_input(row)]}, row.tobytes())).status == 200
    await worker.order(Drain(1.0), Drained)
    cells = unpack_counts(worker.windows[0].counts, reference.cells)
    over = reference.inputs[0].cells - 2
    assert cells[over] == 1
