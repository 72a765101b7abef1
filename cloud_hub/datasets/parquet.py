"""Parquet as a stream: record batches go in, the bytes of the file come out piece by piece, nothing is kept.

The settings of the writer are fixed, so that the same rows give the same bytes. Knows neither the database nor the
API; used by `exporting` and `building`.
Source: the Apache Parquet format, version 2.6.
"""

from __future__ import annotations

import io
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cloud_hub.datasets.columns import TensorColumns

MEDIA: Final = "application/vnd.apache.parquet"
GROUP_BYTES: Final = 8 * 1024 * 1024  # of a row group before it is compressed
GROUP_ROWS: Final = 50_000
TIME: Final = pa.timestamp("us", tz="UTC")
# Signed ones where they hold the values: Parquet stores both the same, and more readers take them.
TYPES: Final[dict[str, Any]] = {
    "BOOL": pa.bool_(),
    "UINT8": pa.int16(),
    "UINT16": pa.int32(),
    "UINT32": pa.int64(),
    "UINT64": pa.uint64(),
    "INT8": pa.int8(),
    "INT16": pa.int16(),
    "INT32": pa.int32(),
    "INT64": pa.int64(),
    "FP16": pa.float32(),
    "FP32": pa.float32(),
    "FP64": pa.float64(),
    "BYTES": pa.string(),
}


class ParquetPieces:
    """`add` takes a batch and gives the bytes that are ready by now; `end` gives the rest.

    Batches gather to row groups of GROUP_BYTES or GROUP_ROWS, so that neither is memory held nor a file made of crumbs.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._sink = _Sink()
        self._schema = schema
        self._waiting: list[pa.RecordBatch] = []
        self._writer = pq.ParquetWriter(
            pa.PythonFile(self._sink, mode="w"), schema, version="2.6", compression="zstd", compression_level=3,
            use_dictionary=True, write_statistics=True, data_page_version="1.0",
        )  # fmt: skip

    def add(self, batch: pa.RecordBatch) -> bytes:
        self._waiting.append(batch)
        size = sum(waiting.nbytes for waiting in self._waiting)
        if size >= GROUP_BYTES or sum(waiting.num_rows for waiting in self._waiting) >= GROUP_ROWS:
            self._write()
        return self._sink.take()

    def end(self) -> bytes:
        self._write()
        self._writer.close()
        return self._sink.take()

    def _write(self) -> None:
        group = pa.Table.from_batches(self._waiting, self._schema)
        self._waiting = []
        if group.num_rows:
            self._writer.write_table(group, row_group_size=group.num_rows)


def tensor_fields(columns: tuple[TensorColumns, ...]) -> list[pa.Field]:
    """The fields of `columns`, each with what it is of in its metadata."""
    found: list[pa.Field] = []
    for column in columns:
        plain = TYPES[column.datatype]
        about = {"mooring.tensor": column.name, "mooring.datatype": column.datatype}
        if column.form == "list":
            about["mooring.shape"] = ",".join(map(str, column.shape))
            found.append(pa.field(column.title, pa.list_(plain), metadata=about))
            if column.elements < 0:
                found.append(pa.field(f"{column.title}.shape", pa.list_(pa.int32())))
        else:
            found += [pa.field(name, plain, metadata=about) for name in column.names]
    return found


class _Sink(io.RawIOBase):
    """A file that forgets what was taken from it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401 - any buffer, as io has it
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken, self._parts = b"".join(self._parts), []
        return taken
