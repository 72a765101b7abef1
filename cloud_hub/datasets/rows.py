"""Samples as rows of a table: where and when they were taken, how much they weigh, their tensors. Pure.

`weight` is 1/probability: how many predictions the row stands for. Rows that somebody asked for by hand were not
drawn, so they stand for none and weigh 0. Used by `exporting` and `building`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import pyarrow as pa

from cloud_hub.datasets.columns import TensorColumns
from cloud_hub.datasets.parquet import TIME, tensor_fields
from cloud_hub.datasets.tensors import arrays_of, fits
from modules.messages import Sample
from modules.sampling import ASKED
from modules.tensors import Tensor

MICROSECONDS: Final = 1_000_000


class Taken(msgspec.Struct, frozen=True):
    """A sample and what the hub knows of it: its number, and when it came (seconds since the epoch)."""

    sample: Sample
    device: str
    version: int
    profile: str
    id: int = 0
    received_at: float = 0.0

    @property
    def weight(self) -> float:
        return 0.0 if self.sample.stratum == ASKED else 1.0 / self.sample.probability


_Column = tuple[pa.Field, Callable[[Taken], Any]]
_BASE: Final[tuple[_Column, ...]] = (
    (pa.field("at", TIME), lambda row: micros(row.sample.at)),
    (pa.field("device", pa.string()), lambda row: row.device),
    (pa.field("module", pa.string()), lambda row: row.sample.module),
    (pa.field("version", pa.int32()), lambda row: row.version),
    (pa.field("profile", pa.string()), lambda row: row.profile),
    (pa.field("prediction_id", pa.string()), lambda row: row.sample.prediction_id),
    (pa.field("stratum", pa.string()), lambda row: row.sample.stratum),
    (pa.field("probability", pa.float64()), lambda row: row.sample.probability),
    (pa.field("weight", pa.float64()), lambda row: row.weight),
)
_OF_HUB: Final[tuple[_Column, ...]] = (
    (pa.field("id", pa.int64()), lambda row: row.id),
    (pa.field("received_at", TIME), lambda row: micros(row.received_at)),
    (pa.field("manifest_sha256", pa.string()), lambda row: row.sample.manifest_sha256),
)
_STATED: Final = pa.struct([("tensor", pa.string()), ("why", pa.string()), ("sha256", pa.string())])
_WITHHELD: Final = pa.field("withheld", pa.list_(_STATED))
_REDACTED: Final = pa.field("redacted", pa.list_(pa.string()))


class SampleTable:
    """The schema of samples with these tensors, and batches of it. With `of_hub` also how the hub holds them.

    `extra` are fields of the caller's own at the end, whose arrays come with each batch.
    """

    def __init__(self, columns: tuple[TensorColumns, ...], extra: Sequence[pa.Field] = (), of_hub: bool = True) -> None:
        self._columns = columns
        self._plain = (*(_OF_HUB if of_hub else ()), *_BASE)
        fields = [*(field for field, _ in self._plain), *tensor_fields(columns), _WITHHELD, _REDACTED, *extra]
        self.schema = pa.schema(fields)

    def batch(self, rows: Sequence[Taken], extra: Sequence[pa.Array] = ()) -> pa.RecordBatch:
        arrays = [pa.array([read(row) for row in rows], field.type) for field, read in self._plain]
        withheld: list[list[dict[str, str]]] = [[] for _ in rows]
        for column in self._columns:
            tensors = [_usable(column, row.sample) for row in rows]
            for named, tensor, row in zip(withheld, tensors, rows, strict=True):
                if tensor is None:
                    named.append(_why(column, row.sample))
            arrays += arrays_of(column, tensors)
        arrays.append(pa.array(withheld, _WITHHELD.type))
        arrays.append(pa.array([_redacted(row.sample) for row in rows], _REDACTED.type))
        return pa.RecordBatch.from_arrays([*arrays, *extra], schema=self.schema)


def micros(at: float) -> int:
    """Seconds as Parquet has them; what no calendar holds becomes its end."""
    return round(max(-6e10, min(at, 2.5e11)) * MICROSECONDS) if at == at else 0


def tensors_of(sample: Sample) -> Mapping[tuple[str, str], Tensor]:
    """By side and name."""
    given = {("input", tensor.name): tensor for tensor in sample.inputs}
    return given | {("output", tensor.name): tensor for tensor in sample.outputs}


def _usable(column: TensorColumns, sample: Sample) -> Tensor | None:
    tensor = tensors_of(sample).get((column.side, column.name))
    return tensor if tensor is not None and fits(column, tensor) else None


def _why(column: TensorColumns, sample: Sample) -> dict[str, str]:
    """A tensor that has no values here: dropped by the policy, sent as a blob, or of a shape that does not fit."""
    for gone in sample.withheld:
        if (gone.side, gone.name) == (column.side, column.name):
            return {"tensor": column.title, "why": gone.why, "sha256": gone.sha256}
    return {"tensor": column.title, "why": "shape" if (column.side, column.name) in tensors_of(sample) else "absent"}


def _redacted(sample: Sample) -> list[str]:
    return [f"{name}: {action}" for name, action in sorted(sample.redacted.items())]
