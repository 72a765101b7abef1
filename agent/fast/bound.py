"""A form of request that the backend runs in the client's memory itself: nothing is converted, and little is touched.

For small tensors of numbers that are no indices (see `plan`). Client and worker take turns on one processor, and each
turn begins with cold caches: what counts is how much code and memory a request passes through, not how quick that is
when run in a loop. So what the watch needs is taken as one piece of bytes, and made arrays of later. Made by `seat`.
"""

from __future__ import annotations

import functools
import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from agent.backends import Array, BackendError, Binds
from agent.endpoint.codec import DTYPES
from agent.endpoint.recorder import Prediction
from agent.fast.plan import INDICES, SMALL_BYTES, Plan
from agent.fast.wire import Placed, layout
from modules.manifest import Manifest
from modules.tensors import TensorSpec

_FEW = 64  # elements that Python adds up sooner than NumPy does


class BoundPlan:
    """`run` is what `Predictor.run_here` takes in place of the backend's own; `inputs` are views of the area."""

    def __init__(self, plan: Plan, area: mmap.mmap, bound: Callable[[], None], not_missing: frozenset[str]) -> None:
        self.rows = plan.rows
        self.inputs = plan.views
        self.layout = layout(plan.outputs_at)
        self._bound = bound
        self._area = area
        self._inputs_at = plan.inputs_at
        self._outputs_at = [(spec, placed) for (_, spec), placed in zip(plan.outputs, plan.outputs_at, strict=True)]
        self._end = _end(plan)
        self._complete = [_numbers(view) for name, view in plan.views.items() if name in not_missing]

    def run(self, _: Mapping[str, Array]) -> dict[str, Array]:
        """Raises BackendError."""
        self._bound()
        return {}

    def may_be_missing(self) -> bool:
        """Whether some number that must be there may be none: NaN stays NaN in every sum."""
        return any((total := sum(numbers)) != total for numbers in self._complete)

    def seen(self, id_: bytes) -> Callable[[], Prediction]:
        """What is in the area now, to be looked at later."""
        return functools.partial(self._prediction, id_, self._area[: self._end])

    def _prediction(self, id_: bytes, data: bytes) -> Prediction:
        inputs = {spec.name: _array(data, spec, placed) for spec, placed in self._inputs_at}
        outputs = {spec.name: _array(data, spec, placed) for spec, placed in self._outputs_at}
        return Prediction(id_.decode(), self.rows, inputs, outputs)


def bind(
    plan: Plan, manifest: Manifest, area: mmap.mmap, backend: Binds, not_missing: frozenset[str]
) -> BoundPlan | None:
    """After a first run, which has told the outputs' shapes; None where this request is to be run as any other."""
    kinds = {spec.datatype for spec in (*manifest.inputs, *manifest.outputs)}
    if kinds & INDICES or len(plan.outputs) != len(manifest.outputs) or not plan.targets or _end(plan) > SMALL_BYTES:
        return None
    outputs = {spec.name: target for (_, spec), target in zip(plan.outputs, plan.targets, strict=True)}
    try:
        bound = backend.bind(plan.views, outputs)
    except BackendError:
        return None
    return None if bound is None else BoundPlan(plan, area, bound, not_missing)


def _end(plan: Plan) -> int:
    return max(placed.offset + placed.size for placed in plan.outputs_at)


def _numbers(view: Array) -> Iterable[float]:
    if view.size <= _FEW and view.dtype.itemsize > 2 and view.dtype.kind == "f":
        return view.reshape(-1).data.cast("B").cast("f" if view.dtype.itemsize == 4 else "d")
    return _Sum(view)


class _Sum:
    """Many numbers as one: their sum."""

    def __init__(self, view: Array) -> None:
        self._view = view

    def __iter__(self) -> Iterator[float]:
        with np.errstate(all="ignore"):
            yield float(self._view.sum())


def _array(data: bytes, spec: TensorSpec, placed: Placed) -> Array:
    array: Array = np.frombuffer(data, DTYPES[spec.datatype], math.prod(placed.shape), placed.offset)
    return array.reshape(placed.shape)
