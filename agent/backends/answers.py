"""Answers of a module, computed as a device computes them: `python -m agent.backends.answers`, a question on stdin.

For the hub's build, which imports nothing of the agent's: what a model file takes and gives, and what a whole module
(stages, steps) answers to given inputs. On the CPU, whatever the module asks for. Ends with one JSON value on standard
output and status 0, or with one sentence on standard error and status 1. Runs no scripts.
"""

from __future__ import annotations

import os
import resource
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from agent.backends import Array
from agent.backends.choice import open_backend, whole
from agent.backends.place import Place
from agent.endpoint.codec import DTYPES
from agent.errors import AgentError
from modules.errors import ModuleError
from modules.manifest import Manifest, decode_manifest
from modules.runtime import CPU, Stage
from modules.tensors import ONNX_TYPES, TensorSpec

BATCH_ROWS = 256


class Question(msgspec.Struct, frozen=True):
    """`slot` is the folder of the module's files. With `stages`, their tensors are asked for; else the answers of
    `manifest` to the arrays in `feeds` (.npz), which go with them to the file `to` (.npz). Within `memory_bytes`.
    """

    slot: str
    memory_bytes: int
    stages: tuple[Stage, ...] = ()
    manifest: bytes = b""
    feeds: str = ""
    to: str = ""


def describe(stages: tuple[Stage, ...], slot: Path) -> tuple[Stage, ...]:
    """With the tensors of the files where a stage names none. Raises ValueError and what the runtimes raise."""
    return tuple(stage if stage.inputs or stage.outputs else _described(stage, slot) for stage in stages)


def answer(manifest: Manifest, slot: Path, feeds: Path, to: Path) -> int:
    """The number of rows. Raises AgentError, ModuleError, ValueError."""
    stages = tuple(msgspec.structs.replace(s, providers=(), fallback=True) for s in manifest.runtime.stages)
    plain = msgspec.structs.replace(manifest.runtime, stages=stages, providers=(), fallback=True, sources=())
    manifest = msgspec.structs.replace(manifest, runtime=plain)
    arrays = {spec.name: _read(feeds, spec) for spec in manifest.inputs}
    backend = open_backend(manifest)
    signed = frozenset(entry.path for entry in manifest.files)
    backend.load(whole(manifest), Place(slot, signed, parallel=1, providers=(CPU,)))
    found = [backend.run(batch) for batch in _batches(manifest, arrays)]
    names = [spec.name for spec in manifest.outputs]
    outputs = {name: _joined(name, [one[name] for one in found], arrays) for name in names}
    rows = len(next(iter(outputs.values())))
    whole_arrays = {name: array[:rows] for name, array in arrays.items()} | outputs
    np.savez(to, **{name: _plain(array) for name, array in whole_arrays.items()})  # type: ignore[arg-type]
    return rows


def _described(stage: Stage, slot: Path) -> Stage:
    readers: dict[str, Callable[[Path], tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]] = {
        "onnx": _onnx_tensors,
        "tflite": _tflite_tensors,
    }
    if stage.backend not in readers:
        raise ValueError(f"stage {stage.name}: expected inputs and outputs, which {stage.backend} does not tell")
    inputs, outputs = readers[stage.backend](slot / stage.model)
    return msgspec.structs.replace(stage, inputs=inputs, outputs=outputs)


def _onnx_tensors(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=[CPU])
    return tuple(map(_onnx_spec, session.get_inputs())), tuple(map(_onnx_spec, session.get_outputs()))


def _onnx_spec(node: Any) -> TensorSpec:  # noqa: ANN401 - onnxruntime ships no types
    if node.type not in ONNX_TYPES:
        raise ValueError(f"{node.name}: expected a tensor, got {node.type}")
    shape = tuple(size if isinstance(size, int) and size > 0 else -1 for size in node.shape)
    return TensorSpec(node.name, ONNX_TYPES[node.type], shape)


def _tflite_tensors(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    from agent.backends.tflite_instance import Instance
    from agent.backends.tflite_runtime import open_runtime

    interpreter = open_runtime().Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    instance = Instance(interpreter)
    return instance.inputs(), instance.outputs()


def _read(path: Path, spec: TensorSpec) -> Array:
    if not zipfile.is_zipfile(path):
        raise ValueError("expected an .npz with one array per input (a .csv fits a plain ONNX model only), got none")
    with np.load(path, allow_pickle=False) as archive:
        if spec.name not in archive.files:
            raise ValueError(f"expected an array named {spec.name} in the .npz, got {sorted(archive.files)}")
        array: Array = archive[spec.name]
    if spec.datatype == "BYTES":
        texts = [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel().tolist()]
        flat = np.empty(len(texts), dtype=object)
        flat[:] = texts
        return flat.reshape(array.shape)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{spec.name}: expected numbers ({spec.datatype}), got {array.dtype}")
    return np.ascontiguousarray(array.astype(DTYPES[spec.datatype]))


def _batches(manifest: Manifest, arrays: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """As many rows as the module takes; where it takes a fixed number, a rest is left out."""
    fixed = max((spec.shape[0] for spec in manifest.inputs if spec.shape), default=0)
    step = fixed if fixed > 0 else BATCH_ROWS
    rows = min((len(array) for array in arrays.values()), default=0)
    end = rows - step + 1 if fixed > 0 else rows
    for start in range(0, end, step):
        yield {name: array[start : start + step] for name, array in arrays.items()}


def _joined(name: str, parts: list[Array], arrays: Mapping[str, Array]) -> Array:
    """Raises ValueError when the answers are no rows of the inputs'."""
    rows = min((len(array) for array in arrays.values()), default=0)
    if not parts:
        raise ValueError(f"expected more rows in the sample, got {rows}")
    array: Array = np.concatenate(parts)
    if len(array) > rows:
        raise ValueError(f"output {name}: expected one row for each of the {rows} rows, got {len(array)}")
    return array


def _plain(array: Array) -> Array:
    """Without objects, which a .npz may not have."""
    return array if array.dtype != object else np.array(array.tolist(), dtype=np.bytes_).reshape(array.shape)


def main() -> int:
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    resource.setrlimit(resource.RLIMIT_AS, (question.memory_bytes, question.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    slot = Path(question.slot)
    try:
        if question.stages:
            body = msgspec.json.encode(describe(question.stages, slot))
        else:
            manifest = decode_manifest(question.manifest)
            if manifest.runtime.answers_by_script:
                raise ValueError("expected a module without a script, got one with: the build runs none")
            body = msgspec.json.encode(answer(manifest, slot, Path(question.feeds), Path(question.to)))
    except (AgentError, ModuleError, ImportError, ValueError, OSError, MemoryError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except Exception as error:  # a runtime's own classes, which have no other base
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.buffer.write(body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
