"""Look at a model in a process of its own: does it load, what goes in and out, what does it answer.

Model files come from outside, so the hub never loads one itself: the parent side (`probe`) runs this file as a child
with a memory limit and a deadline and reads back files that the child wrote. The child side (`main`) checks the ONNX
file, reads the training sample and the golden inputs (NumPy .npz without pickles, or .csv), runs the model on them,
and writes the golden set and the reference profile. Called by `packaging`.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from cloud_hub.errors import Unprocessable
from modules.errors import ModuleError
from modules.tensors import ONNX_TYPES, TensorSpec

if TYPE_CHECKING:
    import onnxruntime

    from cloud_hub.probe_data import Arrays  # NumPy: only the child has it

DEADLINE_S = 300.0
MEMORY_BYTES = 8 * 1024**3
GOLDEN_ROWS = 8  # rows of the training sample that become golden inputs where none were given
BATCH_ROWS = 1024
MAX_FAILURE_TEXT = 2000


class ProbeRequest(msgspec.Struct, frozen=True):
    """What the child reads: paths of local files, empty where there is none, and labels by tensor name.

    Without a model (entry scripts), `inputs` and `outputs` are as declared and the answers stand in the files.
    """

    model: str
    training: str
    golden: str
    output_folder: str
    labels: dict[str, tuple[str, ...]] = {}
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


class ProbeResult(msgspec.Struct, frozen=True):
    """What the model takes and gives. `golden` and `reference` say whether those files were written."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden: bool
    reference: bool
    golden_cases: int = 0
    reference_rows: int = 0


async def probe(request: ProbeRequest) -> ProbeResult:
    """Raises Unprocessable (`model-refused`) with the child's words when the model or its data do not fit."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cloud_hub.model_probe",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(),
    )
    try:
        out, err = await asyncio.wait_for(child.communicate(msgspec.json.encode(request)), DEADLINE_S)
    except TimeoutError as error:
        raise Unprocessable("model-refused", f"the model was not ready after {DEADLINE_S:.0f} s") from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        text = err.decode(errors="replace").strip()[-MAX_FAILURE_TEXT:]
        raise Unprocessable("model-refused", text or f"the model's process ended with status {child.returncode}")
    return msgspec.json.decode(out, type=ProbeResult)


def _environment() -> dict[str, str]:
    """No secrets of the hub reach the child, and ONNX Runtime sends nothing home."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    return keep | {"ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}


# --- the child ------------------------------------------------------------------------------------------------


def main() -> int:
    """Exit status 0 with a ProbeResult on standard output, or 1 with one plain sentence on standard error."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=ProbeRequest)
    try:
        result = _inspect(request)
    except (ModuleError, ValueError, RuntimeError, OSError, MemoryError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(result))
    return 0


def _inspect(request: ProbeRequest) -> ProbeResult:
    from cloud_hub.probe_data import read_arrays

    model = _open(request.model, request.labels) if request.model else Declared(request.inputs, request.outputs)
    training = read_arrays(Path(request.training), model.inputs, model.recorded) if request.training else None
    inputs = tuple(_with_labels(spec, training.columns if training else {}) for spec in model.inputs)
    golden = read_arrays(Path(request.golden), inputs, model.recorded) if request.golden else training
    if golden is None:
        raise ValueError("expected a training sample or golden inputs, got neither")
    folder = Path(request.output_folder)
    cases = _write_golden(folder, model, golden if request.golden else golden.head(GOLDEN_ROWS))
    rows = _write_reference(folder, model, training, inputs) if training else 0
    return ProbeResult(inputs, model.outputs, cases > 0, rows > 0, cases, rows)


class Model(Protocol):
    """Something that answers: `recorded` are the outputs whose answers are read from the file instead of computed."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    recorded: tuple[TensorSpec, ...]
    fixed_rows: int  # 0: any number

    def answer(self, feeds: Mapping[str, Any]) -> dict[str, Any]: ...


class Declared:
    """An entry script, as its publisher describes it: the answers stand beside the inputs."""

    fixed_rows = 0

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs = inputs
        self.outputs = self.recorded = outputs

    def answer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {spec.name: feeds[spec.name] for spec in self.outputs}


class Loaded:
    """An ONNX model in ONNX Runtime."""

    recorded: tuple[TensorSpec, ...] = ()

    def __init__(self, session: onnxruntime.InferenceSession, labels: Mapping[str, tuple[str, ...]]) -> None:
        self._session = session
        self.inputs = tuple(_spec(value, labels) for value in session.get_inputs())
        self.outputs = tuple(_spec(value, labels) for value in session.get_outputs())
        self.fixed_rows = max((spec.shape[0] for spec in self.inputs if spec.shape), default=0)

    def answer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        answers = self._session.run(None, dict(feeds))
        return dict(zip((spec.name for spec in self.outputs), answers, strict=True))


def _open(path: str, labels: Mapping[str, tuple[str, ...]]) -> Loaded:
    """The model in ONNX Runtime on the CPU, after the ONNX checker has passed it."""
    import onnx
    import onnxruntime

    try:
        onnx.checker.check_model(path)
    except Exception as error:  # the checker raises types of its own and protobuf's
        raise ValueError(f"{Path(path).name} is not a valid ONNX model: {error}") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
        raise ValueError(f"{Path(path).name} does not load in ONNX Runtime: {error}") from error
    return Loaded(session, labels)


def _spec(value: onnxruntime.NodeArg, labels: Mapping[str, tuple[str, ...]]) -> TensorSpec:
    """A TensorSpec from ONNX Runtime's NodeArg; named and unknown dimensions become -1."""
    if value.type not in ONNX_TYPES:
        raise ValueError(f"{value.name}: expected a tensor, got {value.type} (for scikit-learn convert without ZipMap)")
    shape = tuple(size if isinstance(size, int) and size > 0 else -1 for size in value.shape)
    return TensorSpec(value.name, ONNX_TYPES[value.type], shape, tuple(labels.get(value.name, ())))


def _with_labels(spec: TensorSpec, columns: Mapping[str, tuple[str, ...]]) -> TensorSpec:
    """Column names of a CSV become the labels of the input, unless labels were given."""
    if spec.labels or spec.name not in columns:
        return spec
    return TensorSpec(spec.name, spec.datatype, spec.shape, columns[spec.name])


def _write_golden(folder: Path, model: Model, golden: Arrays) -> int:
    """One case per row of the golden inputs, with what the model answers. Returns the number of cases."""
    from cloud_hub.probe_data import to_tensor
    from modules.tensors import GoldenCase, GoldenSet, encode_golden

    cases = []
    for feeds in _batches(model, golden, 1):
        answers = model.answer(feeds)
        inputs = tuple(to_tensor(spec.name, feeds[spec.name]) for spec in model.inputs)
        cases.append(GoldenCase(inputs, tuple(to_tensor(name, array) for name, array in answers.items())))
    if cases:
        (folder / "golden.msgpack").write_bytes(encode_golden(GoldenSet(tuple(cases))))
    return len(cases)


def _write_reference(folder: Path, model: Model, training: Arrays, inputs: tuple[TensorSpec, ...]) -> int:
    """The reference profile of the training sample and of the model's answers to it. Returns the number of rows."""
    import numpy as np

    from cloud_hub.reference import profile_training
    from modules.windows import encode_reference

    answers = [model.answer(feeds) for feeds in _batches(model, training, BATCH_ROWS)]
    if not answers:
        raise ValueError(f"expected at least {model.fixed_rows} rows in the training sample, got {training.rows}")
    joined = {spec.name: np.concatenate([answer[spec.name] for answer in answers]) for spec in model.outputs}
    rows = min(len(array) for array in joined.values())
    seen = {spec.name: training.arrays[spec.name][:rows] for spec in inputs}
    (folder / "reference.json").write_bytes(encode_reference(profile_training(seen, joined, inputs, model.outputs)))
    return rows


def _batches(model: Model, data: Arrays, rows: int) -> Iterator[dict[str, Any]]:
    """Slices of `rows` rows, or of as many as a model with a fixed first dimension takes; there, a rest is left out."""
    step = model.fixed_rows if model.fixed_rows > 0 else rows
    end = data.rows - step + 1 if model.fixed_rows > 0 else data.rows
    for start in range(0, end, step):
        yield {name: array[start : start + step] for name, array in data.arrays.items()}


if __name__ == "__main__":
    sys.exit(main())
