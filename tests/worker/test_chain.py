"""Chains of real models and scripts, with steps around them: in this process, and in a worker behind its endpoint."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent.backends import Backend, BackendError
from agent.backends.choice import open_backend, whole
from agent.backends.place import Place
from modules.chain import check_runtime
from modules.errors import ModuleError
from modules.manifest import Manifest, Resources, Runtime
from modules.runtime import Stage
from modules.steps import Cast, Decode, Normalise, Reshape, Resize, Softmax, Step, TopK, Transpose
from modules.tensors import TensorSpec
from worker.driver import WorkerDriver, bytes_tensor, json_input, write_module

Array = Any


def fp32(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, "FP32", shape)


def linear(x: str, y: str, weights: Array) -> bytes:
    """A product of matrices, with any number of rows."""
    return _model(
        [helper.make_node("MatMul", [x, "w"], [y])],
        {x: ["n", weights.shape[0]]},
        {y: ["n", weights.shape[1]]},
        {"w": weights.astype(np.float32)},
    )


def endless() -> bytes:
    """A loop that runs for hours, to be ended from outside."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Mul", ["v", "v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
    )
    nodes = [helper.make_node("Loop", ["times", "yes", "x"], ["y"], body=body)]
    constants = {"times": np.array(2**60), "yes": np.array(True)}
    return _model(nodes, {"x": ["n", 2]}, {"y": ["n", 2]}, constants)


def _model(nodes: Any, inputs: dict[str, Any], outputs: dict[str, Any], constants: dict[str, Array]) -> bytes:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


A = np.arange(6).reshape(2, 3) / 7
B = np.arange(12).reshape(3, 4) / 5
SCRIPT = b"""
def init(): pass
def predict(inputs):
    return {"s": inputs["h"] * 2}
"""


def loaded(folder: Path, manifest: Manifest) -> Backend:
    backend = open_backend(manifest)
    backend.load(whole(manifest), Place(folder / "slot", frozenset(file.path for file in manifest.files)))
    return backend


def module(folder: Path, files: dict[str, bytes], inputs: Any, outputs: Any, **runtime: Any) -> Manifest:
    runtime.setdefault("model", "")
    return write_module(folder / "slot", files, inputs=inputs, outputs=outputs, runtime=Runtime(**runtime))


TWO = (
    Stage("first", (fp32("x", -1, 2),), (fp32("h", -1, 3),), model="a.onnx"),
    Stage("second", (fp32("h", -1, 3),), (fp32("y", -1, 4),), model="b.onnx"),
)
FILES = {"a.onnx": linear("x", "h", A), "b.onnx": linear("h", "y", B)}


def test_one_model_feeds_the_next(tmp_path: Path) -> None:
    manifest = module(tmp_path, FILES, (fp32("x", -1, 2),), (fp32("y", -1, 4), fp32("h", -1, 3)), stages=TWO)
    backend = loaded(tmp_path, manifest)
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    found = backend.run({"x": x})
    assert list(found) == ["y", "h"]
    np.testing.assert_allclose(found["y"], x @ A @ B, rtol=1e-5)
    np.testing.assert_allclose(found["h"], x @ A, rtol=1e-5)
    assert [one.backend for one in backend.execution()] == ["onnx", "onnx"]


def test_a_script_between_two_models_and_feeds_by_name(tmp_path: Path) -> None:
    stages = (
        Stage("first", (fp32("x", -1, 2),), (fp32("h", -1, 3),), model="a.onnx", feeds={"x": "data"}),
        Stage("middle", (fp32("h", -1, 3),), (fp32("s", -1, 3),), backend="script", entry="s.py"),
        Stage("last", (fp32("h", -1, 3),), (fp32("y", -1, 4),), model="b.onnx", feeds={"h": "middle.s"}),
    )
    manifest = module(tmp_path, {**FILES, "s.py": SCRIPT}, (fp32("data", -1, 2),), (fp32("y", -1, 4),), stages=stages)
    backend = loaded(tmp_path, manifest)
    x = np.ones((2, 2), np.float32)
    np.testing.assert_allclose(backend.run({"data": x})["y"], (x @ A * 2) @ B, rtol=1e-5)
    assert backend.parallel == 1  # the script's


def test_what_passes_between_stages_is_not_copied(tmp_path: Path) -> None:
    manifest = module(tmp_path, FILES, (fp32("x", -1, 2),), (fp32("x", -1, 2), fp32("y", -1, 4)), stages=TWO)
    backend = loaded(tmp_path, manifest)
    x = np.ones((2, 2), np.float32)
    assert backend.run({"x": x})["x"] is x


def test_steps_before_and_after_a_chain(tmp_path: Path) -> None:
    manifest = module(
        tmp_path, FILES, (TensorSpec("x", "UINT8", (-1, 2)),),
        (TensorSpec("names", "BYTES", (-1, 2)), fp32("best", -1, 2)),
        stages=TWO,
        before=(Normalise("x", mean=(1.0,), scale=(2.0,)),),
        after=(Softmax("second.y", "p"), TopK("p", 2, values="best", names="names", labels=("a", "b", "c", "d"))),
    )  # fmt: skip
    backend = loaded(tmp_path, manifest)
    found = backend.run({"x": np.array([[3, 5]], np.uint8)})
    y = np.array([[1.0, 2.0]]) @ A @ B
    p = np.exp(y - y.max()) / np.exp(y - y.max()).sum()
    np.testing.assert_allclose(found["best"], np.sort(p)[:, ::-1][:, :2], rtol=1e-5)
    assert found["names"].tolist() == [[b"d", b"c"]]


def test_too_many_rows_for_a_step_are_refused_before_they_are_computed(tmp_path: Path) -> None:
    stage = Stage("m", (TensorSpec("i", "UINT8", (-1, 100, 100, 3)),), (fp32("y", -1, 4),), "script", entry="s.py")
    script = b"def init(): pass\ndef predict(inputs):\n    return {'y': [[0] * 4] * len(inputs['i'])}\n"
    manifest = write_module(
        tmp_path / "slot", {"s.py": script}, inputs=(TensorSpec("i", "UINT8", (-1, 1, 1, 3)),),
        outputs=(fp32("y", -1, 4),), resources=Resources(memory_mib=4),
        runtime=Runtime(stages=(stage,), before=(Resize("i", 100, 100),), model=""),
    )  # fmt: skip
    backend = loaded(tmp_path, manifest)
    assert backend.run({"i": np.zeros((30, 1, 1, 3), np.uint8)})["y"].shape == (30, 4)
    with pytest.raises(BackendError, match="expected at most 34 rows") as refused:
        backend.run({"i": np.zeros((35, 1, 1, 3), np.uint8)})
    assert refused.value.key == "bad-input"


def _stage(**changes: Any) -> Stage:
    return Stage(**{"name": "s", "inputs": (fp32("x", -1, 2),), "outputs": (fp32("y", -1, 2),), **changes})


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        ((_stage(feeds={"x": "nothing"}),), "got 'nothing'"),
        ((_stage(feeds={"z": "x"}),), "expected feeds of x, got 'z'"),
        ((_stage(feeds={"x": "s.y"}),), "its own output s.y: that is a cycle"),
        ((_stage(feeds={"x": "b.y"}), _stage(name="b", feeds={"x": "s.y"})), "later stage: that is a cycle"),
        ((_stage(feeds={"x": "b.y"}), _stage(name="b")), "put b before s"),
        ((_stage(inputs=(fp32("x", -1, 3),)),), r"expected FP32 \[-1, 3\], got x as FP32 \[-1, 2\]"),
        ((_stage(inputs=(TensorSpec("x", "FP64", (-1, 2)),)),), "expected FP64"),
        ((_stage(outputs=(fp32("z", -1, 2),)),), "output y: expected one of"),
        ((_stage(outputs=(fp32("y", -1, 5),)),), r"output y: expected FP32 \[-1, 2\], got FP32 \[-1, 5\]"),
        ((_stage(name="a.b"), _stage(name="c")), "a name without a point"),
    ],
)
def test_stages_that_do_not_fit_each_other_are_refused(stages: tuple[Stage, ...], text: str) -> None:
    with pytest.raises(ModuleError, match=text):
        check_runtime(Runtime(stages=stages), stages, (fp32("x", -1, 2),), (fp32("y", -1, 2),), 0)


@pytest.mark.parametrize(
    ("before", "text"),
    [
        ((Resize("x", 16_000, 16_000),), "4 dimensions"),
        ((Cast("x", "INT64"),), "expected FP32"),
        ((Transpose("x", (1, 0)),), r"got x as FP32 \[2, -1\]"),
    ],
)
def test_steps_that_do_not_fit_the_model_are_refused(before: tuple[Step, ...], text: str) -> None:
    stages = (_stage(inputs=(fp32("x", 5, 2),)),)
    with pytest.raises(ModuleError, match=text):
        check_runtime(Runtime(stages=stages, before=before), stages, (fp32("x", -1, 2),), (fp32("y", -1, 2),), 0)


def test_a_chain_can_be_ended_from_another_thread(tmp_path: Path) -> None:
    stages = (
        Stage("slow", (fp32("x", -1, 2),), (fp32("y", -1, 2),), model="loop.onnx"),
        Stage("next", (fp32("x", -1, 2),), (fp32("h", -1, 3),), model="a.onnx"),
    )
    manifest = module(
        tmp_path, {"loop.onnx": endless(), "a.onnx": FILES["a.onnx"]}, (fp32("x", -1, 2),), (fp32("h", -1, 3),),
        stages=stages,
    )  # fmt: skip
    backend = loaded(tmp_path, manifest)
    ended: list[BackendError] = []

    def run() -> None:
        try:
            backend.run({"x": np.ones((1, 2), np.float32)})
        except BackendError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert thread.ident is not None
    while thread.is_alive():  # it may not have begun yet
        assert backend.interrupt(thread.ident)
        thread.join(0.05)
    assert "stage slow" in str(ended[0])


async def test_a_worker_takes_pictures_and_answers_with_names(tmp_path: Path) -> None:
    weights = np.zeros((12, 3))
    weights[0, 0] = weights[1, 1] = weights[2, 2] = 1.0  # the first pixel's red, green and blue
    model = linear("x", "y", weights)
    stage = Stage("colours", (fp32("x", -1, 12),), (fp32("y", -1, 3),), model="m.onnx", feeds={"x": "flat"})
    manifest = write_module(
        tmp_path / "slot", {"m.onnx": model}, inputs=(TensorSpec("picture", "BYTES", (-1,)),),
        outputs=(TensorSpec("colour", "BYTES", (-1, 1)),),
        runtime=Runtime(
            model="", stages=(stage,),
            before=(
                Decode("picture", "p", height=2, width=2),
                Normalise("p", scale=(255.0,)),
                Reshape("p", (0, 12), "flat"),
            ),
            after=(TopK("y", 1, names="colour", labels=("red", "green", "blue")),),
        ),
    )  # fmt: skip
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        ready = await worker.serve()
        assert "onnx" in ready.execution
        pictures = [np.full((9, 7, 3), 0, np.uint8) for _ in range(3)]
        for n, picture in enumerate(pictures):
            picture[:, :, 2 - n] = 255  # OpenCV's order is the reverse
        blob = bytes_tensor(*(bytes(cv2.imencode(".jpg", picture)[1]) for picture in pictures))
        tensor = {
            "name": "picture", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(blob)},
        }  # fmt: skip
        answer = await worker.infer({"inputs": [tensor]}, blob)
        assert answer.status == 200, answer.body
        assert answer.json["outputs"][0]["data"] == ["red", "green", "blue"]
        junk = {"name": "picture", "datatype": "BYTES", "shape": [1], "data": ["no picture"]}
        answer = await worker.infer({"inputs": [junk]})
        assert answer.status == 400
        assert "expected a JPEG or PNG file" in answer.error


async def test_a_worker_refuses_a_chain_that_does_not_fit_before_it_loads(tmp_path: Path) -> None:
    broken = (TWO[0], Stage("second", (fp32("h", -1, 5),), (fp32("y", -1, 4),), model="b.onnx"))
    manifest = module(tmp_path, FILES, (fp32("x", -1, 2),), (fp32("y", -1, 4),), stages=broken)
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        refused = await worker.start_broken()
        assert refused.key == "load-failed"
        assert "stage second, input h" in refused.text


async def test_a_worker_serves_a_chain_in_batches(tmp_path: Path) -> None:
    manifest = module(tmp_path, FILES, (fp32("x", -1, 2),), (fp32("y", -1, 4),), stages=TWO)
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        await worker.serve()
        x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
        answer = await worker.infer({"inputs": [json_input(x)]})
        np.testing.assert_allclose(answer.array("y"), x @ A @ B, rtol=1e-4, atol=1e-5)
