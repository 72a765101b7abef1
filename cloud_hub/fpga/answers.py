"""What the emulation answers to the publisher's data: the golden answers of the module, and how far they are from the
model's own. Called by the child.

The hub runs no native code of anybody's, as it runs no scripts: these answers travel beside their inputs in an .npz
that `mooring module build` takes as training sample and golden inputs. Board and emulation must agree to the last bit.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cloud_hub.fpga.request import FpgaBuilt, FpgaError
from cloud_hub.probe_data import Array, read_arrays
from modules.emulation import EmulationLibrary

if TYPE_CHECKING:
    from cloud_hub.fpga.convert import Project


def record(project: Project, library: Path, data: Path, target: Path) -> FpgaBuilt:
    """Writes inputs and answers by tensor name. Raises FpgaError("fpga-data") and OverlayError."""
    try:
        given = read_arrays(data, (project.input.spec,)).arrays[project.input.name]
    except (ValueError, OSError) as error:
        raise FpgaError("fpga-data", f"{data.name}: {error}") from error
    given = np.ascontiguousarray(given, dtype=np.float32)
    if not np.isfinite(given).all():
        raise FpgaError("fpga-data", f"{data.name}: expected finite numbers, a circuit has no others")
    answered = _emulated(project, library, given)
    named: dict[str, Any] = {project.input.name: given, project.output.name: answered}  # savez has a bool among them
    with target.open("wb") as file:
        np.savez(file, **named)
    agreement, worst = _against_float(project, given, answered)
    return FpgaBuilt((), rows=len(given), agreement=agreement, worst=worst)


def _emulated(project: Project, library: Path, given: Array) -> Array:
    opened = EmulationLibrary(library, platform.machine(), project.input.row, project.output.row)
    answered = np.empty((len(given), *project.output.shape[1:]), np.float32)
    opened.run(given.ctypes.data, answered.ctypes.data, len(given))
    return answered


def _against_float(project: Project, given: Array, answered: Array) -> tuple[float, float]:
    """The share of rows with the same largest output, and the largest difference; (1, 0) where nobody can be asked."""
    if project.float_model is None:
        return 1.0, 0.0
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(project.float_model), providers=["CPUExecutionProvider"])
        (expected,) = session.run([project.output.name], {project.input.name: given})
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise FpgaError("fpga-model", f"{project.float_model.name} does not run: {error}"[:500]) from error
    flat, float_flat = answered.reshape(len(given), -1), np.asarray(expected).reshape(len(given), -1)
    same = (flat.argmax(1) == float_flat.argmax(1)).mean()
    return float(same), float(np.abs(flat - float_flat).max(initial=0.0))
