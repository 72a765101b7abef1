"""TFLite models that want what they may not have: the module is told, and the worker of another goes on.

Those of ONNX are in test_model_files and test_deadlines.
"""

from pathlib import Path

import numpy as np
import pytest

from agent.sandbox.protocol import Broken
from modules.manifest import Manifest, Resources, Runtime
from modules.tensors import TensorSpec
from support import tflite_models
from worker.driver import WorkerDriver, json_input, write_module

ONE = (TensorSpec("x", "FP32", (1, 1)),)
SUM = (TensorSpec("y", "FP32", (1, 1)),)


def module(folder: Path, model: bytes, resources: Resources) -> Manifest:
    return write_module(
        folder, {"m.tflite": model}, inputs=ONE, outputs=SUM, runtime=Runtime(backend="tflite", model="m.tflite"),
        resources=resources,
    )  # fmt: skip


@pytest.fixture
def modest(tmp_path: Path) -> Manifest:
    return module(tmp_path / "modest" / "slot", tflite_models.greedy(1), Resources(memory_mib=512))


async def test_a_model_that_wants_more_memory_than_it_may_leaves_the_others_alone(
    tmp_path: Path, modest: Manifest
) -> None:
    greedy = module(tmp_path / "greedy" / "slot", tflite_models.greedy(4096), Resources(memory_mib=256))
    request = {"inputs": [json_input(np.ones((1, 1), np.float32))]}
    async with (
        WorkerDriver(tmp_path / "modest" / "slot", modest) as good,
        WorkerDriver(tmp_path / "greedy" / "slot", greedy) as bad,
    ):
        await good.serve()
        broken = await bad.start_broken()
        assert isinstance(broken, Broken)
        assert broken.key in ("out-of-memory", "load-failed")
        assert "m.tflite" in broken.text
        answer = await good.infer(request)
        assert answer.array("y").tolist() == [[262_144.0]]


async def test_a_model_whose_shape_is_no_shape_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    manifest = module(tmp_path / "slot", tflite_models.greedy(-5), Resources())
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        assert (await worker.start_broken()).key == "load-failed"
