"""ONNX Runtime on the CPU. Called in the worker, after confinement; the only file that imports onnxruntime.

Refuses at load what would surprise later: a model whose inputs or outputs are not those of the manifest, or that
names files which are not among the module's.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: the runtime reads it once
import onnxruntime as ort

from agent.backends import Array, BackendError
from agent.backends.onnx_files import check_contained, external_files
from agent.backends.place import Place
from modules.execution import Execution
from modules.runtime import Stage
from modules.tensors import ONNX_TYPES, TensorSpec

PROVIDER = "CPUExecutionProvider"
_NO_MEMORY = ("bad_alloc", "Failed to allocate memory", "bad allocation")
_QUIET = 3  # errors only: what matters comes back as an exception


class OnnxBackend:
    """One InferenceSession. `run` is thread-safe: the session releases the interpreter lock."""

    def __init__(self) -> None:
        self.parallel = 1
        self._session: Any = None  # onnxruntime ships no types
        self._outputs: list[str] = []
        self._run_options: dict[int, Any] = {}  # by thread
        self._text_inputs: frozenset[str] = frozenset()
        self._text_outputs: frozenset[str] = frozenset()

    def load(self, stage: Stage, place: Place) -> None:
        """Raises BackendError: load-failed, or out-of-memory at the module's limit."""
        path = place.slot / stage.model
        _check_files(path, stage, place)
        try:
            self._session = ort.InferenceSession(str(path), _options(place.threads), providers=[PROVIDER])
        except Exception as error:  # every exception of the runtime's binding is its own, unrelated class
            key = "out-of-memory" if _is_memory(error) else "load-failed"
            raise BackendError(key, f"{stage.model}: {_first_line(error)}") from error
        _check_specs("input", stage.inputs, self._session.get_inputs(), complete=True)
        _check_specs("output", stage.outputs, self._session.get_outputs(), complete=False)
        self.parallel = place.parallel or max(1, len(os.sched_getaffinity(0)) // place.threads)
        self._outputs = [spec.name for spec in stage.outputs]
        self._text_inputs = frozenset(spec.name for spec in stage.inputs if spec.datatype == "BYTES")
        self._text_outputs = frozenset(spec.name for spec in stage.outputs if spec.datatype == "BYTES")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises BackendError: bad-input when the runtime refuses a shape, run-failed otherwise."""
        feeds = inputs if not self._text_inputs else self._as_text(inputs)
        options = self._options()
        try:
            outputs = dict(zip(self._outputs, self._session.run(self._outputs, feeds, options), strict=True))
        except Exception as error:
            key = "bad-input" if "INVALID_ARGUMENT" in str(error) else "run-failed"
            raise BackendError(key, f"the model refused to run: {_first_line(error)}") from error
        for name in self._text_outputs:
            outputs[name] = _as_bytes(outputs[name])
        return outputs

    def interrupt(self, thread: int) -> bool:
        """The runtime looks at the flag between two nodes, also inside a loop."""
        options = self._run_options.pop(thread, None)
        if options is not None:
            options.terminate = True
        return options is not None

    def _options(self) -> ort.RunOptions:
        """This thread's, made once: a run that was ended leaves its own behind."""
        thread = threading.get_ident()
        if thread not in self._run_options:
            self._run_options[thread] = ort.RunOptions()
        return self._run_options[thread]

    def execution(self) -> tuple[Execution, ...]:
        """Which share of the graph's nodes runs where, by the runtime's own evidence where it has any."""
        nodes: Counter[str] = Counter()
        try:
            for part in self._session.get_provider_graph_assignment_info():
                nodes[part.ep_name] += len(part.get_nodes())
        except (AttributeError, RuntimeError):  # a version without the interface: say only what is certain
            return (Execution("onnx", (PROVIDER,), why="this runtime gives no evidence per node"),)
        return (Execution("onnx", (PROVIDER,), dict(nodes)),)

    def close(self) -> None:
        self._session = None

    def _as_text(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The runtime's strings are Unicode."""
        return {name: _decoded(name, array) if name in self._text_inputs else array for name, array in inputs.items()}


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    # Spinning threads take the core that the application needs, and lose time once somebody else has it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _check_files(path: Path, stage: Stage, place: Place) -> None:
    """A model may read only files that were signed with it, by paths that stay in the slot, and within them."""
    folder = PurePosixPath(stage.model).parent
    try:
        for named in sorted(external_files(path), key=str):
            if str(folder / named.location) not in place.signed:
                raise ValueError(f"expected external data among the module's files, got {named.location[:200]!r}")
            check_contained(named, path.parent / named.location)
    except (OSError, ValueError) as error:
        key = "out-of-memory" if getattr(error, "errno", 0) == errno.ENOMEM else "load-failed"
        raise BackendError(key, f"{stage.model}: {error}") from error


def _check_specs(kind: str, specs: tuple[TensorSpec, ...], nodes: list[Any], complete: bool) -> None:
    found = {node.name: node for node in nodes}
    missing = [spec.name for spec in specs if spec.name not in found]
    extra = [name for name in found if name not in {spec.name for spec in specs}] if complete else []
    if missing or extra:
        expected = ", ".join(spec.name for spec in specs)
        raise BackendError("load-failed", f"{kind}s: expected {expected}, got {', '.join(found)}")
    for spec in specs:
        datatype = ONNX_TYPES.get(found[spec.name].type, found[spec.name].type)
        shape = list(found[spec.name].shape)
        if datatype != spec.datatype or not _fits(spec.shape, shape, complete):
            raise BackendError(
                "load-failed",
                f"{kind} {spec.name}: expected {spec.datatype} {list(spec.shape)}, got {datatype} {shape}",
            )


def _fits(spec: tuple[int, ...], shape: list[Any], strict: bool) -> bool:
    """Whether the model's shape (numbers, or names and None for free sizes) agrees with the manifest's."""
    if len(spec) != len(shape):
        return not strict and not shape  # converters often leave an output's shape out
    return all(not isinstance(have, int) or have == want for want, have in zip(spec, shape, strict=True))


def _decoded(name: str, array: Array) -> Array:
    try:
        texts = [item.decode() for item in array.ravel()]
    except UnicodeDecodeError as error:
        raise BackendError("bad-input", f"input {name}: expected UTF-8 text, got {error.reason}") from error
    return np.array(texts, dtype=object).reshape(array.shape)


def _as_bytes(array: Array) -> Array:
    texts = [item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel()]
    result = np.empty(len(texts), dtype=object)
    result[:] = texts
    return result.reshape(array.shape)


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(word in str(error) for word in _NO_MEMORY)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:500]
