"""A module's entry script (contract: `modules.entry`). Called in the worker, after confinement.

The script is untrusted text: whatever it raises, returns or prints becomes an answer or a BackendError, and nothing
it does to its arrays reaches what was profiled. One call at a time, because scripts are rarely thread-safe.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from agent.backends import Array, BackendError
from agent.backends.place import Place
from agent.endpoint.codec import DTYPES
from modules.entry import INIT, MODEL_DIR, PREDICT, RUN, EntryError, check_names, run_result, run_text
from modules.execution import Execution
from modules.runtime import Stage
from modules.tensors import TensorSpec

_MODULE = "mooring_entry"


class ScriptBackend:
    """One script, loaded and initialised."""

    def __init__(self) -> None:
        self.parallel = 1
        self._path = ""
        self._outputs: tuple[TensorSpec, ...] = ()
        self._predict: Callable[[dict[str, Array]], object] | None = None
        self._run: Callable[[str], object] | None = None

    def load(self, stage: Stage, place: Place) -> None:
        """Imports the script and calls its init(). Raises BackendError("load-failed")."""
        self._path = stage.entry or stage.model
        self._outputs = stage.outputs
        os.environ[MODEL_DIR] = str(place.slot)
        script = _imported(place.slot / self._path)
        try:
            check_names({name for name in (INIT, RUN, PREDICT) if callable(getattr(script, name, None))}, self._path)
        except EntryError as error:
            raise BackendError("load-failed", str(error)) from error
        self._predict = getattr(script, PREDICT, None)
        self._run = getattr(script, RUN, None)
        try:
            script.init()
        except (Exception, SystemExit) as error:
            raise BackendError("load-failed", f"{self._path}: init() raised {_said(error)}") from error

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises BackendError("run-failed")."""
        try:
            if self._predict is not None:
                # The script's own copies: it may write to them, and ours are profiled afterwards.
                result = self._predict({name: array.copy() for name, array in inputs.items()})
            else:
                assert self._run is not None  # noqa: S101 - load made sure
                result = self._run(run_text({name: _lists(array) for name, array in inputs.items()}))
            values = run_result(result, [spec.name for spec in self._outputs])
            return {spec.name: _array(spec, values[spec.name]) for spec in self._outputs}
        except EntryError as error:
            raise BackendError("run-failed", str(error)) from error
        except (Exception, SystemExit) as error:
            raise BackendError("run-failed", f"{self._path} raised {_said(error)}") from error

    def interrupt(self, thread: int) -> bool:
        """Python code cannot be ended from outside: the worker is."""
        return False

    def execution(self) -> tuple[Execution, ...]:
        called = PREDICT if self._predict is not None else RUN
        return (Execution("script", note=f"{self._path}, {called}()"),)

    def close(self) -> None:
        self._predict = self._run = None


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
    except (Exception, SystemExit) as error:
        raise BackendError("load-failed", f"{path.name} raised {_said(error)} when imported") from error
    return script


def _lists(array: Array) -> list[Any]:
    if array.dtype == object:
        texts = [item.decode(errors="replace") for item in array.ravel()]
        array = np.array(texts, object).reshape(array.shape)
    lists: list[Any] = array.tolist()
    return lists


def _array(spec: TensorSpec, value: object) -> Array:
    """The script's value as the array that the manifest promises, owned by us. Raises ValueError or TypeError."""
    if spec.datatype == "BYTES":
        nested = np.array(value, dtype=object)
        flat = np.empty(nested.size, dtype=object)
        flat[:] = [item if isinstance(item, bytes) else str(item).encode() for item in nested.ravel()]
        array: Array = flat.reshape(nested.shape)
    else:
        array = np.array(value, dtype=DTYPES[spec.datatype], order="C")
    fits = len(array.shape) == len(spec.shape)
    if not fits or any(want not in (-1, have) for want, have in zip(spec.shape, array.shape, strict=True)):
        raise ValueError(f"output {spec.name}: expected shape {list(spec.shape)}, got {list(array.shape)}")
    return array


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]
