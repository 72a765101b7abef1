"""Labels from a file: CSV with a header, NDJSON, or Parquet, row by row, each with the line it stands in.

A row that is no label is told with its line and does not stop the others; a file that cannot be read at all does. Read
in pieces, so that its size does not matter. Used by `cli.labels`.
"""

from __future__ import annotations

import csv
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import msgspec

from cloud_hub.labels.outputs import LabelError
from cloud_hub.labels.rows import NewLabel, check_row
from cloud_hub.operator.errors import FileError

FileFormat = Literal["csv", "ndjson", "parquet"]
COLUMNS: Final = tuple(NewLabel.__struct_fields__)
NEEDED: Final = ("prediction_id", "label")
MAX_LINE: Final = 1024 * 1024
_BATCH: Final = 1000
_WHOLE: Final = re.compile(r"-?(0|[1-9][0-9]{0,15})")
_DECIMAL: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Line:
    """One row of the file: a label, or why it is none. Both None: the label's cell is empty."""

    number: int
    label: NewLabel | None = None
    problem: LabelError | None = None


@dataclass
class LabelFile:
    """`defaults` stand where a row says nothing; `ignored` are columns that no label has."""

    path: Path
    format: FileFormat | None
    defaults: Mapping[str, str]
    now: float
    ignored: set[str] = field(default_factory=set)

    def lines(self, progress: Progress) -> Iterator[Line]:
        """Raises FileError. `progress` is told how many more bytes have been read."""
        try:
            with ExitStack() as stack:
                if str(self.path) == "-":
                    source: BinaryIO = sys.stdin.buffer
                else:
                    source = stack.enter_context(self.path.open("rb"))
                yield from self._records(source, progress)
        except OSError as error:
            raise FileError("not-readable", f"{self.path}: {error.strerror or error}; nothing more was sent") from error
        except UnicodeDecodeError as error:
            raise FileError(
                "not-text", f"{self.path}: expected UTF-8 ({error.reason}); nothing more was sent"
            ) from error

    def _records(self, source: BinaryIO, progress: Progress) -> Iterator[Line]:
        match self.format or self._guess():
            case "parquet":
                return self._parquet(source, progress)
            case "ndjson":
                return self._ndjson(source, progress)
            case "csv":
                return self._csv(source, progress)

    def _guess(self) -> FileFormat:
        suffix = self.path.suffix.lower()
        if suffix in (".parquet", ".pq"):
            return "parquet"
        return "ndjson" if suffix in (".ndjson", ".jsonl", ".json") else "csv"

    def _csv(self, source: BinaryIO, progress: Progress) -> Iterator[Line]:
        csv.field_size_limit(MAX_LINE)
        reader = csv.DictReader(_text_lines(source, progress))
        try:
            self._check_columns(reader.fieldnames or ())
            for row in reader:
                if None in row:
                    yield Line(reader.line_num, problem=LabelError("columns", "more cells than the header has"))
                    continue
                yield self._line(reader.line_num, {name: _cell(name, cell) for name, cell in row.items() if cell})
        except csv.Error as error:
            raise FileError(
                "not-csv", f"{self.path}, line {reader.line_num}: {error}; nothing more was sent"
            ) from error

    def _ndjson(self, source: BinaryIO, progress: Progress) -> Iterator[Line]:
        for number in itertools.count(1):
            raw = source.readline(MAX_LINE)
            if not raw:
                return
            progress(len(raw))
            if len(raw) == MAX_LINE:
                raise FileError("not-ndjson", f"{self.path}, line {number}: expected at most {MAX_LINE} bytes")
            if not raw.strip():
                continue
            try:
                row = msgspec.json.decode(raw, type=dict[str, Any])  # any JSON; `_line` holds it against the type
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                yield Line(number, problem=LabelError("not-json", str(error)))
                continue
            yield self._line(number, row)

    def _parquet(self, source: BinaryIO, progress: Progress) -> Iterator[Line]:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ModuleNotFoundError as error:
            raise FileError("no-parquet", "Parquet needs pyarrow: install mooring[hub]") from error
        if not source.seekable():
            raise FileError("not-readable", "Parquet cannot be read from standard input: give a file")
        try:
            file = pq.ParquetFile(source)
            self._check_columns(file.schema_arrow.names)
            columns = [name for name in file.schema_arrow.names if name in COLUMNS]
            number = 0
            for batch in file.iter_batches(_BATCH, columns=columns):
                progress(batch.nbytes)
                for row in batch.to_pylist():
                    number += 1
                    yield self._line(number, {name: cell for name, cell in row.items() if cell is not None})
        except pa.ArrowException as error:
            raise FileError("not-parquet", f"{self.path}: {error}; nothing more was sent") from error

    def _check_columns(self, names: Sequence[str]) -> None:
        missing = [name for name in NEEDED if name not in names]
        if missing:
            found = ", ".join(map(str, names))[:200] or "none"
            raise FileError(
                "columns", f"{self.path}: expected the columns {', '.join(NEEDED)} and any of "
                f"{', '.join(COLUMNS[2:])}; got {found}; nothing was sent",
            )  # fmt: skip
        self.ignored |= {str(name) for name in names if name not in COLUMNS}

    def _line(self, number: int, row: Mapping[str, Any]) -> Line:
        self.ignored |= {name for name in row if name not in COLUMNS}
        said = {name: value for name, value in row.items() if name in COLUMNS and value is not None}
        if "label" not in said and "prediction_id" in said:
            return Line(number)
        try:
            if "at" in said:
                said["at"] = _time(said["at"])
            label = msgspec.convert({**self.defaults, **said}, NewLabel)
            check_row(label, self.now)
        except msgspec.ValidationError as error:
            return Line(number, problem=LabelError("value", str(error)))
        except LabelError as error:
            return Line(number, problem=error)
        return Line(number, label)


def _text_lines(source: BinaryIO, progress: Progress) -> Iterator[str]:
    """Lines with their ends, as the csv module wants them; a mark of the byte order is left out."""
    encoding = "utf-8-sig"
    while raw := source.readline(MAX_LINE):
        if len(raw) == MAX_LINE:
            raise csv.Error(f"expected at most {MAX_LINE} bytes in a line")
        progress(len(raw))
        yield raw.decode(encoding)
        encoding = "utf-8"


def _cell(name: str, text: str) -> object:
    """What a cell of a CSV file means: numbers as such where the column has numbers, lists as JSON."""
    if name == "weight" or (name == "at" and _DECIMAL.fullmatch(text)):
        return float(text) if _DECIMAL.fullmatch(text) else text
    if name != "label":
        return text
    if text.startswith("["):
        try:
            return msgspec.json.decode(text)
        except msgspec.MsgspecError:
            return text
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) else text


def _time(value: object) -> object:
    """Seconds since the epoch; a time of day without a zone is UTC. Raises LabelError."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as error:
            raise LabelError("time", f"at: expected seconds or an ISO 8601 time, got {value[:40]!r}") from error
    elif isinstance(value, datetime):
        moment = value
    else:
        return value
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
