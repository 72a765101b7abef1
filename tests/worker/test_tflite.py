"""TFLite models in LiteRT: what they take and give, what runs where, and what is refused."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.backends import Array, BackendError
from agent.backends.place import Place
from agent.backends.tflite import TfliteBackend
from agent.backends.tflite_delegates import installed, took, try_libraries, wish
from agent.backends.tflite_runtime import PACKAGES, open_runtime, smallest_model
from modules.runtime import CPU, Provider, Stage
from modules.tensors import TensorSpec
from support import tflite_models

X, Y = TensorSpec("x", "FP32", (-1, 64)), TensorSpec("y", "FP32", (-1, 10))
Layers = list[tuple[Array, Array]]


@pytest.fixture(scope="session")
def trained() -> tuple[Layers, Array, Array]:
    """A scikit-learn classifier of digits: its layers, its data, its probabilities."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sklearn.datasets import load_digits
        from sklearn.neural_network import MLPClassifier

        x, y = load_digits(return_X_y=True)
        x = (x / 16).astype(np.float32)
        model = MLPClassifier((32,), max_iter=12, random_state=0).fit(x, y)
        return list(zip(model.coefs_, model.intercepts_, strict=True)), x, model.predict_proba(x)


def loaded(folder: Path, model: bytes, *specs: TensorSpec, **stage: Any) -> TfliteBackend:
    (folder / "m.tflite").write_bytes(model)
    inputs, outputs = (specs[0],), (specs[1],)
    wanted = Stage("m", inputs, outputs, "tflite", "m.tflite", **stage)
    backend = TfliteBackend()
    backend.prepare(wanted)
    backend.load(wanted, Place(folder, frozenset({"m.tflite"})))
    return backend


@pytest.mark.parametrize("signature", ["serving_default", ""])
def test_an_mlp_answers_as_scikit_learn_does_in_every_batch(
    tmp_path: Path, trained: tuple[Layers, Array, Array], signature: str
) -> None:
    layers, x, expected = trained
    backend = loaded(tmp_path, tflite_models.mlp(layers, signature), X, Y)
    for rows in (1, 7, 3, 3, 1):
        np.testing.assert_allclose(backend.run({"x": x[:rows]})["y"], expected[:rows], rtol=1e-4, atol=1e-5)


def test_every_node_is_accounted_for(tmp_path: Path, trained: tuple[Layers, Array, Array]) -> None:
    model = tflite_models.mlp(trained[0])
    (ran,) = loaded(tmp_path, model, X, Y).execution()
    assert (ran.asked, ran.got, ran.why) == (("XNNPACK", "CPU"), {"XNNPACK": 3}, "")
    (ran,) = loaded(tmp_path, model, X, Y, providers=(Provider("CPU"),)).execution()
    assert (ran.asked, ran.got) == (("CPU",), {"CPU": 3})
    (ran,) = loaded(tmp_path, tflite_models.echo("INT64"), *echo_specs("INT64")).execution()
    assert ran.got == {"CPU": 1}
    assert "XNNPACK: it took no node" in ran.why


def test_a_delegate_that_is_asked_for_alone_must_take_every_node(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"asks for XNNPACK and allows no other \(1 nodes run on CPU; XNNPACK: it"):
        loaded(tmp_path, tflite_models.echo("INT64"), *echo_specs("INT64"), providers=(Provider("XNNPACK"),))
    only = (Provider("XNNPACK"),)
    (ran,) = loaded(
        tmp_path, tflite_models.echo("INT64"), *echo_specs("INT64"), providers=only, fallback=True
    ).execution()
    assert ran.got == {"CPU": 1}


def test_a_delegate_that_is_not_installed_is_named_and_never_replaced_in_silence(
    tmp_path: Path, trained: tuple[Layers, Array, Array]
) -> None:
    model = tflite_models.mlp(trained[0])
    with pytest.raises(BackendError, match=r"asks for EdgeTPU .*3 nodes run on XNNPACK.*libedgetpu\.so\.1.*fallback"):
        loaded(tmp_path, model, X, Y, providers=(Provider("EdgeTPU"),))
    (ran,) = loaded(tmp_path, model, X, Y, providers=(Provider("EdgeTPU"),), fallback=True).execution()
    assert ran.got == {"XNNPACK": 3}
    assert "EdgeTPU: libedgetpu.so.1" in ran.why


def test_a_delegate_that_crashes_takes_only_its_trial_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "crash.c"
    source.write_text("__attribute__((constructor)) static void f(void) { *(volatile int *)0 = 1; }")
    built = ["gcc", "-shared", "-fPIC", "-o", str(tmp_path / "libedgetpu.so.1"), str(source)]
    subprocess.run(built, check=True, timeout=60)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    tried = try_libraries(["EdgeTPU"], "ai_edge_litert.interpreter")
    assert tried == {"EdgeTPU": "libedgetpu.so.1 does not fit this runtime: it ends in SIGSEGV"}


@pytest.mark.parametrize(
    ("provider", "words"),
    [
        (Provider("CUDAExecutionProvider"), "expected delegates among XNNPACK, CPU, EdgeTPU, GPU"),
        (Provider("EdgeTPU", {"library": "/evil.so"}), "expected device, got library='/evil.so'"),
        (Provider("EdgeTPU", {"device": "../x"}), "expected device"),
        (Provider("XNNPACK", {"a": "b"}), "expected no options"),
    ],
)
def test_a_delegate_or_option_that_nobody_knows_is_refused(tmp_path: Path, provider: Provider, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        loaded(tmp_path, tflite_models.echo("FP32"), *echo_specs("FP32"), providers=(provider,))


def test_the_profile_names_delegates_in_its_own_words(tmp_path: Path) -> None:
    stage = Stage("m", (X,), (Y,), "tflite", "m.tflite")
    on = Place(tmp_path, providers=("EdgeTpuDelegate", "XnnpackExecutionProvider", CPU))
    assert wish(stage, on).names == ("EdgeTPU", "XNNPACK", "CPU")
    assert wish(stage, Place(tmp_path, providers=("CUDAExecutionProvider",))).names == ("XNNPACK", "CPU")


def echo_specs(datatype: str, rows: int = -1) -> tuple[TensorSpec, TensorSpec]:
    return TensorSpec("x", datatype, (rows, 2)), TensorSpec("y", datatype, (rows, 2))


@pytest.mark.parametrize(
    ("datatype", "free"), [("FP32", False), ("INT8", False), *((name, True) for name in sorted(tflite_models.TYPES))]
)
def test_every_datatype_goes_in_and_comes_out_as_it_is(tmp_path: Path, datatype: str, free: bool) -> None:
    backend = loaded(tmp_path, tflite_models.echo(datatype, free), *echo_specs(datatype, -1 if free else 3))
    values = np.array([[1, 0], [2, 3], [100, 5]])
    x = (
        np.array([[b"a", b""], [b"\xff\x00", b"bc"], [b"d", b"e"]], object)
        if datatype == "BYTES"
        else values.astype(tflite_dtype(datatype))
    )
    y = backend.run({"x": x})["y"]
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x)


def tflite_dtype(datatype: str) -> str:
    names = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"}
    return names.get(datatype, datatype.lower())


def test_a_quantised_model_shows_its_integers(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weights, bias = random.normal(size=(64, 10)), random.normal(size=10)
    x_scale, y_scale = tflite_models.Scale(0.05, 3), tflite_models.Scale(0.3)
    model = tflite_models.mlp_int8(weights, bias, x_scale, y_scale)
    specs = TensorSpec("x", "INT8", (-1, 64)), TensorSpec("y", "INT8", (-1, 10))
    x = random.integers(-100, 100, (5, 64), dtype=np.int8)
    y = loaded(tmp_path, model, *specs).run({"x": x})["y"]
    step = np.abs(weights).max() / 127
    kept = np.rint(weights / step) * step
    expected = np.clip(np.rint(((x.astype(int) - 3) * 0.05 @ kept + bias) / 0.3), -128, 127)
    assert y.dtype == np.int8
    assert np.abs(y - expected).max() <= 1


def test_a_convolution_is_the_one_that_numpy_computes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    kernel, bias = random.normal(size=(4, 3, 3, 2)), random.normal(size=4)
    x = random.normal(size=(2, 8, 8, 2)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    expected = np.maximum(np.einsum("nhwcij,oijc->nhwo", windows, kernel) + bias, 0)
    specs = TensorSpec("x", "FP32", (-1, 8, 8, 2)), TensorSpec("y", "FP32", (-1, 8, 8, 4))
    backend = loaded(tmp_path, tflite_models.conv(kernel, bias, 8), *specs)
    np.testing.assert_allclose(backend.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ((TensorSpec("x", "INT8", (-1, 64)), Y), r"input x: expected INT8 \[-1, 64\], got FP32 \[-1, 64\]"),
        ((TensorSpec("x", "FP32", (-1, 63)), Y), "input x: expected FP32"),
        ((TensorSpec("wrong", "FP32", (-1, 64)), Y), "inputs: expected wrong, got x"),
        ((X, TensorSpec("y", "FP32", (-1, 9))), "output y"),
        ((X, TensorSpec("z", "FP32", (-1, 10))), "outputs: expected z, got y"),
    ],
)
def test_a_model_whose_tensors_are_not_those_of_the_manifest_is_refused(
    tmp_path: Path, trained: tuple[Layers, Array, Array], specs: tuple[TensorSpec, TensorSpec], words: str
) -> None:
    with pytest.raises(BackendError, match=words) as error:
        loaded(tmp_path, tflite_models.mlp(trained[0]), *specs)
    assert error.value.key == "load-failed"


def test_a_shape_that_the_graph_does_not_take_is_the_callers_fault_and_the_next_run_works(tmp_path: Path) -> None:
    backend = loaded(tmp_path, tflite_models.echo("FP32", free=False), *echo_specs("FP32", 3))
    with pytest.raises(BackendError) as error:
        backend.run({"x": np.ones((4, 2), np.float32)})
    assert error.value.key == "bad-input"
    np.testing.assert_array_equal(backend.run({"x": np.ones((3, 2), np.float32)})["y"], np.ones((3, 2)))


def half(model: bytes) -> bytes:
    return model[: len(model) // 2]


def zeros_inside(model: bytes) -> bytes:
    return model[:40] + bytes(60) + model[100:]


@pytest.mark.parametrize("spoil", [half, zeros_inside, lambda _: b"", lambda _: b"junk" * 99])
def test_junk_is_refused_at_load(
    tmp_path: Path, trained: tuple[Layers, Array, Array], spoil: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(BackendError) as error:
        loaded(tmp_path, spoil(tflite_models.mlp(trained[0])), X, Y)
    assert error.value.key == "load-failed"


def test_a_runtime_is_taken_only_when_it_makes_an_interpreter(tmp_path: Path) -> None:
    """As tflite-runtime 2.14 beside NumPy 2: it imports, and then makes none. In a process without LiteRT."""
    package = tmp_path / "tflite_runtime"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "interpreter.py").write_text(
        "class Interpreter:\n    def __init__(self, **k):\n        raise SystemError('returned a result')\n"
    )
    program = (
        "import sys; sys.modules['ai_edge_litert'] = None\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from agent.backends.tflite_runtime import open_runtime\n"
        "try: open_runtime()\n"
        "except Exception as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "tflite_runtime is installed and makes no interpreter: SystemError" in run.stdout
    assert "ai_edge_litert: No module named" in run.stdout


def test_the_smallest_model_is_one() -> None:
    runtime = open_runtime()
    assert runtime.__name__.partition(".")[0] in PACKAGES
    interpreter = runtime.Interpreter(model_content=smallest_model())
    interpreter.allocate_tensors()
    assert len(interpreter.get_input_details()) == 1


def test_what_lies_between_a_delegates_ends_is_its_own() -> None:
    def node(index: int, name: str, inputs: list[int], outputs: list[int]) -> dict[str, Any]:
        return {"index": index, "op_name": name, "inputs": inputs, "outputs": outputs}

    graph = [node(0, "A", [0], [1]), node(1, "B", [1], [2]), node(2, "C", [2], [3]), node(3, "D", [3], [4])]
    theirs = [*graph, node(4, "DELEGATE", [0], [2])]
    both = [*theirs, node(5, "DELEGATE", [2], [3])]
    assert took(graph, graph, ()) == {"CPU": 4}
    assert took(theirs, theirs, ("EdgeTPU",)) == {"EdgeTPU": 2, "CPU": 2}
    assert took(theirs, both, ("EdgeTPU",)) == {"EdgeTPU": 2, "XNNPACK": 1, "CPU": 1}
    assert took(graph, [*graph, node(4, "DELEGATE", [0], [4])], ()) == {"XNNPACK": 4}


def test_nothing_is_installed_where_the_linker_knows_nothing() -> None:
    assert set(installed()) <= {"EdgeTPU", "GPU"}
