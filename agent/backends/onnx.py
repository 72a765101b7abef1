"""The backend of ONNX models: one session of ONNX Runtime. Called in the worker, after confinement.

Refuses at load what would surprise later: a model whose inputs or outputs are not those of the manifest, that names
files which are not among the module's, or that does not run where it was asked to (`onnx_session`).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from agent.backends import Array, BackendError, Bound
from agent.backends.onnx_binding import Binding, bindable
from agent.backends.onnx_files import check_contained, external_files
from agent.backends.onnx_session import first_line, open_session, run_options
from agent.backends.onnx_specs import as_bytes, as_text, check_specs
from agent.backends.place import Place
from modules.execution import StageExecution
from modules.runtime import Stage

if TYPE_CHECKING:
    import onnxruntime as ort


class OnnxBackend:
    """One InferenceSession. `run` is thread-safe: the session releases the interpreter lock."""

    def __init__(self) -> None:
        self.parallel = 1
        self._session: Any = None  # onnxruntime ships no types
        self._execution = StageExecution("onnx")
        self._on_cpu = True
        self._inputs: list[str] = []
        self._outputs: list[str] = []
        self._run_options: dict[int, Any] = {}  # by thread
        self._text_inputs: frozenset[str] = frozenset()
        self._text_outputs: frozenset[str] = frozenset()

    def load(self, stage: Stage, place: Place) -> None:
        """Raises BackendError: load-failed, or out-of-memory at the module's limit."""
        _check_files(place.slot / stage.model, stage, place)
        opened = open_session(stage, place)
        self._session, self._execution, self._on_cpu = opened.session, opened.execution, opened.on_cpu
        check_specs("input", stage.inputs, self._session.get_inputs(), complete=True)
        check_specs("output", stage.outputs, self._session.get_outputs(), complete=False)
        # An accelerator works on one prediction at a time in any case.
        free = max(1, len(os.sched_getaffinity(0)) // place.threads) if self._on_cpu else 1
        self.parallel = place.parallel or free
        self._inputs = [spec.name for spec in stage.inputs]
        self._outputs = [spec.name for spec in stage.outputs]
        self._text_inputs = frozenset(spec.name for spec in stage.inputs if spec.datatype == "BYTES")
        self._text_outputs = frozenset(spec.name for spec in stage.outputs if spec.datatype == "BYTES")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises BackendError: bad-input when the runtime refuses a shape, run-failed otherwise."""
        feeds = inputs if not self._text_inputs else as_text(inputs, self._text_inputs)
        options = self._options()
        try:
            outputs = dict(zip(self._outputs, self._session.run(self._outputs, feeds, options), strict=True))
        except Exception as error:
            raise _refused(error) from error
        for name in self._text_outputs:
            outputs[name] = as_bytes(outputs[name])
        return outputs

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Bound | None:
        """See `agent.backends.Binds`."""
        if not (bindable(inputs, self._inputs, False) and bindable(outputs, self._outputs, True)):
            return None
        try:
            binding = Binding(self._session, inputs, outputs)
        except Exception as error:  # the runtime's: arrays that are not what the model takes
            raise _refused(error) from error

        session, io, known, renew = self._session, binding.io, self._run_options, not self._on_cpu

        def run() -> None:
            try:
                if renew:
                    binding.renew()
                session.run_with_iobinding(io, known.get(threading.get_ident()) or self._options())
            except Exception as error:
                raise _refused(error) from error

        return run

    def interrupt(self, thread: int) -> bool:
        """The runtime looks at the flag between two nodes, also inside a loop."""
        options = self._run_options.pop(thread, None)
        if options is not None:
            options.terminate = True
        return options is not None

    def execution(self) -> tuple[StageExecution, ...]:
        return (self._execution,)

    def close(self) -> None:
        self._session = None

    def _options(self) -> ort.RunOptions:
        """This thread's, made once: a run that was ended leaves its own behind."""
        thread = threading.get_ident()
        if thread not in self._run_options:
            self._run_options[thread] = run_options(self._on_cpu)
        return self._run_options[thread]


def _refused(error: Exception) -> BackendError:
    key = "bad-input" if "INVALID_ARGUMENT" in str(error) else "run-failed"
    return BackendError(key, f"the model refused to run: {first_line(error)}")


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
