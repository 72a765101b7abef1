"""What was asked, what was got and why: the ONNX backend on a machine that has the CPU and nothing else."""

import sys
from pathlib import Path

import numpy as np
import pytest

from agent.backends import Array, BackendError
from agent.backends.onnx import OnnxBackend
from agent.backends.onnx_providers import OPTIONS, options, wish
from agent.backends.place import Place
from modules.runtime import CPU, Provider, Stage
from modules.tensors import TensorSpec
from worker.conftest import INPUTS, OUTPUTS, Digits

CUDA, TENSORRT, OPENVINO, QNN, AZURE = (
    f"{name}ExecutionProvider" for name in ("CUDA", "Tensorrt", "OpenVINO", "QNN", "Azure")
)


def stage(*providers: str | Provider, fallback: bool = False) -> Stage:
    wanted = tuple(one if isinstance(one, Provider) else Provider(one) for one in providers)
    return Stage("digits", INPUTS, OUTPUTS, "onnx", "model.onnx", providers=wanted, fallback=fallback)


def place(folder: Path, **changes: object) -> Place:
    return Place(**{"slot": folder, "signed": frozenset({"model.onnx"}), **changes})  # type: ignore[arg-type]


def loaded(folder: Path, digits: Digits, wanted: Stage, **changes: object) -> OnnxBackend:
    (folder / "model.onnx").write_bytes(digits.onnx)
    backend = OnnxBackend()
    backend.load(wanted, place(folder, **changes))
    return backend


def test_the_cpu_is_proven_node_by_node(tmp_path: Path, digits: Digits) -> None:
    (ran,) = loaded(tmp_path, digits, stage()).execution()
    assert ran.asked == (CPU,)
    assert set(ran.got) == {CPU}
    assert ran.got[CPU] > 3
    assert ran.why == ""


@pytest.mark.parametrize("missing", [CUDA, TENSORRT, OPENVINO])
def test_a_provider_that_was_not_built_in_makes_loading_fail_with_the_reason(
    tmp_path: Path, digits: Digits, missing: str
) -> None:
    with pytest.raises(
        BackendError, match=rf"the module asks for {missing} .* was built without it.*fallback"
    ) as error:
        loaded(tmp_path, digits, stage(missing))
    assert error.value.key == "load-failed"


def test_a_provider_that_is_there_and_takes_no_node_is_no_provider(tmp_path: Path, digits: Digits) -> None:
    """Azure's is compiled into every build and runs no node of a model like this: what a list of providers proves."""
    with pytest.raises(BackendError, match="do not take every node of this model"):
        loaded(tmp_path, digits, stage(AZURE))


def test_a_fallback_that_is_allowed_is_reported(tmp_path: Path, digits: Digits) -> None:
    backend = loaded(tmp_path, digits, stage(CUDA, AZURE, fallback=True))
    (ran,) = backend.execution()
    assert ran.asked == (CUDA, AZURE)
    assert set(ran.got) == {CPU}
    assert f"{CUDA}: this ONNX Runtime" in ran.why
    assert f"{AZURE}: it took no node of this model" in ran.why
    assert CUDA in str(ran)
    answers = backend.run({"x": digits.x[:3]})
    np.testing.assert_array_equal(answers["label"], digits.labels[:3])


def test_a_list_that_ends_in_the_cpu_allows_it_and_tells_the_rest(tmp_path: Path, digits: Digits) -> None:
    (ran,) = loaded(tmp_path, digits, stage(TENSORRT, CUDA, CPU)).execution()
    assert ran.asked == (TENSORRT, CUDA, CPU)
    assert set(ran.got) == {CPU}
    assert ran.why.count("was built without it") == 2


def test_a_device_that_promises_an_accelerator_and_no_cpu_is_held_to_it(tmp_path: Path, digits: Digits) -> None:
    with pytest.raises(BackendError, match="the device's profile asks for CUDA"):
        loaded(tmp_path, digits, stage(), providers=(CUDA,))
    (ran,) = loaded(tmp_path, digits, stage(), providers=(CUDA, CPU)).execution()
    assert ran.why.startswith(f"{CUDA}: ")


def test_a_plug_in_that_is_not_installed_is_named(tmp_path: Path, digits: Digits) -> None:
    with pytest.raises(BackendError, match="onnxruntime_qnn is not installed"):
        loaded(tmp_path, digits, stage(QNN))


def test_a_plug_in_whose_library_is_broken_is_told_as_its_linker_does(
    tmp_path: Path, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libbroken.so").write_bytes(b"no library")
    (tmp_path / "onnxruntime_qnn.py").write_text(
        f"def get_library_path():\n    return {str(tmp_path / 'libbroken.so')!r}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match="its library does not load"):
        loaded(tmp_path, digits, stage(QNN))
    sys.modules.pop("onnxruntime_qnn", None)


@pytest.mark.parametrize(
    ("provider", "said", "words"),
    [
        (TENSORRT, {"trt_extra_plugin_lib_paths": "/evil.so"}, "not one that a module may set"),
        (TENSORRT, {"trt_engine_cache_path": "/etc"}, "not one that a module may set"),
        (QNN, {"backend_path": "/evil.so"}, "not one that a module may set"),
        (OPENVINO, {"cache_dir": "/etc"}, "not one that a module may set"),
        (OPENVINO, {"device_type": "CPU;/etc"}, "expected .* got 'CPU;/etc'"),
        (CUDA, {"device_id": "-1"}, "expected"),
        ("VitisAIExecutionProvider", {"config_file": "../../etc/passwd"}, "expected the path of a file of the module"),
        (AZURE, {"endpoint": "x"}, "those are none"),
    ],
)
def test_an_option_that_could_reach_beyond_the_module_is_refused(
    tmp_path: Path, provider: str, said: dict[str, str], words: str
) -> None:
    asked = Provider(provider, said)
    with pytest.raises(BackendError, match=words):
        options(asked, stage(asked), place(tmp_path))


def test_what_the_device_bounds_a_module_may_lower_and_not_raise(tmp_path: Path) -> None:
    here = place(tmp_path, gpu_memory_mib=512, threads=3, cache=tmp_path)
    more = Provider(CUDA, {"gpu_mem_limit": str(2**40), "arena_extend_strategy": "kNextPowerOfTwo"})
    assert options(more, stage(more), here) == {
        "gpu_mem_limit": str(512 * 2**20), "arena_extend_strategy": "kSameAsRequested"
    }  # fmt: skip
    less = Provider(TENSORRT, {"trt_max_workspace_size": "1024", "trt_fp16_enable": "1"})
    given = options(less, stage(less), here)
    assert given["trt_max_workspace_size"] == "1024"
    assert given["trt_engine_cache_path"] == given["trt_timing_cache_path"] == str(tmp_path / "tensorrt")
    assert (tmp_path / "tensorrt").is_dir()
    vino = Provider(OPENVINO)
    assert options(vino, stage(vino), here) == {"num_of_threads": "3", "cache_dir": str(tmp_path / "openvino")}
    vitis = Provider("VitisAIExecutionProvider", {"config_file": "model.onnx"})
    assert options(vitis, stage(vitis), here)["config_file"] == str(tmp_path / "model.onnx")


def test_no_option_on_the_list_names_a_path() -> None:
    words = {word for known in OPTIONS.values() for name in known for word in name.lower().split("_")}
    assert not words & {"path", "paths", "dir", "directory", "lib", "library", "file", "folder", "plugin"}


def test_the_module_speaks_before_the_device(tmp_path: Path) -> None:
    here = place(tmp_path, providers=(CUDA, CPU))
    assert wish(stage(OPENVINO), here).names == (OPENVINO,)
    assert not wish(stage(OPENVINO), here).cpu
    assert wish(stage(), here).names == (CUDA, CPU)
    assert wish(stage(), here).cpu
    assert wish(stage(), place(tmp_path, providers=("EdgeTPU",))).names == (CPU,)
    assert [one.name for one in wish(stage(CUDA, fallback=True), here).given(frozenset())] == [CUDA, CPU]


def test_a_bound_run_reads_and_writes_the_callers_own_memory(tmp_path: Path, digits: Digits) -> None:
    backend = loaded(tmp_path, digits, stage())
    x = digits.x[:2].copy()
    label, scores = np.zeros(2, np.int64), np.zeros((2, 10), np.float32)
    run = backend.bind({"x": x}, {"label": label, "probabilities": scores})
    assert run is not None
    run()
    np.testing.assert_array_equal(label, digits.labels[:2])
    x[:] = digits.x[7:9]
    run()
    np.testing.assert_array_equal(label, digits.labels[7:9])
    np.testing.assert_allclose(scores, digits.probabilities[7:9], rtol=1e-4, atol=1e-5)


def test_arrays_that_cannot_be_bound_are_left_to_run(tmp_path: Path, digits: Digits) -> None:
    backend = loaded(tmp_path, digits, stage())
    outputs: dict[str, Array] = {"label": np.zeros(2, np.int64), "probabilities": np.zeros((2, 10), np.float32)}
    assert backend.bind({"x": digits.x[:4:2]}, outputs) is None
    assert backend.bind({"x": digits.x[:2]}, {"label": outputs["label"]}) is None
    outputs["label"].flags.writeable = False
    assert backend.bind({"x": digits.x[:2]}, outputs) is None


def test_a_bound_output_of_the_wrong_shape_is_an_error_and_not_a_crash(tmp_path: Path, digits: Digits) -> None:
    backend = loaded(tmp_path, digits, stage())
    outputs: dict[str, Array] = {"label": np.zeros(5, np.int64), "probabilities": np.zeros((5, 10), np.float32)}
    run = backend.bind({"x": digits.x[:2].copy()}, outputs)
    assert run is not None
    with pytest.raises(BackendError):
        run()


def test_a_spec_that_is_not_the_models_is_refused_at_load(tmp_path: Path, digits: Digits) -> None:
    (tmp_path / "model.onnx").write_bytes(digits.onnx)
    wrong = Stage("digits", (TensorSpec("x", "FP64", (-1, 64)),), OUTPUTS, "onnx", "model.onnx")
    with pytest.raises(BackendError, match="expected FP64"):
        OnnxBackend().load(wrong, place(tmp_path))
