"""A module as the worker gets it, for one of the models of `_models`: slot, manifest, golden answers, reference.

The MLP and the trees have 20 features profiled, the convolution nets their class and confidence.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _models
from modules.bundle import Chunk, FileEntry, sha256_hex
from modules.manifest import Health, Lineage, Manifest, Resources, Runtime
from modules.tensors import ONNX_TYPES, GoldenCase, GoldenSet, Tensor, TensorSpec, encode_golden
from modules.windows import Categorical, Feature, Numeric, ReferenceProfile, encode_reference

MODELS: dict[str, Callable[[], bytes]] = {"mlp": _models.mlp, "trees": _models.trees, "conv": _models.conv224}
CHUNK = 256 * 1024
_ROWS = {"mlp": 5000, "trees": 5000, "conv": 8}
_CLASSES = {"mlp": 3, "trees": 3, "conv": 1000}


@functools.cache
def model(name: str) -> bytes:
    return MODELS[name]()


def session(data: bytes) -> Any:
    """The raw runtime: one thread, as small devices have it."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def rows(raw: Any, count: int) -> Any:
    """`count` rows of input, the same every time."""
    shape = [size for size in raw.get_inputs()[0].shape if isinstance(size, int)]
    return np.random.default_rng(1).normal(size=(count, *shape)).astype(np.float32)


def write_slot(slot: Path, name: str, raw: Any) -> Manifest:
    """Writes the files; the manifest names the module `bench`."""
    seen = rows(raw, _ROWS[name])
    answers = dict(zip([node.name for node in raw.get_outputs()], raw.run(None, {"x": seen}), strict=True))
    first = {"x": seen[:1]}
    golden = GoldenCase(
        tuple(_tensor(key, array) for key, array in first.items()),
        tuple(_tensor(key, array[:1]) for key, array in answers.items()),
    )
    reference = ReferenceProfile(len(seen), _inputs(seen), _outputs(answers, _CLASSES[name]))
    files = {
        "model.onnx": model(name),
        "golden": encode_golden(GoldenSet((golden,))),
        "reference": encode_reference(reference),
    }
    slot.mkdir(parents=True)
    for path, data in files.items():
        (slot / path).write_bytes(data)
    return Manifest(
        "bench", 1, "bench", Lineage("bench", 1),
        tuple(map(_spec, raw.get_inputs())), tuple(map(_spec, raw.get_outputs())),
        tuple(file_entry(path, data) for path, data in files.items()), Runtime(),
        resources=Resources(threads=1), health=Health(golden="golden", atol=1e-3), reference="reference",
    )  # fmt: skip


def _spec(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return TensorSpec(node.name, ONNX_TYPES[node.type], shape)


def _tensor(name: str, array: Any) -> Tensor:
    kinds = {"float32": "FP32", "int64": "INT64"}
    return Tensor(name, kinds[array.dtype.name], array.shape, array.tobytes())


def file_entry(path: str, data: bytes) -> FileEntry:
    pieces = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    return FileEntry(path, len(data), sha256_hex(data), tuple(Chunk(sha256_hex(p), len(p)) for p in pieces))


def _inputs(seen: Any) -> tuple[Feature, ...]:
    if seen.ndim != 2:
        return ()
    return tuple(_numeric(f"f{i}", "x", seen[:, i], i) for i in range(seen.shape[1]))


def _outputs(answers: dict[str, Any], classes: int) -> tuple[Feature, ...]:
    name, scores = next((key, array) for key, array in answers.items() if array.ndim == 2)
    counts = (*np.bincount(scores.argmax(axis=1), minlength=classes).tolist(), 0, 0)
    known = tuple(f"class-{i}" for i in range(classes))
    return (
        Categorical("class", name, known, counts, take="argmax"),
        _numeric("confidence", name, scores.max(axis=1), 0, take="max"),
    )


def _numeric(name: str, tensor: str, column: Any, index: int, take: Any = "column") -> Numeric:
    edges = np.quantile(column.astype(float), np.linspace(0, 1, min(21, len(column))))
    counts = (*np.histogram(column, edges)[0].tolist(), 0, 0, 0)
    return Numeric(name, tensor, tuple(edges.tolist()), counts, float(column.mean()), float(column.std()), take, index)
