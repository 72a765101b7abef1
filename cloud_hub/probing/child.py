"""The child process that looks at a model: `python -m cloud_hub.probing.child`, a ProbeRequest on standard input.

Checks the file, reads the training sample and the golden inputs (NumPy .npz without pickles, or .csv), runs the model
on them, and writes the golden set and the reference profile. Started by `probe`.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cloud_hub.probe_data import read_arrays
from cloud_hub.probing.models import Declared
from cloud_hub.probing.onnx_model import open_onnx
from cloud_hub.probing.process import MEMORY_BYTES
from cloud_hub.probing.request import ProbeRequest, ProbeResult
from cloud_hub.probing.written import write_golden, write_reference
from modules.errors import ModuleError
from modules.tensors import TensorSpec

GOLDEN_ROWS = 8  # rows of the training sample that become golden inputs where none were given


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
    model = open_onnx(request.model, request.labels) if request.model else Declared(request.inputs, request.outputs)
    training = read_arrays(Path(request.training), model.inputs, model.recorded) if request.training else None
    inputs = tuple(_with_labels(spec, training.columns if training else {}) for spec in model.inputs)
    golden = read_arrays(Path(request.golden), inputs, model.recorded) if request.golden else training
    if golden is None:
        raise ValueError("expected a training sample or golden inputs, got neither")
    folder = Path(request.output_folder)
    cases = write_golden(folder, model, golden if request.golden else golden.head(GOLDEN_ROWS))
    if not training:
        return ProbeResult(inputs, model.outputs, cases > 0, False, cases)
    reference = write_reference(folder, model, training, inputs)
    return ProbeResult(inputs, model.outputs, cases > 0, True, cases, reference.rows, reference.is_plain)


def _with_labels(spec: TensorSpec, columns: Mapping[str, tuple[str, ...]]) -> TensorSpec:
    """Column names of a CSV become the labels of the input, unless labels were given."""
    if spec.labels or spec.name not in columns:
        return spec
    return TensorSpec(spec.name, spec.datatype, spec.shape, columns[spec.name])


if __name__ == "__main__":
    sys.exit(main())
