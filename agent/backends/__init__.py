"""How a module's model is executed: the contract of a backend, its error, and the choice of one.

Lives in the worker process only. A backend loads one module from its slot and answers one call at a time per thread;
`parallel` says how many threads may call `run` at once. The libraries a backend needs are imported by its own file,
and only when the module asks for that backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from agent.backends.place import Place
from agent.errors import AgentError
from modules.execution import StageExecution
from modules.runtime import Stage

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]  # any datatype of the protocol; BYTES is an object array of bytes


class BackendError(AgentError):
    """A backend could not load or run. Keys: load-failed, out-of-memory, bad-input (the caller's fault),
    run-failed (ours).
    """

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text, key)


Bound: TypeAlias = Callable[[], None]  # one run, from and into the arrays that were bound


class Backend(Protocol):
    """What executes one stage of a module.

    `load` is called once, after confinement, and raises BackendError when the files do not fit the stage. `run`
    gets every input of the stage with its datatype, and returns every output of the stage; it raises
    BackendError and nothing else, and keeps no reference to what it returned. `interrupt` is called from another thread
    to end the run that `thread` (its ident) is in, and says whether that can be hoped for; if not, the worker ends.
    `execution` says, after `load`, what runs where: a wish that was not met is told there or is an error, never silent.
    `close` may be called at any time after.
    """

    parallel: int

    def load(self, stage: Stage, place: Place) -> None: ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]: ...

    def interrupt(self, thread: int) -> bool: ...

    def execution(self) -> tuple[StageExecution, ...]: ...

    def close(self) -> None: ...


@runtime_checkable
class Binds(Protocol):
    """A backend that can also run between arrays of the caller's own, as those in shared memory: without a copy.

    Ask with `isinstance(backend, Binds)`, once per set of arrays, and call the result for every run: making a binding
    costs more than it saves. None where these arrays cannot be bound (text, not contiguous, an output whose shape the
    model decides): then there is `run`. Inputs are read, outputs written, while the result runs; it may be called by
    one thread at a time, under the same `parallel` and `interrupt` as `run`, and raises BackendError as `run` does.
    """

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Bound | None: ...


@runtime_checkable
class Prepares(Protocol):
    """A backend that has something to do before its worker is confined: to try, in a process of its own, a library
    that the device has installed. It must not touch the module's files then. Called once, before `load`.
    """

    def prepare(self, stage: Stage) -> None: ...
