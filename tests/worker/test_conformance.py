"""Our backends pass the public conformance test, and so does a third party's that was installed as a package."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent.backends import Array, Backend, BackendError
from agent.backends.choice import open_stage
from agent.backends.conformance import BackendConformance, Case, ConformanceError
from agent.backends.onnx import OnnxBackend
from agent.backends.script import ScriptBackend
from agent.backends.tflite import TfliteBackend
from agent.endpoint.codec import DTYPES
from modules.manifest import Runtime
from modules.runtime import Stage
from modules.tensors import ONNX_TYPES, TensorSpec
from support import tflite_models
from worker.driver import WorkerDriver, json_input, write_module

NUMBERS = np.array([[1, 0], [2, 3], [4, 5]])


def specs(datatype: str, rows: int = -1) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    return (TensorSpec("x", datatype, (rows, 2)),), (TensorSpec("y", datatype, (rows, 2)),)


def values(datatype: str) -> Array:
    if datatype == "BYTES":
        return np.array([[b"a", b""], [b"text", b"bc"], [b"d", b"e"]], object)
    return NUMBERS.astype(DTYPES[datatype])


def echo_case(backend: str, model: str, data: bytes, datatype: str, rows: int = -1) -> Case:
    inputs, outputs = specs(datatype, rows)
    x = values(datatype)
    stage = Stage("echo", inputs, outputs, backend, model)
    return Case({model: data}, stage, {"x": x}, {"y": x}, name=f"{backend} {datatype} {rows}")


def onnx_model(nodes: list[onnx.NodeProto], kind: int, rows: str | int, *weights: TensorProto) -> bytes:
    given = helper.make_tensor_value_info("x", kind, [rows, 2])
    result = helper.make_tensor_value_info("y", kind, [rows, 2])
    graph = helper.make_graph(nodes, "g", [given], [result], weights)
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def onnx_kind(datatype: str) -> int:
    if datatype == "BYTES":
        return int(TensorProto.STRING)
    return int(helper.np_dtype_to_tensor_dtype(DTYPES[datatype]))


class TestOnnx(BackendConformance):
    def make(self) -> Backend:
        return OnnxBackend()

    def cases(self) -> list[Case]:
        weights = numpy_helper.from_array(np.array([[1, 2], [3, 4]], np.float32), "w")
        product = onnx_model([helper.make_node("MatMul", ["x", "w"], ["y"])], TensorProto.FLOAT, "n", weights)
        inputs, outputs = specs("FP32")
        x = values("FP32")
        y = x @ np.array([[1, 2], [3, 4]], np.float32)
        first = Case({"m.onnx": product}, Stage("product", inputs, outputs, "onnx", "m.onnx"), {"x": x}, {"y": y})
        return [first, self._echo("FP32", 3), *(self._echo(name, -1) for name in sorted(ONNX_TYPES.values()))]

    def endless(self) -> Case:
        """A loop that counts to the largest number there is."""
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["again"]), helper.make_node("Add", ["v", "v"], ["w"])],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                helper.make_tensor_value_info("v", TensorProto.FLOAT, ["n", 2]),
            ],
            [
                helper.make_tensor_value_info("again", TensorProto.BOOL, []),
                helper.make_tensor_value_info("w", TensorProto.FLOAT, ["n", 2]),
            ],
        )
        often = numpy_helper.from_array(np.array(2**62, np.int64), "often")
        true = numpy_helper.from_array(np.array(True), "true")
        loop = helper.make_node("Loop", ["often", "true", "x"], ["y"], body=body)
        model = onnx_model([loop], TensorProto.FLOAT, "n", often, true)
        inputs, outputs = specs("FP32")
        x = values("FP32")
        return Case({"m.onnx": model}, Stage("endless", inputs, outputs, "onnx", "m.onnx"), {"x": x}, {"y": x})

    def _echo(self, datatype: str, rows: int) -> Case:
        node = helper.make_node("Identity", ["x"], ["y"])
        free = "n" if rows < 0 else rows
        return echo_case("onnx", "m.onnx", onnx_model([node], onnx_kind(datatype), free), datatype, rows)


class TestTflite(BackendConformance):
    def make(self) -> Backend:
        return TfliteBackend()

    def cases(self) -> list[Case]:
        random = np.random.default_rng(0)
        layer = (random.normal(size=(2, 2)), random.normal(size=2))
        x = values("FP32")
        scores = np.exp(x @ layer[0] + layer[1])
        y = (scores / scores.sum(1, keepdims=True)).astype(np.float32)
        inputs, outputs = specs("FP32")
        stage = Stage("mlp", inputs, outputs, "tflite", "m.tflite")
        first = Case({"m.tflite": tflite_models.mlp([layer])}, stage, {"x": x}, {"y": y})
        return [first, self._echo("FP32", 3), *(self._echo(name, -1) for name in sorted(tflite_models.TYPES))]

    def _echo(self, datatype: str, rows: int) -> Case:
        return echo_case("tflite", "m.tflite", tflite_models.echo(datatype, rows < 0), datatype, rows)


ECHO = b"THREAD_SAFE = True\ndef init(): pass\ndef predict(inputs): return {'y': inputs['x']}\n"


class TestScript(BackendConformance):
    checks_specs = False  # a script says nothing of what it takes
    reads_files = False

    def make(self) -> Backend:
        return ScriptBackend()

    def cases(self) -> list[Case]:
        made = []
        for datatype in sorted(ONNX_TYPES.values()):
            case = echo_case("script", "", b"", datatype)
            stage = Stage("echo", case.stage.inputs, case.stage.outputs, "script", "", "entry.py")
            made.append(Case({"entry.py": ECHO}, stage, case.inputs, case.outputs, name=case.name))
        return made


# --- the test itself --------------------------------------------------------------------------------------------


class Keeping:
    """A backend that gives out the same memory each time."""

    parallel = 1

    def __init__(self) -> None:
        self._kept = np.zeros((3, 2), np.float32)

    def load(self, stage: Stage, place: object) -> None: ...

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        self._kept[:] = inputs["x"]
        return {"y": self._kept}

    def interrupt(self, thread: int) -> bool:
        return False

    def execution(self) -> tuple[object, ...]:
        return ()

    def close(self) -> None: ...


class Unsound(BackendConformance):
    def make(self) -> Backend:
        return Keeping()  # type: ignore[return-value]

    def cases(self) -> list[Case]:
        return [echo_case("acme.keeping", "m", b"m", "FP32")]


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ("test_what_it_gave_is_the_callers", "y in memory of its own"),
        ("test_it_says_what_runs_where", "expected executions"),
        ("test_tensors_that_are_not_the_models_are_refused_at_load", "load-failed for another input"),
        ("test_a_file_that_is_not_there_is_refused", "load-failed, got None"),
        ("test_junk_is_refused_and_does_not_crash", "every spoilt model to be refused, got an empty file: None"),
    ],
)
def test_an_unsound_backend_fails_with_the_rule_that_it_breaks(tmp_path: Path, test: str, words: str) -> None:
    with pytest.raises(ConformanceError, match=words):
        getattr(Unsound(), test)(tmp_path)


# --- a third party's --------------------------------------------------------------------------------------------

ACME = {
    "pyproject.toml": """
        [build-system]
        requires = ["setuptools"]
        build-backend = "setuptools.build_meta"
        [project]
        name = "acme-mooring-backend"
        version = "1.0"
        [project.entry-points."mooring.backends"]
        "acme.scaler" = "acme_backend:AcmeBackend"
        "acme.broken" = "acme_backend:Broken"
        [tool.setuptools]
        py-modules = ["acme_backend"]
    """,
    "acme_backend.py": '''
        """Runs models that are one number: what to multiply with."""
        import numpy as np
        from agent.backends import BackendError
        from modules.execution import StageExecution

        class AcmeBackend:
            parallel = 1

            def load(self, stage, place):
                try:
                    kind, factor = (place.slot / stage.model).read_text().split()
                    self._factor = np.float32(factor)
                except (OSError, ValueError) as error:
                    raise BackendError("load-failed", f"{stage.model}: {error}") from error
                if kind != "acme":
                    raise BackendError("load-failed", f"{stage.model}: expected an acme model, got {kind}")
                for spec, name in ((stage.inputs[0], "x"), (stage.outputs[0], "y")):
                    if (spec.name, spec.datatype, spec.shape) != (name, "FP32", (-1, 2)):
                        raise BackendError("load-failed", f"expected {name} FP32 [-1, 2], got {spec}")

            def run(self, inputs):
                if inputs["x"].ndim != 2:
                    raise BackendError("bad-input", "expected rows of two numbers")
                return {"y": inputs["x"] * self._factor}

            def interrupt(self, thread):
                return False

            def execution(self):
                return (StageExecution("acme", ("ACME",), {"ACME": 1}),)

            def close(self):
                pass

        def Broken():
            raise RuntimeError("no licence")
    ''',
    "test_acme.py": """
        import numpy as np
        from agent.backends.choice import open_stage
        from agent.backends.conformance import BackendConformance, Case
        from modules.runtime import Stage
        from modules.tensors import TensorSpec

        X, Y = (TensorSpec(name, "FP32", (-1, 2)) for name in "xy")
        STAGE = Stage("s", (X,), (Y,), "acme.scaler", "m.acme")

        class TestAcme(BackendConformance):
            def make(self):
                return open_stage(STAGE)

            def cases(self):
                x = np.array([[1, 2]], np.float32)
                return [Case({"m.acme": b"acme 3"}, STAGE, {"x": x}, {"y": x * 3})]
    """,
}


@pytest.fixture(scope="session")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the distribution was installed into, by a real installer."""
    source = tmp_path_factory.mktemp("acme")
    for name, text in ACME.items():
        (source / name).write_text(textwrap.dedent(text))
    site = tmp_path_factory.mktemp("device") / "site-packages"
    command = [
        sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-build-isolation", "--no-deps",
        "--no-index", "--no-cache", "--target", str(site), "--python", sys.executable, str(source),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=120)
    return site


def test_a_third_partys_distribution_runs_the_same_test(acme: Path, tmp_path: Path, repository: Path) -> None:
    (tmp_path / "test_acme.py").write_text(textwrap.dedent(ACME["test_acme.py"]))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    environment = os.environ | {"PYTHONPATH": f"{acme}:{repository}"}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stdout
    assert "13 passed" in run.stdout


async def test_a_worker_serves_a_third_partys_backend(
    acme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(acme))
    inputs, outputs = specs("FP32")
    manifest = write_module(
        tmp_path / "slot", {"m.bin": b"acme 3"}, inputs=inputs, outputs=outputs,
        runtime=Runtime(backend="acme.scaler", model="m.bin"),
    )  # fmt: skip
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        ready = await worker.serve()
        assert ready.execution == "acme: 1/1 nodes on ACME"
        answer = await worker.infer({"inputs": [json_input(NUMBERS.astype(np.float32))]})
        np.testing.assert_array_equal(answer.array("y"), NUMBERS * 3)


def test_a_backend_that_nobody_has_installed_is_named_with_those_there_are(
    acme: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(acme)
    inputs, outputs = specs("FP32")
    with pytest.raises(BackendError, match=r"among acme.broken, acme.scaler, .*onnx.*, got acme.other"):
        open_stage(Stage("s", inputs, outputs, "acme.other", "m"))
    with pytest.raises(BackendError, match=r"acme.broken \(acme_backend:Broken\) does not start: RuntimeError: no lic"):
        open_stage(Stage("s", inputs, outputs, "acme.broken", "m"))
