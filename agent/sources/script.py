"""The entry script's own loop as a source: `loop(predict, stop)`, or a generator of inputs. See docs/extend/sources.md.

The script is untrusted: what it yields is checked and copied, what it raises is told, and its loop is started again
after a pause. It runs in this thread, so what it does not give back cannot be taken from it but by ending the worker.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from agent.backends import Array, BackendError
from agent.endpoint.codec import DTYPES
from agent.sources.content import checked, rows_of
from agent.sources.items import Ended, Item, Result
from modules.tensors import TensorSpec

ENTRY = "mooring_entry"  # as the script backend has imported it
OWN = "mooring_loop"
LOOP, ON_RESULT = "loop", "on_result"
JUNK_PAUSE_S = 0.01

log = logging.getLogger(__name__)
Predict = Callable[[str, dict[str, Array], int], Result]


class ScriptIntake:
    """The script's loop. `predict` runs one item at once, for loops that want the answer themselves."""

    dropped = 0

    def __init__(self, inputs: Sequence[TensorSpec], batched: tuple[str, ...], path: Path | None = None) -> None:
        """`path` is the script with the loop; without it, it is the entry script."""
        self._path = path
        self._inputs = tuple(inputs)
        self._batched = batched
        self.predict: Predict | None = None
        self.stop = threading.Event()
        self._on_result: Callable[[object], object] | None = None
        self._items: Generator[object, Any, None] | None = None
        self._script: ModuleType | None = None
        self._number = 0

    def open(self) -> None:
        """Raises Ended when there is no loop."""
        if self._script is None:
            self._script = sys.modules.get(ENTRY) if self._path is None else _imported(self._path)
        loop = getattr(self._script, LOOP, None)
        if not callable(loop):
            raise Ended("the script has no loop()")
        hook = getattr(self._script, ON_RESULT, None)
        self._on_result = hook if callable(hook) else None
        made = loop(*self._arguments(loop))
        if not isinstance(made, Generator):
            raise Ended("its loop() returned")
        self._items = made

    def take(self, most_rows: int) -> list[Item]:
        assert self._items is not None  # noqa: S101 - opened
        try:
            yielded = next(self._items)
        except StopIteration:
            raise Ended("its loop() returned") from None
        if yielded is None:  # nothing at the moment
            self.stop.wait(JUNK_PAUSE_S)
            return []
        self._number += 1
        name = f"loop {self._number}"
        try:
            inputs = self._checked(yielded)
            return [Item(name, inputs, rows_of(inputs, self._batched))]
        except (ValueError, TypeError) as error:
            self.stop.wait(JUNK_PAUSE_S)
            return [Item(name, {}, error=str(error))]

    def answered(self, item: Item, result: Result) -> None:
        if self._on_result is not None:
            said = SimpleNamespace(id=result.id, inputs=item.inputs, outputs=result.outputs, error=result.error)
            self._on_result(said)

    def settled(self, items: Sequence[Item]) -> None:
        """What it yields does not come again."""

    def close(self) -> None:
        items, self._items = self._items, None
        if items is not None:
            items.close()

    def _arguments(self, loop: Callable[..., object]) -> list[object]:
        """`predict` and `stop`, as far as the function names them."""
        known: dict[str, object] = {"predict": self._predict, "stop": self.stop}
        names = list(inspect.signature(loop).parameters)
        if set(names) - set(known):
            raise Ended(f"expected loop() with arguments among predict and stop, got {', '.join(names)}")
        return [known[name] for name in names]

    def _predict(self, inputs: object) -> Mapping[str, Array]:
        """What the loop calls. Raises ValueError, BackendError."""
        assert self.predict is not None  # noqa: S101 - given by `opened`
        self._number += 1
        arrays = self._checked(inputs)
        result = self.predict(f"loop {self._number}", arrays, rows_of(arrays, self._batched))
        if result.error:
            raise BackendError("run-failed", result.error)
        return result.outputs

    def _checked(self, value: object) -> dict[str, Array]:
        """Every input, as an array of its own. Raises ValueError, TypeError."""
        if not isinstance(value, Mapping):
            if len(self._inputs) != 1:
                raise ValueError(f"expected a dict with {', '.join(s.name for s in self._inputs)}")
            value = {self._inputs[0].name: value}
        if set(value) != {spec.name for spec in self._inputs}:
            names = ", ".join(spec.name for spec in self._inputs)
            raise ValueError(f"expected {names}, got {', '.join(map(str, value))[:200]}")
        return {spec.name: _own(spec, value[spec.name]) for spec in self._inputs}


def _imported(path: Path) -> ModuleType:
    """Raises whatever the script does."""
    spec = importlib.util.spec_from_file_location(OWN, path)
    if spec is None or spec.loader is None:
        raise Ended(f"{path.name}: expected a Python file")
    script = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(script)
    return script


def _own(spec: TensorSpec, value: object) -> Array:
    """An array that nobody writes to: the one given where it is read-only, else a copy."""
    if isinstance(value, np.ndarray):
        array = checked(spec, value)
        if array.flags.writeable or not array.flags.c_contiguous:
            array = array.copy(order="C")
        return array
    if spec.datatype == "BYTES":
        flat = [item if isinstance(item, bytes) else str(item).encode() for item in np.array(value, object).ravel()]
        array = np.empty(len(flat), object)
        array[:] = flat
        return checked(spec, array.reshape(np.array(value, object).shape))
    return checked(spec, np.array(value, DTYPES[spec.datatype], order="C"))
