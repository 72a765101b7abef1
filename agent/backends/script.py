"""A module's entry script (contract: `modules.entry`). Called in the worker, after confinement.

The script is untrusted text: whatever it raises, returns or prints becomes an answer or a BackendError, and nothing
it does to its arrays reaches what was profiled. One call at a time, unless it says that it is thread-safe.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from agent.backends import Array, BackendError
from agent.backends.azure_http import offer
from agent.backends.place import Place
from agent.backends.script_answers import answered_value, as_array, lists, score_answer
from agent.backends.script_run import RunCaller, ScoreCall
from modules.entry import (
    INIT,
    MODEL_DIR,
    PREDICT,
    RUN,
    THREAD_SAFE,
    EntryError,
    check_names,
    run_result,
    run_text,
    typed_parameters,
)
from modules.execution import StageExecution
from modules.runtime import Stage
from modules.tensors import TensorSpec

_MODULE = "mooring_entry"
_AS_JSON = (("Content-Type", "application/json"),)


class ScriptBackend:
    """One script, loaded and initialised."""

    def __init__(self) -> None:
        self.parallel = 1
        self._path = ""
        self._outputs: tuple[TensorSpec, ...] = ()
        self._predict: Callable[..., object] | None = None
        self._typed = False
        self._run: RunCaller | None = None

    def load(self, stage: Stage, place: Place) -> None:
        """Imports the script and calls its init(). Raises BackendError("load-failed")."""
        self._path = stage.entry or stage.model
        self._outputs = stage.outputs
        os.environ[MODEL_DIR] = str(place.slot)
        offer()
        script = _imported(place.slot / self._path)
        try:
            self._take_functions(script, stage, place)
        except EntryError as error:
            raise BackendError("load-failed", str(error)) from error
        try:
            script.init()
        except BaseException as error:
            raise BackendError("load-failed", f"{self._path}: init() raised {_said(error)}") from error

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays in and out; of a ScoreCall, its answer instead. Raises BackendError (run-failed, bad-input)."""
        try:
            if isinstance(inputs, ScoreCall):
                inputs.answer = score_answer(self._ran(inputs))
                return {}
            values = self._values(inputs)
            return {spec.name: as_array(spec, values[spec.name]) for spec in self._outputs}
        except BackendError:
            raise
        except EntryError as error:
            raise BackendError("run-failed", str(error)) from error
        except BaseException as error:
            raise BackendError("run-failed", f"{self._path} raised {_said(error)}") from error

    def interrupt(self, thread: int) -> bool:
        """Python code cannot be ended from outside: the worker is."""
        return False

    def execution(self) -> tuple[StageExecution, ...]:
        called = f"{PREDICT}()" if self._run is None or self._predict is not None else self._run.form
        return (StageExecution("script", note=f"{self._path}, {called}"),)

    def close(self) -> None:
        self._predict = self._run = None

    @property
    def scores(self) -> bool:
        """Whether it takes requests as they come (`/score`)."""
        return self._run is not None

    def _take_functions(self, script: ModuleType, stage: Stage, place: Place) -> None:
        names = {name for name in (INIT, RUN, PREDICT) if callable(getattr(script, name, None))}
        check_names(names, self._path)
        self._predict = script.predict if PREDICT in names else None
        self._run = RunCaller(script.run, self._path) if RUN in names else None
        if self._predict is not None:
            self._typed = typed_parameters(self._predict, [spec.name for spec in stage.inputs], self._path)
        self.parallel = _threads(script, place, self._path)

    def _values(self, inputs: Mapping[str, Array]) -> Mapping[str, object]:
        names = [spec.name for spec in self._outputs]
        if self._predict is None:
            text = run_text({name: lists(array) for name, array in inputs.items()})
            call = ScoreCall(text.encode(), headers=_AS_JSON)
            return run_result(answered_value(self._ran(call)), names)
        # The script's own copies: it may write to them, and ours are profiled afterwards.
        copies = {name: array.copy() for name, array in inputs.items()}
        result = self._predict(**copies) if self._typed else self._predict(copies)
        if isinstance(result, tuple) and self._typed and len(result) == len(names):
            return dict(zip(names, result, strict=True))
        return run_result(result, names)

    def _ran(self, call: ScoreCall) -> object:
        if self._run is None:
            raise EntryError(f"{self._path}: expected a function run for this, got predict alone")
        return self._run(call)


def _threads(script: ModuleType, place: Place, path: str) -> int:
    """How many calls at once. Interpreters of their own would each need NumPy's, which there is once per process."""
    if getattr(script, THREAD_SAFE, False) is True:
        return max(1, place.parallel)
    if place.parallel > 1:
        raise EntryError(
            f"{path}: expected {THREAD_SAFE} = True in a script that shall run {place.parallel} calls at once "
            "(runtime.instances)"
        )
    return 1


def _imported(path: Path) -> ModuleType:
    """The script as a module; files beside it can be imported by it."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise BackendError("load-failed", f"{path.name}: expected a Python file")
    script = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = script
    try:
        spec.loader.exec_module(script)
    except BaseException as error:
        raise BackendError("load-failed", f"{path.name} raised {_said(error)} when imported") from error
    return script


def _said(error: BaseException) -> str:
    """Never raises: the words are the script's own, too."""
    try:
        text = str(error)
    except BaseException:
        text = "an exception that cannot say what it is"
    return f"{type(error).__name__}: {text}"[:500]
