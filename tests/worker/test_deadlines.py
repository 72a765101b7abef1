"""Predictions that never end, grow or break their worker: rows 42 and 46 of the table of attacks, while serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from agent.endpoint.predictor import OVER_DEADLINE
from modules.errors import ManifestError
from modules.manifest import Manifest, Resources, Runtime
from modules.tensors import TensorSpec
from worker.driver import WorkerDriver, infer_request, json_input, write_module

X, Y = TensorSpec("x", "FP32", (-1, 2)), TensorSpec("y", "FP32", (-1, 2))
GOOD, ENDLESS = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
QUICK = Resources(request_deadline_s=0.5)


def turning() -> bytes:
    """A model that goes round for ever as soon as an input is above zero, and is quick otherwise."""
    scalar = helper.make_tensor_value_info
    turn = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"]), helper.make_node("Identity", ["v"], ["next"])],
        "turn",
        [scalar("i", TensorProto.INT64, []), scalar("go", TensorProto.BOOL, []), scalar("v", TensorProto.FLOAT, None)],
        [scalar("again", TensorProto.BOOL, []), scalar("next", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["go"]),
        helper.make_node("Loop", ["turns", "go", "x"], ["y"], body=turn),
    ]
    values = [
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("turns", TensorProto.INT64, [], [2**62]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], values)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def script(slot: Path, body: str, **fields: Any) -> Manifest:
    source = f"import os, threading, time\nimport numpy as np\ndef init(): pass\ndef predict(inputs):\n    {body}\n"
    runtime = Runtime(backend="script", model="", entry="entry.py")
    return write_module(slot, {"entry.py": source.encode()}, inputs=(X,), outputs=(Y,), runtime=runtime, **fields)


def asked(rows: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"inputs": [json_input(rows)]}


async def test_a_model_that_turns_for_ever_is_ended_at_the_deadline_and_answers_the_next(tmp_path: Path) -> None:
    """Row 42, in the loop: the model has been quick until now."""
    files = {"model.onnx": turning()}
    manifest = write_module(tmp_path / "slot", files, inputs=(X,), outputs=(Y,), resources=QUICK)
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        await worker.serve()
        assert (await worker.infer(asked(GOOD))).status == 200
        response = await worker.infer(asked(ENDLESS))
        assert response.status == 504
        assert response.error == "expected an answer within 0.5 s, got none: the prediction was ended"
        assert (await worker.infer(asked(GOOD))).array("y").tolist() == [[0.0, 0.0]]
        assert (await worker.stats()).errors == 1


async def test_a_large_request_that_turns_for_ever_is_ended_in_its_thread(tmp_path: Path) -> None:
    """Row 42, in the pool: a size that has not been seen is not run in the loop."""
    files = {"model.onnx": turning()}
    resources = Resources(request_deadline_s=0.5, threads=1)
    manifest = write_module(tmp_path / "slot", files, inputs=(X,), outputs=(Y,), resources=resources)
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        await worker.serve()
        rows = np.ones((1 << 14, 2), np.float32)
        assert (await worker.infer(asked(rows))).status == 504
        assert (await worker.infer(asked(GOOD))).status == 200


async def test_a_script_that_never_returns_takes_only_its_worker_with_it(tmp_path: Path) -> None:
    """Row 46: Python code cannot be ended, so the worker ends itself, once the client has its answer."""
    manifest = script(tmp_path / "slot", "threading.Event().wait()", resources=QUICK)
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        await worker.serve()
        assert (await worker.infer(asked(GOOD))).status == 504
        assert await worker.exit_code() == OVER_DEADLINE


async def test_who_waits_behind_a_run_without_end_is_told_to_come_again(tmp_path: Path) -> None:
    manifest = script(tmp_path / "slot", "threading.Event().wait()", resources=QUICK)
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        await worker.serve()
        first, second = await worker.connect(), await worker.connect()
        for client in (first, second):
            client.writer.write(infer_request(asked(GOOD)))
        assert sorted([(await first.read()).status, (await second.read()).status]) == [503, 504]
        await first.close()
        await second.close()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return {'y': np.full((1, 2), np.nan, np.float32)}", ""),
        ("return {'y': np.full((1, 2), np.inf, np.float32)}", ""),
        ("return {'y': np.zeros((1, 1 << 24), np.float32)}", "expected shape [-1, 2]"),
        ("return {'y': bytearray(1 << 33)}", "MemoryError"),
        ("print('x' * (1 << 20)); return {'y': inputs['x']}", ""),
    ],
    ids=["46-nan", "46-infinite", "46-huge-output", "46-memory", "46-print-flood"],
)
async def test_an_answer_that_is_too_much_is_this_requests_affair(tmp_path: Path, body: str, words: str) -> None:
    """Row 46."""
    manifest = script(tmp_path / "slot", body, resources=Resources(memory_mib=512, request_deadline_s=20.0))
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        await worker.serve()
        for _ in range(2):
            response = await worker.infer(asked(GOOD))
            assert response.status == (500 if words else 200), response.body[:300]
            assert words in (response.error if words else "")


async def test_a_model_that_needs_more_than_it_may_to_load_says_so(tmp_path: Path) -> None:
    """Row 42: 400 MB of weights in 256 MiB."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [50_000_000], np.zeros(50_000_000, np.float32).tobytes(), True)
    nodes = [
        helper.make_node("ReduceSum", ["w"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [weights])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    files = {"model.onnx": made.SerializeToString()}
    resources = Resources(memory_mib=128)
    manifest = write_module(tmp_path / "slot", files, inputs=(X,), outputs=(Y,), resources=resources)
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        assert (await worker.start_broken()).key == "out-of-memory"


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_deadline_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ManifestError, match="request_deadline_s"):
        Resources(request_deadline_s=seconds)
