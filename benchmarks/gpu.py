"""What our backend adds to a GPU's own time: MobileNetV2 on CUDA and TensorRT, beside bare runs, batch 1, 8 and 32.

Run on a machine with an NVIDIA GPU, the libraries of CUDA and TensorRT, and the packages onnxruntime-gpu, onnx,
numpy and msgspec; elsewhere the last line says why there is nothing to measure, with no metrics. Ours is the ONNX
backend as a worker loads it, strict: every node on the provider that was asked for, or that provider is not measured.
`ours_over_raw` is `OnnxBackend.run` over `InferenceSession.run`, and
`ours_bound_over_raw_bound` a kept binding of ours over a kept binding of the runtime's, each the median of interleaved
rounds; the worst of the batches is reported beside each. Answers must agree with the CPU's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np

from agent.backends import BackendError
from agent.backends.onnx import OnnxBackend
from agent.backends.place import Place
from benchmarks._models import conv224
from benchmarks.common import machine, median, report
from modules.runtime import CPU, Provider, Stage
from modules.tensors import TensorSpec

PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
BATCHES = (1, 8, 32)
ROUNDS, RUNS, WARM_UP = 9, 30, 20
RTOL = ATOL = 2e-2  # TensorFloat-32 keeps ten bits
INPUTS = (TensorSpec("x", "FP32", (-1, 3, 224, 224)),)
OUTPUTS = (TensorSpec("y", "FP32", (-1, 1000)),)


def main() -> None:
    gpu = _gpu()
    if not gpu:
        nothing("no NVIDIA GPU here: nvidia-smi names none")
        return
    metrics: dict[str, float] = {}
    reasons: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        slot = Path(folder) / "slot"
        slot.mkdir()
        (slot / "model.onnx").write_bytes(conv224())
        (Path(folder) / "cache").mkdir()
        for name, provider in PROVIDERS.items():
            try:
                metrics |= _measured(
                    name, provider, Place(slot, frozenset({"model.onnx"}), cache=slot.parent / "cache")
                )
            except BackendError as error:
                reasons[name] = str(error)
    print(json.dumps({"gpu": gpu, "not_measured": reasons}))
    if not metrics:
        nothing("; ".join(reasons.values()))
        return
    worst = max(value for key, value in metrics.items() if "_over_raw_b" in key)
    report("gpu", metrics | {"ours_over_raw": worst})


def nothing(why: str) -> None:
    """The last line of a machine where nothing can be measured. It is no failure."""
    print(json.dumps({"name": "gpu", "metrics": None, "why": why[:1000], "machine": machine()}), flush=True)


def _measured(name: str, provider: str, place: Place) -> dict[str, float]:
    """Raises BackendError where the provider does not take the whole model."""
    backend = _loaded(place, provider)
    raw = _raw(place, provider)
    expected = _loaded(place, CPU)
    metrics: dict[str, float] = {}
    for batch in BATCHES:
        x = np.random.default_rng(0).normal(size=(batch, 3, 224, 224)).astype(np.float32)
        _check(name, backend.run({"x": x})["y"], expected.run({"x": x})["y"])
        p50 = _interleaved({
            "raw": lambda x=x: raw.run(["y"], {"x": x}),
            "ours": lambda x=x: backend.run({"x": x}),
            "raw_bound": _raw_bound(raw, x),
            "ours_bound": _ours_bound(backend, x),
        })  # fmt: skip
        metrics |= {f"{name}_{who}_ms_b{batch}": value for who, value in p50.items()}
        metrics[f"{name}_ours_over_raw_b{batch}"] = p50["ours"] / p50["raw"]
        metrics[f"{name}_ours_bound_over_raw_bound_b{batch}"] = p50["ours_bound"] / p50["raw_bound"]
    backend.close()
    return metrics


def _loaded(place: Place, provider: str) -> OnnxBackend:
    backend = OnnxBackend()
    backend.load(Stage("conv", INPUTS, OUTPUTS, "onnx", "model.onnx", providers=(Provider(provider),)), place)
    return backend


def _raw(place: Place, provider: str) -> Any:
    """As somebody would write it who uses ONNX Runtime himself, on the same provider and no other."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    kept = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(place.cache)}
    given = kept if provider == PROVIDERS["tensorrt"] else {}
    return ort.InferenceSession(str(place.slot / "model.onnx"), options, providers=[(provider, given)])


def _raw_bound(session: Any, x: np.ndarray[Any, Any]) -> Callable[[], object]:
    """Host memory in and out, the binding kept, the input bound anew because that is when it is copied."""
    binding = session.io_binding()
    y = np.zeros((len(x), 1000), np.float32)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)

    def run() -> np.ndarray[Any, Any]:
        binding.bind_cpu_input("x", x)
        session.run_with_iobinding(binding)
        return y

    return run


def _ours_bound(backend: OnnxBackend, x: np.ndarray[Any, Any]) -> Callable[[], object]:
    run = backend.bind({"x": x}, {"y": np.zeros((len(x), 1000), np.float32)})
    assert run is not None
    return run


def _interleaved(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """p50 in ms of each, as the median of rounds in which all take turns."""
    for run in runs.values():
        _times(run, WARM_UP)
    found: dict[str, list[float]] = {who: [] for who in runs}
    for _ in range(ROUNDS):
        for who, run in runs.items():
            found[who].append(median(_times(run, RUNS)))
    return {who: median(values) for who, values in found.items()}


def _times(run: Callable[[], object], count: int) -> list[float]:
    taken = []
    for _ in range(count):
        started = time.perf_counter_ns()
        run()
        taken.append((time.perf_counter_ns() - started) / 1e6)
    return taken


def _check(name: str, got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    scale = float(np.abs(expected).max())
    if not np.allclose(got, expected, rtol=RTOL, atol=ATOL * scale):
        worst = float(np.abs(got - expected).max())
        raise BackendError("run-failed", f"{name}: expected the CPU's answers within {RTOL:g}, got {worst:g} off")


def _gpu() -> str:
    """Its name, memory and driver; empty where there is none."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


if __name__ == "__main__":
    main()
