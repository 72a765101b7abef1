"""Rows of several requests one below the other, and apart again. Pure; called by `predictor` and `resources`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from agent.backends import Array
from modules.execution import StageExecution
from modules.manifest import Manifest
from modules.tensors import TensorSpec

_TENSORRT = "TensorrtExecutionProvider"


def has_rows(manifest: Manifest) -> bool:
    """Whether every tensor has a free first size. A script is called once for each request, as its author expects."""
    specs = manifest.inputs + manifest.outputs
    return not manifest.runtime.answers_by_script and bool(manifest.inputs) and all(map(_in_rows, specs))


def built_for_shapes(ran: Iterable[StageExecution], manifest: Manifest) -> bool:
    """Whether a run of more rows than ever would build anew what runs the model: TensorRT takes minutes for that, where
    the module does not name the largest shape.
    """
    on = {name for one in ran for name in one.got}
    providers = [*manifest.runtime.providers, *(one for stage in manifest.runtime.stages for one in stage.providers)]
    return _TENSORRT in on and not any("trt_profile_max_shapes" in one.options for one in providers)


def cut(arrays: Mapping[str, Array], start: int, stop: int) -> dict[str, Array]:
    """These rows of each, as views."""
    return {name: array[start:stop] for name, array in arrays.items()}


def differs(
    whole: Mapping[str, Array], rows: int, row: int, alone: Mapping[str, Array], rtol: float, atol: float
) -> str:
    """In what a row's own answer is not its part of the whole's; empty where it is."""
    for name, array in whole.items():
        if array.shape[:1] != (rows,) or alone[name].shape != (1, *array.shape[1:]):
            return f"output {name}: {rows} rows gave shape {list(array.shape)}"
        one, part = alone[name], array[row : row + 1]
        same = (
            np.allclose(one, part, rtol, atol, equal_nan=True) if array.dtype.kind == "f" else bool((one == part).all())
        )
        if not same:
            return f"output {name}: row {row} has another answer alone"
    return ""


def _in_rows(spec: TensorSpec) -> bool:
    return bool(spec.shape) and spec.shape[0] == -1
