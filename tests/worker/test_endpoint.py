"""What a good client of the Open Inference Protocol gets, from a real worker."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from modules.manifest import Manifest
from worker.conftest import Digits
from worker.driver import WorkerDriver, binary_input, infer_request, json_input, request


@pytest.fixture
async def serving(tmp_path: Path, digits_module: Manifest) -> AsyncIterator[WorkerDriver]:
    async with WorkerDriver(tmp_path / "slot", digits_module) as driver:
        await driver.serve()
        yield driver


async def test_json_in_gives_json_out_as_the_model_answers_offline(serving: WorkerDriver, digits: Digits) -> None:
    response = await serving.infer({"id": "a1", "inputs": [json_input(digits.x[:5])]})
    assert response.status == 200
    assert (response.json["id"], response.json["model_name"], response.json["model_version"]) == ("a1", "digits", "7")
    assert response.array("label").tolist() == digits.labels[:5].tolist()
    np.testing.assert_allclose(response.array("probabilities"), digits.probabilities[:5], rtol=1e-3, atol=1e-4)
    assert response.headers["content-type"] == "application/json"


async def test_data_may_be_nested_as_the_shape(serving: WorkerDriver, digits: Digits) -> None:
    nested = {**json_input(digits.x[:3]), "data": digits.x[:3].tolist()}
    flat = await serving.infer({"inputs": [json_input(digits.x[:3])]})
    assert (await serving.infer({"inputs": [nested]})).array("label").tolist() == flat.array("label").tolist()


async def test_binary_in_gives_binary_out_when_the_request_asks(serving: WorkerDriver, digits: Digits) -> None:
    head = {"inputs": [binary_input(digits.x[:2])], "parameters": {"binary_data_output": True}}
    response = await serving.infer(head, digits.x[:2].tobytes())
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.array("label").tolist() == digits.labels[:2].tolist()
    assert response.array("probabilities").shape == (2, 10)


async def test_json_inputs_without_header_may_ask_for_binary_outputs(serving: WorkerDriver, digits: Digits) -> None:
    """What tritonclient does when the caller names no outputs."""
    head = {"id": "", "inputs": [json_input(digits.x[:2])], "parameters": {"binary_data_output": True}}
    response = await serving.infer(head)
    assert "inference-header-content-length" in response.headers
    assert all("binary_data_size" in output["parameters"] for output in response.json["outputs"])
    assert response.array("label").tolist() == digits.labels[:2].tolist()


async def test_an_output_says_for_itself_whether_it_is_binary(serving: WorkerDriver, digits: Digits) -> None:
    wanted = [
        {"name": "probabilities", "parameters": {"binary_data": True}},
        {"name": "label", "parameters": {"binary_data": False}},
    ]
    for default in (True, False):
        head = {
            "inputs": [json_input(digits.x[:2])], "outputs": wanted, "parameters": {"binary_data_output": default},
        }  # fmt: skip
        response = await serving.infer(head)
        assert [output["name"] for output in response.json["outputs"]] == ["probabilities", "label"]
        assert response.json["outputs"][1]["data"] == digits.labels[:2].tolist()
        assert response.array("probabilities").dtype == np.float32


async def test_only_the_outputs_that_were_named_come_back(serving: WorkerDriver, digits: Digits) -> None:
    response = await serving.infer({"inputs": [json_input(digits.x[:1])], "outputs": [{"name": "label"}]})
    assert [output["name"] for output in response.json["outputs"]] == ["label"]


async def test_every_prediction_has_an_id_of_its_own_when_the_client_gives_none(
    serving: WorkerDriver, digits: Digits
) -> None:
    ids = [(await serving.infer({"inputs": [json_input(digits.x[:1])]})).json["id"] for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(ids)


async def test_parameters_that_nobody_knows_are_let_through(serving: WorkerDriver, digits: Digits) -> None:
    head = {
        "inputs": [{**json_input(digits.x[:1]), "parameters": {"colour": "red"}}],
        "parameters": {"sequence_id": 3, "priority": {"nested": [1]}},
        "surprise": True,
    }
    assert (await serving.infer(head)).status == 200


@pytest.mark.parametrize("path", ["/v2/models/digits/versions/7/infer", "/v2/models/digits/infer?verbose=1"])
async def test_the_model_answers_by_version_too(serving: WorkerDriver, digits: Digits, path: str) -> None:
    assert (await serving.infer({"inputs": [json_input(digits.x[:1])]}, path=path)).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/digits/ready",
        "/v2/models/digits/versions/7/ready",
        "/v2/models/%64igits/ready",
    ],
)
async def test_health_is_answered(serving: WorkerDriver, path: str) -> None:
    assert (await serving.ask(request("GET", path))).status == 200


async def test_the_server_tells_its_extensions(serving: WorkerDriver) -> None:
    told = (await serving.ask(request("GET", "/v2"))).json
    assert told["name"] == "mooring"
    assert "binary_tensor_data" in told["extensions"]


@pytest.mark.parametrize("path", ["/v2/models/digits", "/v2/models/digits/versions/7"])
async def test_the_model_tells_its_inputs_and_outputs(serving: WorkerDriver, path: str) -> None:
    told = (await serving.ask(request("GET", path))).json
    assert told["versions"] == ["7"]
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}]
    assert [output["name"] for output in told["outputs"]] == ["label", "probabilities"]


async def test_one_connection_serves_many_requests_also_sent_ahead(serving: WorkerDriver, digits: Digits) -> None:
    client = await serving.connect()
    bodies = [infer_request({"id": str(i), "inputs": [json_input(digits.x[i : i + 1])]}) for i in range(50)]
    client.writer.write(b"".join(bodies))
    assert [(await client.read()).json["id"] for _ in range(50)] == [str(i) for i in range(50)]
    await client.close()


async def test_a_body_in_chunks_is_read(serving: WorkerDriver, digits: Digits) -> None:
    text = json.dumps({"inputs": [json_input(digits.x[:1])]}).encode()
    parts = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (text[:10], text[10:500], text[500:]))
    raw = b"POST /v2/models/digits/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"
    assert (await serving.ask(raw)).status == 200


async def test_a_client_that_asks_to_go_on_is_told_so(serving: WorkerDriver, digits: Digits) -> None:
    raw = infer_request({"inputs": [json_input(digits.x[:1])]})
    head, _, body = raw.partition(b"\r\n\r\n")
    client = await serving.connect()
    assert (await client.ask(head + b"\r\nExpect: 100-continue\r\n\r\n")).status == 100
    assert (await client.ask(body)).status == 200
    await client.close()


async def test_connection_close_is_respected(serving: WorkerDriver) -> None:
    client = await serving.connect()
    response = await client.ask(request("GET", "/v2", b"", "Connection: close"))
    assert response.headers["connection"] == "close"
    assert await client.ended()
    await client.close()
