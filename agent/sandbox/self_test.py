"""Runs a module's golden inputs and compares what comes out. Called by the worker's session, before it serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from agent.backends import Array
from agent.endpoint.codec import FLOATS, from_tensor
from agent.errors import WorkerError
from modules.tensors import GoldenCase, GoldenSet, Tensor

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def check_golden(golden: GoldenSet, run: Run, rtol: float, atol: float) -> float:
    """The largest absolute error over all float outputs.

    Raises WorkerError("golden-mismatch") naming the case and the output; TensorError and BackendError pass.
    """
    return max((_check_case(number, case, run, rtol, atol) for number, case in enumerate(golden.cases)), default=0.0)


def golden_inputs(case: GoldenCase) -> dict[str, Array]:
    """Raises TensorError."""
    return {tensor.name: from_tensor(tensor) for tensor in case.inputs}


def _check_case(number: int, case: GoldenCase, run: Run, rtol: float, atol: float) -> float:
    outputs = run(golden_inputs(case))
    worst = 0.0
    for tensor in case.outputs:
        where = f"golden case {number}, output {tensor.name}"
        got = outputs.get(tensor.name)
        if got is None:
            raise WorkerError(f"{where}: expected it, got {', '.join(outputs)}", "golden-mismatch")
        worst = max(worst, _compare(where, tensor, got, rtol, atol))
    return worst


def _compare(where: str, tensor: Tensor, got: Array, rtol: float, atol: float) -> float:
    expected = from_tensor(tensor)
    if expected.shape != got.shape:
        raise WorkerError(f"{where}: expected shape {list(expected.shape)}, got {list(got.shape)}", "golden-mismatch")
    if tensor.datatype not in FLOATS:
        wrong = np.flatnonzero(np.asarray(expected != got))
        error = 0.0
    else:
        wide_expected, wide_got = expected.astype(np.float64), got.astype(np.float64)
        close = np.isclose(wide_got, wide_expected, rtol=rtol, atol=atol, equal_nan=True)
        wrong = np.flatnonzero(~close)
        difference = np.abs(wide_got - wide_expected)
        error = float(np.nanmax(difference, initial=0.0))
    if wrong.size:
        at = int(wrong[0])
        raise WorkerError(
            f"{where}: expected {expected.flat[at]} at element {at}, got {got.flat[at]} "
            f"({wrong.size} of {got.size} elements differ, rtol {rtol:g}, atol {atol:g})",
            "golden-mismatch",
        )
    return error
