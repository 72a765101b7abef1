"""Several stages in one worker, each a backend; tensors go from one to the next as they are, without a copy.

Which tensor goes where stands in `modules.chain`. Made by `agent.backends.choice`, inside `agent.backends.steps`, which
gives it the module's tensors and takes what it needs of the results.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from agent.backends import Array, Backend, BackendError
from agent.backends.place import Place
from modules.chain import Wiring, wiring
from modules.execution import StageExecution
from modules.runtime import Stage


class ChainBackend:
    """`stages` with the backend of each, in the order in which they run; checked before (`modules.chain`)."""

    def __init__(self, stages: Sequence[tuple[Stage, Backend]]) -> None:
        self.parallel = 1
        self._stages = tuple(stages)
        self._wired: list[tuple[Stage, Backend, Wiring]] = []
        self._running: dict[int, Backend] = {}  # by thread
        self._ended: set[int] = set()

    def load(self, stage: Stage, place: Place) -> None:
        """Loads the stages, whatever `stage` says of the whole. Raises BackendError, with the stage's name."""
        for one, backend in self._stages:
            try:
                backend.load(one, place)
            except BackendError as error:
                raise BackendError(error.key, _told(one, error, len(self._stages))) from error
            self._wired.append((one, backend, wiring(one)))
        self.parallel = min(backend.parallel for _, backend in self._stages)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Every tensor that a stage gave, by its name and by `stage.output`. Raises BackendError."""
        tensors = dict(inputs)
        found: dict[str, Array] = {}
        thread = threading.get_ident()
        try:
            for stage, backend, wired in self._wired:
                self._running[thread] = backend
                if thread in self._ended:
                    raise BackendError("run-failed", f"the prediction was ended before stage {stage.name}")
                outputs = self._run(stage, backend, {name: tensors[source] for name, source in wired})
                for name, array in outputs.items():
                    tensors[name] = tensors[f"{stage.name}.{name}"] = array
                    found[name] = found[f"{stage.name}.{name}"] = array
        finally:
            self._running.pop(thread, None)
            self._ended.discard(thread)
        return found

    def interrupt(self, thread: int) -> bool:
        """Ends the stage that the thread is in, and with it the chain."""
        backend = self._running.get(thread)
        if backend is None:
            return True  # it has ended meanwhile
        self._ended.add(thread)
        return backend.interrupt(thread)

    def execution(self) -> tuple[StageExecution, ...]:
        return tuple(one for _, backend in self._stages for one in backend.execution())

    def close(self) -> None:
        for _, backend in self._stages:
            backend.close()

    def _run(self, stage: Stage, backend: Backend, inputs: dict[str, Array]) -> dict[str, Array]:
        try:
            return backend.run(inputs)
        except BackendError as error:
            raise BackendError(error.key, _told(stage, error, len(self._stages))) from error


def _told(stage: Stage, error: BackendError, stages: int) -> str:
    return f"stage {stage.name}: {error}" if stages > 1 else str(error)
