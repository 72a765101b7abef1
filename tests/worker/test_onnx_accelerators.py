"""Providers other than the CPU, where their packages are installed: `pip install onnxruntime-openvino`, or
`onnxruntime-qnn` beside onnxruntime, whose emulation of the NPU needs no device. Skipped where they are not.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent.backends import BackendError
from agent.backends.onnx import OnnxBackend
from agent.backends.place import Place
from modules.runtime import Provider, Stage
from modules.tensors import TensorSpec

OPENVINO, QNN = "OpenVINOExecutionProvider", "QNNExecutionProvider"
WEIGHTS = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)
needs_openvino = pytest.mark.skipif(
    OPENVINO not in onnxruntime.get_available_providers(), reason="onnxruntime-openvino is not installed"
)
needs_qnn = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None, reason="onnxruntime-qnn is not installed"
)


def model(folder: Path, kind: str = "MatMul") -> None:
    nodes = [helper.make_node(kind, ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])
    graph = helper.make_graph(nodes, "g", [given], [result], [numpy_helper.from_array(WEIGHTS, "w")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(made.SerializeToString())


def loaded(folder: Path, *asked: Provider, fallback: bool = False) -> OnnxBackend:
    model(folder)
    (folder / "cache").mkdir(exist_ok=True)
    specs = (TensorSpec("x", "FP32", (2, 4)),), (TensorSpec("y", "FP32", (2, 4)),)
    stage = Stage("g", *specs, "onnx", "model.onnx", providers=asked, fallback=fallback)
    backend = OnnxBackend()
    backend.load(stage, Place(folder, frozenset({"model.onnx"}), cache=folder / "cache"))
    return backend


def check(backend: OnnxBackend, provider: str) -> None:
    (ran,) = backend.execution()
    assert set(ran.got) == {provider}
    expected = np.maximum(X @ WEIGHTS, 0)
    np.testing.assert_allclose(backend.run({"x": X})["y"], expected, rtol=2e-2, atol=2e-2)
    x, y = X.copy(), np.zeros((2, 4), np.float32)
    run = backend.bind({"x": x}, {"y": y})
    assert run is not None
    run()
    np.testing.assert_allclose(y, expected, rtol=2e-2, atol=2e-2)
    x[:] = -X
    run()
    np.testing.assert_allclose(y, np.maximum(-X @ WEIGHTS, 0), rtol=2e-2, atol=2e-2)


@needs_openvino
def test_openvino_takes_every_node_and_keeps_what_it_has_compiled(tmp_path: Path) -> None:
    check(loaded(tmp_path, Provider(OPENVINO, {"device_type": "CPU"})), OPENVINO)
    assert [path.suffix for path in (tmp_path / "cache" / "openvino").iterdir()] == [".blob"]
    check(loaded(tmp_path, Provider(OPENVINO, {"device_type": "CPU"})), OPENVINO)


@needs_openvino
def test_openvino_without_the_device_that_was_asked_for_is_refused_or_reported(tmp_path: Path) -> None:
    with pytest.raises(BackendError) as error:
        loaded(tmp_path, Provider(OPENVINO, {"device_type": "NPU"}))
    assert error.value.key == "load-failed"
    (ran,) = loaded(tmp_path, Provider(OPENVINO, {"device_type": "NPU"}), fallback=True).execution()
    assert set(ran.got) == {"CPUExecutionProvider"}
    assert ran.why.startswith(OPENVINO)


@needs_qnn
def test_qnn_is_a_plug_in_that_takes_every_node(tmp_path: Path) -> None:
    check(loaded(tmp_path, Provider(QNN)), QNN)


def test_the_benchmark_of_gpus_says_that_there_is_none_and_does_not_fail(repository: Path) -> None:
    command = [sys.executable, str(repository / "benchmarks" / "gpu.py")]
    alone = {"PATH": "/nonexistent"}
    run = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=60, check=True)
    last = json.loads(run.stdout.splitlines()[-1])
    assert (last["name"], last["metrics"]) == ("gpu", None)
    assert "no NVIDIA GPU here" in last["why"]
    assert last["machine"]["cores"] >= 1
