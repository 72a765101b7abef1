"""Requests that run together: each gets its own answer, is counted, profiled and sampled as if it had run alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.endpoint.batches import built_for_shapes, differs, has_rows
from agent.sandbox.protocol import Drain, Drained
from modules.execution import StageExecution
from modules.manifest import Lineage, Manifest, Runtime, SamplingPolicy
from modules.runtime import Provider
from modules.tensors import TensorSpec
from modules.windows import ReferenceProfile, unpack_counts
from support.waiting import until
from worker.conftest import Digits
from worker.driver import WorkerDriver, binary_input, infer_request, json_input, request

CLIENTS, EACH = 12, 25


def asked(digits: Digits, row: int, rows: int, kind: int) -> bytes:
    """In every way that a client may ask: bytes or JSON, with an id or without, some outputs or all."""
    x = digits.x[row : row + rows]
    head = {"inputs": [binary_input(x)], "parameters": {"binary_data_output": True}}
    if kind == 1:
        head["id"] = f"row-{row}"
    if kind == 2:
        head["outputs"] = [{"name": "label"}]
    if kind == 3:
        return infer_request({"inputs": [json_input(x)]})
    return infer_request(head, x.tobytes())


@pytest.mark.parametrize("rows", [1, 3])
async def test_every_client_gets_its_own_rows_back(
    tmp_path: Path, digits_module: Manifest, digits: Digits, reference: ReferenceProfile, rows: int
) -> None:
    policy = SamplingPolicy(rate=1.0, window_s=3600)
    async with WorkerDriver(tmp_path / "slot", digits_module, policy) as worker:
        await worker.serve()
        ids: set[str] = set()

        async def client(number: int) -> None:
            connection = await worker.connect()
            for turn in range(EACH):
                row = (number * EACH + turn) * rows
                response = await connection.ask(asked(digits, row, rows, turn % 4))
                assert response.status == 200
                assert response.array("label").tolist() == digits.labels[row : row + rows].tolist()
                ids.add(response.json["id"])
            await connection.close()

        await asyncio.gather(*(client(number) for number in range(CLIENTS)))
        count = CLIENTS * EACH
        stats = await worker.stats()
        assert (stats.requests, stats.rows, stats.errors, stats.refused) == (count, count * rows, 0, 0)
        assert len(ids) == count
        told = (await worker.ask(request("GET", "/v2/models/digits/stats"))).json["model_stats"][0]
        assert told["execution_count"] < count  # else nothing ran together, and this test tests nothing
        await worker.order(Drain(5.0), Drained)
        await until(lambda: len(worker.samples) == count * rows, "the samples")
    (window,) = worker.windows
    assert (window.rows, window.errors) == (count * rows, 0)
    cells = unpack_counts(window.counts, sum(feature.cells for feature in reference.features))
    assert sum(cells[: reference.features[0].cells]) == count * rows
    names = ids if rows == 1 else {f"{one}#{row}" for one in ids for row in range(rows)}
    assert {sample.prediction_id for sample in worker.samples} == names
    for sample in worker.samples:
        assert np.frombuffer(sample.inputs[0].data, np.float32).shape == (64,)


async def test_one_bad_request_among_those_that_run_together_fails_alone(
    tmp_path: Path, digits_module: Manifest, digits: Digits
) -> None:
    """A NaN with a head that is known is seen only when the rows are together."""
    async with WorkerDriver(tmp_path / "slot", digits_module) as worker:
        await worker.serve()
        head = {"inputs": [binary_input(digits.x[:1])], "parameters": {"binary_data_output": True}}
        nan = digits.x[:1].copy()
        nan[0, 7] = np.nan

        async def client(bad: bool) -> list[int]:
            connection = await worker.connect()
            rows = nan if bad else digits.x[:1]
            statuses = [(await connection.ask(infer_request(head, rows.tobytes()))).status for _ in range(EACH)]
            await connection.close()
            return statuses

        results = await asyncio.gather(*(client(number == 3) for number in range(CLIENTS)))
        assert results[3] == [400] * EACH
        assert [status for number, one in enumerate(results) if number != 3 for status in one] == [200] * EACH * 11
        stats = await worker.stats()
        assert (stats.requests, stats.refused, stats.errors) == (EACH * CLIENTS, EACH, 0)


async def test_a_module_may_say_that_nothing_runs_together(
    tmp_path: Path, digits_module: Manifest, digits: Digits
) -> None:
    runtime = msgspec.structs.replace(digits_module.runtime, batch_rows=1)
    alone = msgspec.structs.replace(digits_module, runtime=runtime)
    async with WorkerDriver(tmp_path / "slot", alone) as worker:
        await worker.serve()
        raw = asked(digits, 0, 1, 0)
        connections = [await worker.connect() for _ in range(4)]
        for _ in range(10):
            assert {r.status for r in await asyncio.gather(*(c.ask(raw) for c in connections))} == {200}
        told = (await worker.ask(request("GET", "/v2/models/digits/stats"))).json["model_stats"][0]
        assert (told["execution_count"], told["inference_count"]) == (40, 40)
        assert "dynamic_batching" not in (await worker.ask(request("GET", "/v2/models/digits/config"))).json
        for connection in connections:
            await connection.close()


def test_only_tensors_in_rows_and_no_scripts_run_together() -> None:
    def manifest(*shapes: tuple[int, ...], runtime: Runtime | None = None) -> Manifest:
        specs = tuple(TensorSpec(f"t{i}", "FP32", shape) for i, shape in enumerate(shapes))
        return Manifest("m", 1, "pi", Lineage("m", 1), specs, specs, (), runtime or Runtime(model=""))

    assert has_rows(manifest((-1, 3), (-1,)))
    assert not has_rows(manifest((-1, 3), (1,)))
    assert not has_rows(manifest((-1, 3), ()))
    assert not has_rows(manifest((-1, 3), runtime=Runtime(backend="script", model="")))


def test_what_is_built_for_its_shapes_is_not_given_more_rows() -> None:
    def manifest(**options: str) -> Manifest:
        provider = Provider("TensorrtExecutionProvider", options)
        return Manifest("m", 1, "pi", Lineage("m", 1), (), (), (), Runtime(model="", providers=(provider,)))

    there = StageExecution("onnx", got={"TensorrtExecutionProvider": 3})
    elsewhere = StageExecution("onnx", got={"CPU": 3})
    assert built_for_shapes([there], manifest())
    assert not built_for_shapes([elsewhere], manifest())
    assert not built_for_shapes([there], manifest(trt_profile_max_shapes="x:32x20"))


def test_what_differs_between_rows_together_and_alone_is_named() -> None:
    whole = {"y": np.array([[1.0], [2.0]])}
    assert differs(whole, 2, 1, {"y": np.array([[2.0]])}, 1e-3, 1e-4) == ""
    assert differs(whole, 2, 1, {"y": np.array([[2.1]])}, 1e-3, 1e-4) == "output y: row 1 has another answer alone"
    assert "2 rows gave shape [3]" in differs({"y": np.zeros(3)}, 2, 0, {"y": np.zeros(1)}, 1e-3, 1e-4)
    words = np.array([[b"a"], [b"b"]], object)
    assert differs({"y": words}, 2, 0, {"y": words[:1]}, 0, 0) == ""
    assert json.dumps(differs({"y": words}, 2, 0, {"y": words[1:]}, 0, 0)) != '""'
