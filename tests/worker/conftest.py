"""Real models for the worker's tests, trained and converted once per session."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modules.manifest import Health, Manifest, SamplingPolicy
from modules.tensors import GoldenCase, GoldenSet, Tensor, TensorSpec, encode_golden
from modules.windows import Categorical, Numeric, ReferenceProfile, encode_reference
from worker.driver import WorkerDriver, write_module

INPUTS = (TensorSpec("x", "FP32", (-1, 64)),)
OUTPUTS = (TensorSpec("label", "INT64", (-1,)), TensorSpec("probabilities", "FP32", (-1, 10)))


@dataclass(frozen=True)
class Digits:
    """A classifier of scikit-learn's handwritten digits, as ONNX, with its data and what it answers."""

    onnx: bytes
    x: np.ndarray[Any, np.dtype[np.float32]]
    labels: np.ndarray[Any, np.dtype[np.int64]]
    probabilities: np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="session")
def digits() -> Digits:
    with warnings.catch_warnings():  # the libraries' own deprecations and the short training are not ours to test
        warnings.simplefilter("ignore")
        from skl2onnx import to_onnx
        from sklearn.datasets import load_digits
        from sklearn.neural_network import MLPClassifier

        x, y = load_digits(return_X_y=True)
        x = (x / 16).astype(np.float32)
        model = MLPClassifier((32,), max_iter=12, random_state=0).fit(x, y)
        onnx = to_onnx(model, x[:1], options={"zipmap": False}, target_opset=17)
        onnx.graph.input[0].name = "x"
        for node in onnx.graph.node:
            for i, name in enumerate(node.input):
                if name == "X":
                    node.input[i] = "x"
        labels, probabilities = model.predict(x), model.predict_proba(x)
    _rename_output(onnx, "output_label", "label")
    _rename_output(onnx, "output_probability", "probabilities")
    return Digits(onnx.SerializeToString(), x, labels.astype(np.int64), probabilities.astype(np.float32))


def _rename_output(onnx: Any, old: str, new: str) -> None:
    for output in onnx.graph.output:
        if output.name == old:
            output.name = new
    for node in onnx.graph.node:
        for i, name in enumerate(node.output):
            if name == old:
                node.output[i] = new
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new


@pytest.fixture(scope="session")
def reference(digits: Digits) -> ReferenceProfile:
    """Profiles eight pixels, the class and the confidence. No value was missing in training."""
    pixels = tuple(_profiled(f"pixel {i}", "x", digits.x[:, i], i) for i in range(20, 28))
    confidence = digits.probabilities.max(axis=1)
    names = tuple(str(i) for i in range(10))
    counts = (*np.bincount(digits.probabilities.argmax(axis=1), minlength=10).tolist(), 0, 0)
    classes = Categorical("class", "probabilities", names, counts, take="argmax")
    label_counts = (*np.bincount(digits.labels, minlength=10).tolist(), 0, 0)
    label = Categorical("label", "label", names, label_counts)
    sure = _profiled("confidence", "probabilities", confidence, 0, take="max")
    return ReferenceProfile(len(digits.x), pixels, (classes, label, sure))


def _profiled(name: str, tensor: str, column: Any, index: int, take: Any = "column") -> Numeric:
    edges = np.unique(np.quantile(column.astype(float), np.linspace(0, 1, 6)))
    edges = edges if len(edges) > 1 else np.array([edges[0], edges[0] + 1])
    counts = (*np.histogram(column, edges)[0].tolist(), 0, 0, 0)
    scale = float(column.std()) or 1.0
    return Numeric(name, tensor, tuple(edges.tolist()), counts, float(column.mean()), scale, take, index)


def golden_set(digits: Digits) -> bytes:
    x = Tensor("x", "FP32", (4, 64), digits.x[:4].tobytes())
    label = Tensor("label", "INT64", (4,), digits.labels[:4].tobytes())
    scores = Tensor("probabilities", "FP32", (4, 10), digits.probabilities[:4].tobytes())
    return encode_golden(GoldenSet((GoldenCase((x,), (label, scores)),)))


@pytest.fixture
def digits_module(tmp_path: Path, digits: Digits, reference: ReferenceProfile) -> Manifest:
    """In tmp_path/slot."""
    files = {
        "model.onnx": digits.onnx,
        "golden.msgpack": golden_set(digits),
        "reference.json": encode_reference(reference),
    }
    health = Health(golden="golden.msgpack", rtol=1e-3, atol=1e-4)
    return write_module(
        tmp_path / "slot", files, inputs=INPUTS, outputs=OUTPUTS, reference="reference.json", health=health
    )


@pytest.fixture
async def worker(tmp_path: Path, digits_module: Manifest) -> AsyncIterator[WorkerDriver]:
    """Serving digits, with every prediction sampled and windows that are closed by the drain."""
    policy = SamplingPolicy(rate=1.0, window_s=3600)
    async with WorkerDriver(tmp_path / "slot", digits_module, policy) as driver:
        await driver.serve()
        yield driver


@pytest.fixture
def readable_by_all(tmp_path: Path) -> None:
    """Pytest's folders are closed to other users."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
