"""Runs a module's golden inputs and compares what comes out. Called by the worker's session, before it serves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from agent.backends import Array
from agent.endpoint.codec import FLOATS, from_tensor
from agent.errors import WorkerError
from modules.tensors import GoldenCase, GoldenSet, Tensor

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def check_golden(golden: GoldenSet, run: Run, rtol: float, atol: float, configured: bool = False) -> float:
    """The largest absolute error over all float outputs.

    Known answers are those without a configuration. One may be there to change them: `configured`, a module has to
    answer every case with every output, and their values are its own affair. Raises WorkerError("golden-mismatch")
    naming the case and the output; TensorError and BackendError pass.
    """
    worst = 0.0
    for number, case in enumerate(golden.cases):
        check = _compare_form if configured else functools.partial(_compare, rtol=rtol, atol=atol)
        worst = max(worst, _check_case(number, case, run, check))
    return worst


def golden_inputs(case: GoldenCase) -> dict[str, Array]:
    """Raises TensorError."""
    return {tensor.name: from_tensor(tensor) for tensor in case.inputs}


def _check_case(number: int, case: GoldenCase, run: Run, check: Callable[[str, Tensor, Array], float]) -> float:
    outputs = run(golden_inputs(case))
    worst = 0.0
    for tensor in case.outputs:
        where = f"golden case {number}, output {tensor.name}"
        got = outputs.get(tensor.name)
        if got is None:
            raise WorkerError(f"{where}: expected it, got {', '.join(outputs)}", "golden-mismatch")
        worst = max(worst, check(where, tensor, got))
    return worst


def _compare_form(where: str, tensor: Tensor, got: Array) -> float:
    if len(tensor.shape) != got.ndim:
        text = f"{where}: expected {len(tensor.shape)} dimensions, got {got.ndim}"
        raise WorkerError(text, "golden-mismatch")
    return 0.0


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
