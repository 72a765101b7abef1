"""The backend of TFLite models: interpreters of LiteRT. Called in the worker, after confinement; `prepare` before.

A prediction that runs cannot be ended: LiteRT's Python interpreter has no word for it. Past its deadline the worker is.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.backends import Array, BackendError
from agent.backends.place import Place
from agent.backends.tflite_delegates import KERNELS, Delegates, installed, load, took, try_libraries, unmet, wish
from agent.backends.tflite_instance import Instance
from agent.backends.tflite_runtime import open_runtime
from modules.errors import TensorError
from modules.execution import StageExecution
from modules.runtime import Stage
from modules.tensors import TensorSpec


class TfliteBackend:
    """As many interpreters as predictions may run at once: each has memory of its own, the weights are shared."""

    def __init__(self) -> None:
        self.parallel = 1
        self._runtime = open_runtime()
        self._tried: dict[str, str] = {}
        self._free: queue.SimpleQueue[Instance] = queue.SimpleQueue()
        self._outputs: list[str] = []
        self._execution = StageExecution("tflite")

    def prepare(self, stage: Stage) -> None:
        """See `agent.backends.Prepares`: tries the delegates that are libraries."""
        names = {provider.name for provider in stage.providers} | set(installed())
        self._tried = try_libraries(names, self._runtime.__name__)

    def load(self, stage: Stage, place: Place) -> None:
        """Raises BackendError: load-failed, also where a wish is not met; out-of-memory."""
        wanted = wish(stage, place)
        path = place.slot / stage.model
        if not path.is_file():
            raise BackendError("load-failed", f"{stage.model}: expected a model, got no file")
        alone = bool(wanted.libraries)
        self.parallel = place.parallel or (1 if alone else max(1, len(os.sched_getaffinity(0)) // place.threads))
        for _ in range(self.parallel):
            self._free.put(self._instance(path, stage, place.threads, wanted))
        self._outputs = [spec.name for spec in stage.outputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises BackendError: bad-input when the graph refuses a shape, run-failed otherwise."""
        instance = self._free.get()
        try:
            return instance.run(inputs, self._outputs)
        finally:
            self._free.put(instance)

    def interrupt(self, thread: int) -> bool:
        return False

    def execution(self) -> tuple[StageExecution, ...]:
        return (self._execution,)

    def close(self) -> None:
        self._free = queue.SimpleQueue()

    def _instance(self, path: Path, stage: Stage, threads: int, wanted: Delegates) -> Instance:
        reasons: dict[str, str] = {}
        delegates = self._delegates(wanted, reasons)
        resolver = self._runtime.OpResolverType
        kind = resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES if wanted.plain else resolver.AUTO
        try:
            interpreter = self._runtime.Interpreter(
                str(path), num_threads=threads, experimental_delegates=list(delegates.values()) or None,
                experimental_op_resolver_type=kind,
            )  # fmt: skip
            before = interpreter._get_ops_details()
            interpreter.allocate_tensors()
            after = interpreter._get_ops_details()
            instance = Instance(interpreter)
            inputs, outputs = instance.inputs(), instance.outputs()
        except (ValueError, RuntimeError, MemoryError, TensorError) as error:
            key = "out-of-memory" if isinstance(error, MemoryError) else "load-failed"
            raise BackendError(key, f"{stage.model}: {str(error).strip()[:500]}") from error
        _check_specs("input", stage.inputs, inputs, complete=True)
        _check_specs("output", stage.outputs, outputs, complete=False)
        self._execution = _ran(stage, wanted, took(before, after, tuple(delegates)), reasons)
        return instance

    def _delegates(self, wanted: Delegates, reasons: dict[str, str]) -> dict[str, Any]:
        """Those that can be loaded; of the others the reasons."""
        made: dict[str, Any] = {}
        for provider in wanted.libraries:
            why = self._tried.get(provider.name, "it was not tried before the worker was confined")
            if not why:
                try:
                    made[provider.name] = load(self._runtime, provider)
                except (ValueError, OSError) as error:
                    why = str(error).strip()[:300]
            if why:
                reasons[provider.name] = why
        return made


def _ran(stage: Stage, wanted: Delegates, got: dict[str, int], reasons: dict[str, str]) -> StageExecution:
    """Raises BackendError where the wish is not met."""
    for name in wanted.names:
        if name not in got and name not in reasons and name != KERNELS:
            reasons[name] = "it took no node of this model"
    failed = unmet(wanted, got, reasons)
    if failed:
        raise BackendError("load-failed", f"{stage.model}: {failed}")
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return StageExecution("tflite", wanted.names, got, why)


def _check_specs(kind: str, specs: tuple[TensorSpec, ...], found: tuple[TensorSpec, ...], complete: bool) -> None:
    by_name = {spec.name: spec for spec in found}
    names = {spec.name for spec in specs}
    if names - set(by_name) or (complete and set(by_name) - names):
        raise BackendError("load-failed", f"{kind}s: expected {', '.join(sorted(names))}, got {', '.join(by_name)}")
    for spec in specs:
        have = by_name[spec.name]
        if have.datatype != spec.datatype or not _fits(spec.shape, have.shape, complete):
            text = f"expected {spec.datatype} {list(spec.shape)}, got {have.datatype} {list(have.shape)}"
            raise BackendError("load-failed", f"{kind} {spec.name}: {text}")


def _fits(spec: tuple[int, ...], have: tuple[int, ...], strict: bool) -> bool:
    """A free size of the model may be fixed by the manifest; of an output, the model often does not say the shape."""
    if len(spec) != len(have):
        return not strict and not have
    return all(there in (-1, want) or (want == -1 and not strict) for want, there in zip(spec, have, strict=True))
