"""Windows, merged into looks, as rows of a table: one row per cell, or one per look. Pure.

Cells as rows, because that is what a query sums and what a report draws: no list has to be unfolded, and the columns
that repeat take next to no room in Parquet. Each cell stands beside the same cell of the reference profile. Used by
`exporting`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, Literal

import msgspec
import numpy as np
import pyarrow as pa

from cloud_hub.bounds import AnyVersion
from cloud_hub.datasets.parquet import TIME
from cloud_hub.datasets.rows import micros
from cloud_hub.monitoring.integers import IntArray, unpack
from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.scopes import named
from modules.windows import Feature, Numeric

_TEXT: Final = pa.dictionary(pa.int32(), pa.string())
_OF_LOOK: Final = [
    ("start", TIME),
    ("end", TIME),
    ("module", _TEXT),
    ("version", pa.int32()),
    ("profile", _TEXT),
    ("scope", _TEXT),
    ("manifest_sha256", _TEXT),
]
CELLS: Final = pa.schema(
    [
        *_OF_LOOK,
        ("side", _TEXT),
        ("feature", _TEXT),
        ("kind", _TEXT),
        ("cell", _TEXT),
        ("place", pa.int32()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("count", pa.int64()),
        ("reference", pa.int64()),
    ]
)
LOOKS: Final = pa.schema(
    [
        *_OF_LOOK,
        ("windows", pa.int64()),
        ("rows", pa.int64()),
        ("errors", pa.int64()),
        ("refused", pa.int64()),
        ("late", pa.int64()),
        ("clock_jumps", pa.int64()),
        ("latency", pa.list_(pa.int64())),
        ("latency_p50_ms", pa.float64()),
        ("latency_p99_ms", pa.float64()),
    ]
)


class CountQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which looks; empty texts and zeros mean any. Times are seconds since the epoch.

    Without a device those of the whole fleet, with `each` those of each device and group instead. `table` cells has a
    row per cell of each feature, looks a row per look.
    """

    module: str = ""
    version: AnyVersion = 0
    device: str = ""
    each: bool = False
    since: float = 0.0
    until: float = 0.0
    table: Literal["cells", "looks"] = "cells"
    format: Literal["parquet"] = "parquet"


class Cell(msgspec.Struct, frozen=True):
    """What one count of a window counts. `low` and `high` bound a bin; NaN where there is no such bound."""

    side: str
    feature: str
    kind: str
    name: str
    place: int
    low: float
    high: float
    reference: int


def cells_of(layout: Layout) -> tuple[Cell, ...]:
    """In the order of a window's counts."""
    found: list[Cell] = []
    for index, feature in enumerate(layout.features):
        side = "input" if index < layout.inputs else "output"
        kind = "numeric" if isinstance(feature, Numeric) else "categorical"
        for place, (name, low, high) in enumerate(_cells(feature)):
            found.append(Cell(side, feature.name, kind, name, place, low, high, int(feature.counts[place])))
    return tuple(found)


def _cells(feature: Feature) -> Iterator[tuple[str, float, float]]:
    """As they are counted: bins, under, over, missing; or categories, unknown, missing."""
    if isinstance(feature, Numeric):
        for low, high in pairwise(feature.edges):
            yield f"{low:.6g} to {high:.6g}", low, high
        yield f"below {feature.edges[0]:.6g}", -math.inf, feature.edges[0]
        yield f"above {feature.edges[-1]:.6g}", feature.edges[-1], math.inf
    else:
        yield from ((name, math.nan, math.nan) for name in (*feature.categories, "(unknown)"))
    yield "(missing)", math.nan, math.nan


class LookRow(msgspec.Struct, frozen=True):
    """One look of the database beside what its build is called."""

    row: Any  # a row of `looks`
    version: int
    profile: str
    end: float


def cell_batch(found: Sequence[tuple[LookRow, tuple[Cell, ...]]]) -> pa.RecordBatch:
    """A row per cell. Looks whose counts do not fit their build's cells are left out."""
    counted = [(look, cells, unpack(look.row.counts)) for look, cells in found]
    fitting = [(look, cells) for look, cells, counts in counted if len(counts) == len(cells)]
    columns = [[value for look, cells in fitting for value in [read(look)] * len(cells)] for read in _OF_LOOK_VALUES]
    flat = [cell for _, cells in fitting for cell in cells]
    columns += [[getattr(cell, name) for cell in flat] for name in _OF_CELL]
    columns.append([count for _, cells, counts in counted if len(counts) == len(cells) for count in counts.tolist()])
    columns.append([cell.reference for cell in flat])
    return _batch(CELLS, columns)


def look_batch(found: Sequence[LookRow]) -> pa.RecordBatch:
    """A row per look."""
    columns: list[list[Any]] = [[read(look) for look in found] for read in _OF_LOOK_VALUES]
    columns += [[getattr(look.row, name) for look in found] for name in _TOTALS]
    latencies = [unpack(look.row.latency) for look in found]
    columns.append([latency.tolist() for latency in latencies])
    columns += [[_latency_ms(latency, share) for latency in latencies] for share in (0.5, 0.99)]
    return _batch(LOOKS, columns)


_OF_CELL: Final = ("side", "feature", "kind", "name", "place", "low", "high")
_TOTALS: Final = ("windows", "rows", "errors", "refused", "late", "clock_jumps")
_OF_LOOK_VALUES: Final[tuple[Callable[[LookRow], Any], ...]] = (
    lambda look: micros(look.row.start),
    lambda look: micros(look.end),
    lambda look: look.row.module,
    lambda look: look.version,
    lambda look: look.profile,
    lambda look: named(look.row.device),
    lambda look: look.row.manifest_sha256,
)


def _latency_ms(latency: IntArray, share: float) -> float | None:
    """Upper end of the bin that holds the quantile; None without predictions. Bin n ends at 2^(n+1) microseconds."""
    total = int(latency.sum())
    if not total:
        return None
    place = int(np.searchsorted(np.cumsum(latency), share * total))
    return float(2.0 ** (min(place, len(latency) - 1) + 1) / 1000)


def _batch(schema: pa.Schema, columns: Sequence[Sequence[Any]]) -> pa.RecordBatch:
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
