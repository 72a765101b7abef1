"""A backend around a backend: the manifest's steps before and after it, in NumPy. `modules.steps` has their meaning.

What cannot be done to an input is the caller's fault (bad-input), what cannot be done to an output is the model's
(run-failed). Arrays given are never written to. Made by `agent.backends.choice`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from agent.backends import Array, Backend, BackendError
from agent.backends.place import Place
from agent.backends.steps.pictures import opencv
from agent.backends.steps.prepared import Compute, prepared
from modules.chain import after_stages, largest_bytes
from modules.errors import ModuleError
from modules.execution import StageExecution
from modules.runtime import Stage
from modules.steps import Decode, Step, flow
from modules.steps.specs import Specs, row_bytes

Prepare = Callable[[Step, Specs], Compute]


class StepsBackend:
    """`load` is told the module's own tensors; `stages` are those that `inner` runs."""

    def __init__(
        self, inner: Backend, stages: Sequence[Stage], before: Sequence[Step], after: Sequence[Step], memory_mib: int
    ) -> None:
        """Raises BackendError when a library that a step needs is missing: afterwards it could not be imported."""
        self.parallel = 1
        self._inner = inner
        self._stages = tuple(stages)
        self._steps = tuple(before), tuple(after)
        self._limit = largest_bytes(memory_mib)
        self._before: list[Compute] = []
        self._after: list[Compute] = []
        self._row_bytes = 0
        self._rows_of = ""
        self._outputs: tuple[str, ...] = ()
        if any(isinstance(step, Decode) for step in before):
            opencv()

    def load(self, stage: Stage, place: Place) -> None:
        """Raises BackendError("load-failed")."""
        try:
            given: Specs = {spec.name: spec for spec in stage.inputs}
            ready = self._prepare(self._steps[0], given, place, self._before)
            found = after_stages(self._stages, ready)
            self._prepare(self._steps[1], found, place, self._after)
        except (ModuleError, OSError, ValueError) as error:
            raise BackendError("load-failed", str(error)) from error
        self._outputs = tuple(spec.name for spec in stage.outputs)
        self._rows_of = next((spec.name for spec in stage.inputs if spec.shape[:1] == (-1,)), "")
        self._inner.load(stage, place)
        self.parallel = self._inner.parallel

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises BackendError."""
        tensors = dict(inputs)
        rows = len(inputs[self._rows_of]) if self._rows_of else 1
        if rows * self._row_bytes > self._limit:
            most = self._limit // self._row_bytes
            raise BackendError("bad-input", f"expected at most {most} rows, the memory's share of a step, got {rows}")
        _done(self._before, tensors, "bad-input")
        tensors.update(self._inner.run(tensors))
        _done(self._after, tensors, "run-failed")
        return {name: tensors[name] for name in self._outputs}

    def interrupt(self, thread: int) -> bool:
        return self._inner.interrupt(thread)

    def execution(self) -> tuple[StageExecution, ...]:
        return self._inner.execution()

    def close(self) -> None:
        self._inner.close()

    def _prepare(self, steps: Sequence[Step], have: Specs, place: Place, into: list[Compute]) -> Specs:
        for step in steps:
            into.append(prepared(step, have, place.slot, self._limit))
            self._row_bytes = max(self._row_bytes, *map(row_bytes, step.gives(have)))
            have = flow((step,), have, self._limit)
        return have


def _done(steps: Sequence[Compute], tensors: dict[str, Array], key: str) -> None:
    try:
        with np.errstate(all="ignore"):
            for step in steps:
                step(tensors)
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise BackendError(key, f"a step of the manifest failed: {error}"[:500]) from error
    except MemoryError as error:
        raise BackendError("out-of-memory", "a step of the manifest needs more memory than the module has") from error
