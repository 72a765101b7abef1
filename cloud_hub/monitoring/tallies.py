"""What is counted of windows, and how it is added to the looks in the database: integers only, so that sums are exact.

`ingest` adds whole transactions at once: one reading of the looks that are there and one statement that writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from sqlalchemy import Row, case
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.monitoring.evidence import IntArray
from cloud_hub.monitoring.integers import pack, unpack
from cloud_hub.monitoring.verdict import MAX_MOMENT
from cloud_hub.store.bulk import find, upsert
from cloud_hub.store.tables import look_scopes, looks

TICK: Final = 2.0**-10  # unit of stored moments, and of the variance that noise adds
NUMBERS: Final = ("windows", "rows", "errors", "refused", "late", "clock_jumps", "noise")
ARRAYS: Final = ("counts", "moments", "latency", "joint", "still")


class LookKey(NamedTuple):
    """A look: of which manifest, whose (a scope), and when it began."""

    manifest_sha256: str
    device: str
    start: float


@dataclass(frozen=True)
class Tally:
    """Counts of one or more windows. Adding is exact. `joint` is empty where none was sent; `noise` is in TICK."""

    windows: int
    rows: int
    errors: int
    refused: int
    late: int
    clock_jumps: int
    noise: int
    counts: IntArray
    moments: IntArray
    latency: IntArray
    joint: IntArray
    still: IntArray

    def __add__(self, other: Tally) -> Tally:
        numbers = (getattr(self, name) + getattr(other, name) for name in NUMBERS)
        return Tally(*numbers, *(_sum(getattr(self, name), getattr(other, name)) for name in ARRAYS))


def moment_ticks(moments: np.ndarray[Any, np.dtype[np.float32]]) -> IntArray:
    """Moments as whole ticks; what is not a number becomes 0."""
    wide = moments.astype(np.float64)
    if not (np.abs(wide) <= MAX_MOMENT).all():
        wide = np.clip(np.nan_to_num(wide, nan=0.0), -MAX_MOMENT, MAX_MOMENT)
    return np.asarray(np.rint(wide / TICK).astype(np.int64))


async def merge(connection: AsyncConnection, modules: Mapping[str, str], tallies: Mapping[LookKey, Tally]) -> None:
    """Add each tally to its look; `modules` are the names of manifests' modules.

    Call inside the writing transaction that also moves the streams' marks.
    """
    if not tallies:
        return
    there = await _there(connection, list(tallies))
    rows = [_row(modules, key, tally + there[key] if key in there else tally) for key, tally in tallies.items()]
    await upsert(connection, looks, rows)
    await _note_scopes(connection, modules, tallies)


async def _there(connection: AsyncConnection, keys: Sequence[LookKey]) -> dict[LookKey, Tally]:
    rows = await find(connection, looks, LookKey._fields, keys)
    return {LookKey(row.manifest_sha256, row.device, row.start): tally_of(row) for row in rows}


async def _note_scopes(
    connection: AsyncConnection, modules: Mapping[str, str], tallies: Mapping[LookKey, Tally]
) -> None:
    scopes: dict[tuple[str, str], dict[str, Any]] = {}
    for key, tally in tallies.items():
        row = scopes.setdefault(
            key[:2],
            {
                "manifest_sha256": key.manifest_sha256,
                "device": key.device,
                "module": modules[key.manifest_sha256],
                "rows": 0,
                "first": key.start,
                "last": key.start,
            },
        )
        row["rows"] += tally.rows
        row["first"], row["last"] = min(row["first"], key.start), max(row["last"], key.start)
    await upsert(
        connection,
        look_scopes,
        list(scopes.values()),
        lambda new: {
            "rows": look_scopes.c.rows + new.rows,
            "first": case((new.first < look_scopes.c.first, new.first), else_=look_scopes.c.first),
            "last": case((new.last > look_scopes.c.last, new.last), else_=look_scopes.c.last),
        },
    )


def _row(modules: Mapping[str, str], key: LookKey, tally: Tally) -> dict[str, object]:
    numbers = {name: getattr(tally, name) for name in NUMBERS}
    arrays = {name: pack(array) if (array := getattr(tally, name)).size else None for name in ARRAYS}
    arrays |= {name: arrays[name] or b"" for name in ("counts", "moments", "latency")}
    arrays["still"] = arrays["still"] if tally.still.any() else None
    return {"module": modules[key.manifest_sha256], **key._asdict(), **numbers, **arrays}


def tally_of(row: Row[Any]) -> Tally:
    """What a row of `looks` holds."""
    return Tally(*(getattr(row, name) for name in NUMBERS), *(unpack(getattr(row, name)) for name in ARRAYS))


def _sum(one: IntArray, other: IntArray) -> IntArray:
    """The sum, where one of them may be empty for "none"."""
    if not one.size or not other.size:
        return other if other.size else one
    return np.asarray(one.astype(np.int64) + other)
