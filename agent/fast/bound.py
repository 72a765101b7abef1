"""A form of request that the backend runs in the client's memory itself: nothing is converted, and little is touched.

For small tensors of numbers that are no indices (see `plan`). Client and worker take turns on one processor, and each
turn begins with cold caches: what counts is how much code and memory a request passes through, not how quick that is
when run in a loop. So what the watch needs is taken as one piece of bytes, and made arrays of later. Made by `seat`.
"""

from __future__ import annotations

import functools
import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from agent.backends import Array, BackendError, Binds
from agent.endpoint.codec import DTYPES
from agent.endpoint.recorder import Prediction, Together, Unread
from agent.fast.plan import INDICES, SMALL_BYTES, Plan
from agent.fast.wire import Placed, layout
from modules.manifest import Manifest
from modules.tensors import TensorSpec

_FEW = 64  # numbers that Python adds up sooner than NumPy does
_CODES: dict[str, Literal["f", "d"]] = {"<f4": "f", "<f8": "d"}


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
        specs = [*self._inputs_at, *self._outputs_at]
        self._single = all(spec.shape[:1] == (-1,) and placed.shape[0] == 1 for spec, placed in specs)
        self._totals = [_total_of(view.reshape(-1)) for name, view in plan.views.items() if name in not_missing]

    def run(self, _: Mapping[str, Array]) -> dict[str, Array]:
        """Raises BackendError."""
        self._bound()
        return {}

    def may_be_missing(self) -> bool:
        """Whether some number that must be there may be none: a sum with NaN is NaN."""
        for total_of in self._totals:
            total = total_of()
            if total != total:
                return True
        return False

    def seen(self, id_: bytes, event_s: float) -> Unread:
        """What is in the area now."""
        return Unread(self, id_, self._area[: self._end], event_s)

    def read(self, unread: Sequence[Unread]) -> Together | list[Prediction]:
        """Of single rows, one block for all."""
        if not self._single:
            return [self._prediction(one) for one in unread]
        block = np.frombuffer(b"".join(one.data for one in unread), np.uint8).reshape(len(unread), self._end)
        inputs = {spec.name: _rows(block, spec, placed) for spec, placed in self._inputs_at}
        outputs = {spec.name: _rows(block, spec, placed) for spec, placed in self._outputs_at}
        events = [one.event_s for one in unread]
        ids = [one.id.decode() for one in unread]
        return Together(ids, [1] * len(unread), inputs, outputs, events if any(events) else ())

    def _prediction(self, one: Unread) -> Prediction:
        inputs = {spec.name: _array(one.data, spec, placed) for spec, placed in self._inputs_at}
        outputs = {spec.name: _array(one.data, spec, placed) for spec, placed in self._outputs_at}
        return Prediction(one.id.decode(), self.rows, inputs, outputs, one.event_s)


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


def _total_of(numbers: Array) -> Callable[[], Any]:
    code = _CODES.get(numbers.dtype.str)
    if code is not None and len(numbers) <= _FEW:
        return functools.partial(sum, numbers.data.cast("B").cast(code))
    return functools.partial(numbers.dot, numbers)  # of squares


def _rows(block: Array, spec: TensorSpec, placed: Placed) -> Array:
    cells = np.ascontiguousarray(block[:, placed.offset : placed.offset + placed.size])
    array: Array = cells.view(DTYPES[spec.datatype])
    return array.reshape(len(block), *placed.shape[1:])


def _array(data: bytes, spec: TensorSpec, placed: Placed) -> Array:
    array: Array = np.frombuffer(data, DTYPES[spec.datatype], math.prod(placed.shape), placed.offset)
    return array.reshape(placed.shape)
