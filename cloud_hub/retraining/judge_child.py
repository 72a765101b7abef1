"""The child process that runs candidate and champion on held-out rows: `python -m cloud_hub.retraining.judge_child`.

A JudgeRequest on standard input, a Verdict on standard output. Started by `judge`.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from cloud_hub.datasets.feeds import Array, feeds_of
from cloud_hub.labels.answers import Answer, read_answer, score
from cloud_hub.labels.book import Value
from cloud_hub.labels.outputs import LabelError, Output, Outputs
from cloud_hub.probe_data import to_tensor
from cloud_hub.probing.models import Model
from cloud_hub.probing.onnx_model import open_onnx
from cloud_hub.probing.process import MEMORY_BYTES
from cloud_hub.retraining.criteria import PER_CLASS, parse_criterion
from cloud_hub.retraining.figures import Scored
from cloud_hub.retraining.judge import JudgeRequest
from cloud_hub.retraining.judging import Verdict, judge
from modules.errors import ModuleError
from modules.manifest import decode_manifest
from modules.windows import decode_reference

BATCH_ROWS: Final = 1024
REFERENCE_ROWS: Final = 10_000
_MAIN: Final = "label"


def main() -> int:
    """Exit status 0 with a Verdict, or 1 with one plain sentence on standard error."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=JudgeRequest)
    try:
        verdict = _judge(request)
    except (ModuleError, ValueError, RuntimeError, KeyError, OSError, MemoryError, pa.ArrowException) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(verdict))
    return 0


def _judge(request: JudgeRequest) -> Verdict:
    candidate, champion = (_open(path, request) for path in (request.candidate, request.champion))
    _write_reference(request, candidate)
    rows = _Rows(request)
    answers = {name: rows.answers(model) for name, model in (("candidate", candidate), ("champion", champion))}
    return judge(rows.scored(answers["candidate"], answers["champion"]), request.judging)


def _open(path: str, request: JudgeRequest) -> Model:
    manifest = decode_manifest(Path(request.manifest).read_bytes())
    labels = {spec.name: spec.labels for spec in (*manifest.inputs, *manifest.outputs) if spec.labels}
    return open_onnx(path, labels)


class _Rows:
    """The held-out rows with a label of the output that is judged."""

    def __init__(self, request: JudgeRequest) -> None:
        manifest = decode_manifest(Path(request.manifest).read_bytes())
        profile = decode_reference(Path(request.profile).read_bytes()) if request.profile else None
        self._outputs = Outputs.of(manifest, profile)
        name = request.judging.output
        self._output = self._find(name)
        self._label = f"label.{name}" if name else _MAIN
        table = pq.read_table(request.heldout)
        if self._label not in table.column_names:
            raise ValueError(f"expected a column {self._label} with labels in the data set, got {table.column_names}")
        labelled = table.filter(pa.array(~np.asarray(table[self._label].is_null())))
        self._table = labelled.filter(pa.array(np.asarray(labelled["weight"]) > 0))
        self._groups = {parse_criterion(text).group for text in request.judging.accept} - {"", PER_CLASS}

    def _find(self, name: str) -> Output:
        found = self._outputs.by_name.get(name or self._outputs.main)
        if found is None:
            known = ", ".join(self._outputs.by_name) or "none that can be labelled"
            raise ValueError(f"output: expected one of {known}, got {name or 'none'}; name one in judging.output")
        return found

    def answers(self, model: Model) -> list[Answer | None]:
        """One per row; None where an input is not there or the model gives no such output."""
        if self._output.tensor not in {spec.name for spec in model.outputs}:
            names = ", ".join(spec.name for spec in model.outputs)
            raise ValueError(f"expected an output {self._output.tensor} as the champion's, got {names}")
        feeds, whole = feeds_of(self._table, model.inputs)
        values = iter(_answers(model, feeds, self._output.tensor, int(whole.sum())))
        return [self._answer(next(values)) if there else None for there in whole]

    def _answer(self, value: Array) -> Answer | None:
        tensor = to_tensor(self._output.tensor, value[np.newaxis])
        return read_answer(self._output, {tensor.name: tensor})

    def _truth(self, label: Value) -> float | None:
        """None for a label that is none of this output."""
        try:
            return self._output.place_of(label)
        except LabelError:
            return None

    def scored(self, candidate: list[Answer | None], champion: list[Answer | None]) -> Scored:
        output, columns = self._output, []
        weights = np.asarray(self._table["weight"]) * np.nan_to_num(np.asarray(self._table["label_weight"]), nan=1.0)
        kept: list[int] = []
        for row, label in enumerate(self._table[self._label].to_pylist()):
            one, other, truth = candidate[row], champion[row], self._truth(label)
            if other is None or truth is None or weights[row] <= 0:
                continue
            if one is None:
                raise ValueError("the candidate has no answer to a row that the champion answers; it was not judged")
            errors = [score(output, answer, truth, label).error for answer in (one, other)]
            columns.append((truth, one.predicted, other.predicted, *errors))
            kept.append(row)
        values = np.array(columns, np.float64).reshape(-1, 5).T
        table = self._table.take(pa.array(kept, pa.int64()))
        groups = {name: tuple(map(str, table[name].to_pylist())) for name in self._groups}
        return Scored(
            weights[np.array(kept, np.int64)], values[0], values[1], values[2], values[3], values[4], output.classes,
            output.kind == "class", groups,
        )  # fmt: skip


def _answers(model: Model, feeds: Mapping[str, Array], output: str, rows: int) -> Array:
    """A model that takes a fixed number of rows gets the last ones more than once."""
    fixed = model.fixed_rows > 0
    step = model.fixed_rows if fixed else BATCH_ROWS
    parts = []
    for start in range(0, rows, step):
        batch = {name: array[start : start + step] for name, array in feeds.items()}
        count = min(step, rows - start)
        if fixed and count < step:
            batch = {name: np.resize(array, (step, *array.shape[1:])) for name, array in batch.items()}
        parts.append(model.answer(batch)[output][:count])
    found: Array = np.concatenate(parts) if parts else np.zeros((0, 1))
    if len(found) != rows:
        raise ValueError(f"output {output}: expected {rows} rows for {rows} inputs, got {len(found)}")
    return found


def _write_reference(request: JudgeRequest, model: Model) -> None:
    """Rows drawn by weight, at equal steps through all of them: what was sampled more often counts no more for that."""
    if not request.reference:
        return
    table = pq.read_table(request.train)
    feeds, whole = feeds_of(table, model.inputs)
    weights = np.asarray(table["weight"])[whole]
    if not weights.sum() > 0:
        raise ValueError("expected rows to train on with every input and a weight, got none")
    count = min(len(weights), REFERENCE_ROWS)
    places = np.searchsorted(np.cumsum(weights) / weights.sum(), (np.arange(count) + 0.5) / count)
    drawn: dict[str, Any] = {name: _plain(array[np.minimum(places, len(weights) - 1)]) for name, array in feeds.items()}
    np.savez_compressed(request.reference, **drawn)


def _plain(array: Array) -> Array:
    return array.astype(str) if array.dtype.kind == "O" else array  # no pickles


if __name__ == "__main__":
    sys.exit(main())
