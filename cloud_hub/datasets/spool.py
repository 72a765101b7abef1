"""Rows of a data set on their way: written to a file once, while what their labels look like is found out.

A Parquet file needs its columns before its first row, and labels say only row by row whether they are classes or
numbers. Used by `building`, which may run this in a thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import pyarrow as pa

from cloud_hub.datasets.parquet import TIME
from cloud_hub.datasets.rows import Taken, micros
from cloud_hub.labels.book import Label, Value

LENGTH_BYTES: Final = 4
NO_ANSWER: Final = "no-answer"  # a label that says nothing of quality, and all the same what was right
MAIN: Final = ""  # the output that a label without one speaks of


class Answer(msgspec.Struct, frozen=True):
    """The label that counts for one output of a row."""

    value: Value
    weight: float
    at: float


class Row(msgspec.Struct, frozen=True):
    taken: Taken
    answers: dict[str, Answer]  # by output


class Spool:
    """Rows in a file at `path`. `kinds` are the types of the labels' values by output."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self.kinds: dict[str, set[str]] = {}
        self.rows = 0
        self.bytes = 0
        self.labelled = 0
        self.first_at: float | None = None
        self.last_at: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            body = msgspec.msgpack.encode(row)
            self._file.write(len(body).to_bytes(LENGTH_BYTES, "little") + body)
            self.rows += 1
            self.bytes += len(body)
            self.labelled += bool(row.answers)
            at = row.taken.sample.at
            self.first_at = at if self.first_at is None else min(self.first_at, at)
            self.last_at = at if self.last_at is None else max(self.last_at, at)
            for output, answer in row.answers.items():
                self.kinds.setdefault(output, set()).add(type(answer.value).__name__)

    def read(self, page_bytes: int) -> Iterator[list[Row]]:
        """All rows again, in pages of about so many bytes."""
        self._file.seek(0)
        page: list[Row] = []
        size = 0
        decoder = msgspec.msgpack.Decoder(Row)
        while head := self._file.read(LENGTH_BYTES):
            body = self._file.read(int.from_bytes(head, "little"))
            page.append(decoder.decode(body))
            size += len(body)
            if size >= page_bytes:
                yield page
                page, size = [], 0
        if page:
            yield page


def answers_of(labels: Collection[Label], device: str, module: str) -> dict[str, Answer]:
    """Of the labels of one prediction, oldest first: the last that speaks of this device and module, by output.

    Also where the sample does not hold the model's own answer (it was redacted): training needs none.
    """
    return {
        label.output: Answer(label.value, label.weight, label.at)
        for label in labels
        if (label.state != "unusable" or label.reason == NO_ANSWER) and label.speaks_of(device, module)
    }


class LabelColumns:
    """`label` for the main output, `label.NAME` for others; what the main one weighs, and when it was given.

    Numbers stay numbers where all are; classes are texts as soon as one is.
    """

    def __init__(self, kinds: dict[str, set[str]]) -> None:
        self._outputs = tuple(sorted({MAIN, *kinds}))
        self._types = {output: _arrow(kinds.get(output, set())) for output in self._outputs}
        titles = [(f"label.{output}" if output else "label", self._types[output]) for output in self._outputs]
        self.fields = [
            *(pa.field(title, kind) for title, kind in titles),
            pa.field("label_weight", pa.float64()),
            pa.field("labelled_at", TIME),
        ]

    def arrays(self, rows: Sequence[Row]) -> list[pa.Array]:
        found = []
        for output in self._outputs:
            kind = self._types[output]
            answers = [row.answers.get(output) for row in rows]
            found.append(pa.array([None if one is None else _as(kind, one.value) for one in answers], kind))
        main = [row.answers.get(MAIN) for row in rows]
        found.append(pa.array([None if one is None else one.weight for one in main], pa.float64()))
        found.append(pa.array([None if one is None else micros(one.at) for one in main], TIME))
        return found


def _arrow(kinds: set[str]) -> Any:  # noqa: ANN401 - pyarrow has no types
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds == {"int"}:
        return pa.int64()
    if kinds and kinds <= {"int", "float"}:
        return pa.float64()
    if kinds == {"list"}:
        return pa.list_(pa.float64())
    return pa.string()


def _as(kind: Any, value: Value) -> Any:  # noqa: ANN401 - as above
    if kind == pa.string():
        return value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return float(value) if kind == pa.float64() and not isinstance(value, str | list) else value
