"""The test that every backend passes, ours and third parties': subclass it in a test file, and pytest runs it.

    class TestMine(BackendConformance):
        def make(self) -> Backend:
            return MyBackend()

        def cases(self) -> list[Case]:
            return [Case(files={"model.mine": ...}, stage=Stage(...), inputs={"x": ...}, outputs={"y": ...})]

Needs pytest only to be run: what does not hold raises a ConformanceError that says what was expected. What a model file
does to the library is tried in a process of its own. Not part of what a worker loads.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import numpy as np

from agent.backends import Array, Backend, BackendError, Binds, Prepares
from agent.backends.place import Place
from modules.execution import StageExecution
from modules.runtime import Stage
from modules.tensors import TensorSpec

DEADLINE_S = 60.0
THREADS = 3
ROUNDS = 20
MANY = 4  # of the cases, where each makes several models be loaded


class ConformanceError(AssertionError):
    """The backend does not do what its contract says."""


@dataclass(frozen=True)
class Case:
    """A model and one known answer. `files` are what lies in the slot, by path. `rowwise`: rows do not see each other,
    so that any number of them can be run together. Cases for every datatype that the backend takes make a good test.
    """

    files: Mapping[str, bytes]
    stage: Stage
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    rowwise: bool = True
    rtol: float = 1e-4
    atol: float = 1e-5
    name: str = field(default="")


class BackendConformance:
    """`make` and `cases` are the subclass's to say, the rest where it differs."""

    checks_specs = True  # whether the model says what it takes and gives: a script does not
    reads_files = True  # whether the stage's model is a file that the backend parses

    def make(self) -> Backend:
        """A backend, not loaded."""
        raise NotImplementedError

    def cases(self) -> list[Case]:
        """At least one."""
        raise NotImplementedError

    def endless(self) -> Case | None:
        """A model whose run lasts until it is ended, where one can be made."""
        return None

    # --- what pytest runs ---------------------------------------------------------------------------------------

    def test_a_model_gives_its_known_answer(self, tmp_path: Path) -> None:
        for case, backend in self._loaded(tmp_path):
            _check_answer(case, backend.run(case.inputs))

    def test_it_says_what_runs_where(self, tmp_path: Path) -> None:
        for case, backend in self._loaded(tmp_path):
            told = backend.execution()
            sound = bool(told) and all(isinstance(one, StageExecution) for one in told)
            _expect(sound, case, f"executions, got {told!r}")
            for one in told:
                says = sum(one.got.values()) > 0 or one.note or one.why
                _expect(bool(one.backend and says), case, f"nodes by provider, a note or a reason, got {one!r}")

    def test_what_it_gave_is_the_callers(self, tmp_path: Path) -> None:
        for case, backend in self._loaded(tmp_path):
            first = backend.run(case.inputs)
            kept = {name: array.copy() for name, array in first.items()}
            others = {name: array.copy() for name, array in case.inputs.items()}
            second = backend.run(others)
            for name, array in first.items():
                _expect(np.array_equal(array, kept[name]), case, f"{name} to stay what it was, a later run changed it")
                _expect(not np.shares_memory(array, second[name]), case, f"{name} in memory of its own")
                _expect(array.flags.writeable or array.dtype == object, case, f"{name} writable")

    def test_it_leaves_its_inputs_alone(self, tmp_path: Path) -> None:
        for case, backend in self._loaded(tmp_path):
            given = {name: array.copy() for name, array in case.inputs.items()}
            for array in given.values():
                array.flags.writeable = False
            _check_answer(case, backend.run(given))
            for name, array in given.items():
                _expect(np.array_equal(array, case.inputs[name]), case, f"{name} unchanged")

    def test_rows_can_be_run_together_where_the_manifest_says_so(self, tmp_path: Path) -> None:
        for case, backend in self._loaded(tmp_path):
            free = all(spec.shape and spec.shape[0] == -1 for spec in (*case.stage.inputs, *case.stage.outputs))
            if not (free and case.rowwise):
                continue
            for times in (3, 1, 2):
                many = {name: np.concatenate([array] * times) for name, array in case.inputs.items()}
                expected = {name: np.concatenate([array] * times) for name, array in case.outputs.items()}
                _check_answer(replace(case, outputs=expected), backend.run(many))

    def test_as_many_threads_as_it_says_may_run_at_once(self, tmp_path: Path) -> None:
        for case, backend in self._loaded(tmp_path, parallel=THREADS):
            _expect(backend.parallel >= 1, case, f"parallel of at least 1, got {backend.parallel}")
            with ThreadPoolExecutor(backend.parallel) as pool:
                for answer in pool.map(lambda _: backend.run(case.inputs), range(ROUNDS)):  # noqa: B023
                    _check_answer(case, answer)

    def test_tensors_that_are_not_the_models_are_refused_at_load(self, tmp_path: Path) -> None:
        if not self.checks_specs:
            return
        for case in self.cases()[:MANY]:
            for words, stage in _wrong_stages(case.stage):
                error = _refused(lambda: self._load(tmp_path, case, stage))  # noqa: B023
                _expect(
                    error is not None and error.key == "load-failed", case, f"load-failed for {words}, got {error!r}"
                )

    def test_a_wrong_shape_is_an_error_and_the_next_run_works(self, tmp_path: Path) -> None:
        if not self.checks_specs:
            return
        for case, backend in self._loaded(tmp_path):
            wrong = {name: array[..., np.newaxis] for name, array in case.inputs.items()}
            error = _refused(lambda: backend.run(wrong))  # noqa: B023
            _expect(error is not None and error.key in ("bad-input", "run-failed"), case, f"bad-input, got {error!r}")
            _check_answer(case, backend.run(case.inputs))

    def test_a_bound_run_gives_the_same(self, tmp_path: Path) -> None:
        for case, backend in self._loaded(tmp_path):
            if not isinstance(backend, Binds):
                continue
            inputs = {name: array.copy() for name, array in case.inputs.items()}
            outputs = {name: np.zeros_like(array) for name, array in case.outputs.items()}
            run = backend.bind(inputs, outputs)
            if run is not None:
                run()
                _check_answer(case, outputs)

    def test_junk_is_refused_and_does_not_crash(self, tmp_path: Path) -> None:
        if not self.reads_files:
            return
        case = self.cases()[0]
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_try_junk, args=(type(self), str(tmp_path), theirs), daemon=True)
        child.start()
        theirs.close()
        said: list[str] = []
        try:
            while ours.poll(DEADLINE_S):
                said.append(ours.recv())
        except EOFError:
            pass
        finally:
            child.join(DEADLINE_S)
            child.kill()
            child.join()
        last = said[-1] if said else "nothing"
        _expect(last == "done", case, f"every spoilt model to be refused, got {last} and exit status {child.exitcode}")

    def test_a_file_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        case = self.cases()[0]
        backend = self.make()
        error = _refused(lambda: backend.load(case.stage, Place(tmp_path)))
        _expect(error is not None and error.key == "load-failed", case, f"load-failed, got {error!r}")

    def test_closing_is_possible_at_any_time(self, tmp_path: Path) -> None:
        self.make().close()
        for _, backend in self._loaded(tmp_path):
            backend.close()
            backend.close()

    def test_a_run_can_be_ended_or_it_says_that_it_cannot(self, tmp_path: Path) -> None:
        case = self.endless() or self.cases()[0]
        backend = self._load(tmp_path, case, case.stage)
        try:
            _expect(isinstance(backend.interrupt(1), bool), case, "whether a run can be ended, as a bool")
            if self.endless() is not None:
                _check_ended(case, backend)
        finally:
            backend.close()

    # --- how ----------------------------------------------------------------------------------------------------

    def _loaded(self, folder: Path, parallel: int = 0) -> Iterator[tuple[Case, Backend]]:
        for case in self.cases():
            backend = self._load(folder, case, case.stage, parallel)
            try:
                yield case, backend
            finally:
                backend.close()

    def _load(self, folder: Path, case: Case, stage: Stage, parallel: int = 0) -> Backend:
        for path, data in case.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        backend = self.make()
        if isinstance(backend, Prepares):
            backend.prepare(stage)
        backend.load(stage, Place(folder, frozenset(case.files), parallel=parallel))
        return backend


def _check_answer(case: Case, answer: Mapping[str, Array]) -> None:
    expected = {spec.name for spec in case.stage.outputs}
    _expect(set(answer) == expected, case, f"outputs {sorted(expected)}, got {sorted(answer)}")
    for name, array in case.outputs.items():
        got = answer[name]
        _expect(got.dtype == array.dtype, case, f"{name} as {array.dtype}, got {got.dtype}")
        _expect(got.shape == array.shape, case, f"{name} of shape {array.shape}, got {got.shape}")
        if array.dtype.kind == "f":
            same = np.allclose(got, array, rtol=case.rtol, atol=case.atol, equal_nan=True)
        else:
            same = np.array_equal(got, array)
        _expect(same, case, f"{name} to be {array.ravel()[:8]}, got {got.ravel()[:8]}")


def _check_ended(case: Case, backend: Backend) -> None:
    """A run in a thread, ended from this one; where the backend says no, the thread is left behind."""
    ended: list[BackendError | None] = []
    runner = threading.Thread(target=lambda: ended.append(_refused(lambda: backend.run(case.inputs))), daemon=True)
    runner.start()
    limit = time.monotonic() + DEADLINE_S
    hoped = False
    while runner.is_alive() and time.monotonic() < limit:
        if backend.interrupt(runner.ident or 0):
            hoped = True
            runner.join(DEADLINE_S)
        else:
            runner.join(0.2)  # it may not have begun
            if time.monotonic() > limit - DEADLINE_S * 0.9:
                break
    if hoped:
        _expect(ended != [] and ended[0] is not None, case, f"the run to end in a BackendError, got {ended}")


def _wrong_stages(stage: Stage) -> Iterator[tuple[str, Stage]]:
    """The stage with one thing changed that the model contradicts."""
    first, result = stage.inputs[0], stage.outputs[0]

    def with_input(spec: TensorSpec) -> Stage:
        return msgspec.structs.replace(stage, inputs=(spec, *stage.inputs[1:]))

    other = "FP64" if first.datatype != "FP64" else "INT32"
    yield "another input", with_input(TensorSpec("nobody", first.datatype, first.shape))
    yield "another datatype", with_input(TensorSpec(first.name, other, first.shape))
    yield "another rank", with_input(TensorSpec(first.name, first.datatype, (*first.shape, 1)))
    if first.shape and first.shape[-1] > 0:
        wider = (*first.shape[:-1], first.shape[-1] + 1)
        yield "another width", with_input(TensorSpec(first.name, first.datatype, wider))
    renamed = TensorSpec("nobody", result.datatype, result.shape)
    yield "another output", msgspec.structs.replace(stage, outputs=(renamed, *stage.outputs[1:]))


def _spoilt(model: bytes) -> Iterator[tuple[str, bytes, bool]]:
    """What a model file may turn out to be, and whether it must be refused: a changed weight cannot be seen."""
    yield "an empty file", b"", True
    yield "text", b"this is not a model\n" * 50, True
    yield "half a model", model[: len(model) // 2], True
    yield "zeros at the start", bytes(64) + model[64:], True
    random = np.random.default_rng(0)
    for number in range(24):
        changed = bytearray(model)
        for at in random.integers(0, len(model), 8):
            changed[at] ^= int(random.integers(1, 256))
        yield f"changed bytes, number {number}", bytes(changed), False


def _try_junk(kind: type[BackendConformance], folder: str, out: Connection) -> None:
    """In the child: says what it tries before it does, so that the parent knows what ended it."""
    test = kind()
    case = test.cases()[0]
    for words, data, refused in _spoilt(case.files[case.stage.model]):
        out.send(words)
        spoilt = replace(case, files={**case.files, case.stage.model: data})
        error = _refused(lambda: test._load(Path(folder), spoilt, spoilt.stage))  # noqa: B023
        if (refused and error is None) or (error is not None and error.key not in ("load-failed", "out-of-memory")):
            out.send(f"{words}: {error!r}")
            return
    out.send("done")


def _refused(call: Callable[[], object]) -> BackendError | None:
    """The error that the contract allows; any other passes."""
    try:
        call()
    except BackendError as error:
        return error
    return None


def _expect(holds: bool, case: Case, expected: str) -> None:
    if not holds:
        raise ConformanceError(f"{case.name or case.stage.name}: expected {expected}")
