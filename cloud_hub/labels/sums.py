"""Weighted sums over outcomes, made by the database over its index: what figures are computed from.

Every query is of one output of a few builds and a span of time. Samples that somebody asked for are never outcomes
(`join`), so nothing is to be left out here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Row, Select, and_, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.labels.figures import BinCell
from cloud_hub.labels.intervals import Sums
from cloud_hub.store.engine import among
from cloud_hub.store.tables import outcomes

_C = outcomes.c
_Number = ColumnElement[float]


@dataclass(frozen=True)
class Slice:
    """Which outcomes. `devices` None is all of them; times are those of the predictions.

    `heaviest` is the largest weight that a row of them has or might have had.
    """

    manifests: tuple[str, ...]
    output: str
    since: float
    until: float
    devices: Collection[str] | None = None
    heaviest: float = 0.0

    @property
    def condition(self) -> ColumnElement[bool]:
        of = and_(
            _C.manifest_sha256.in_(self.manifests), _C.output == self.output, _C.at >= self.since, _C.at < self.until
        )
        return of if self.devices is None else and_(of, among(_C.device, self.devices))


@dataclass(frozen=True)
class Part:
    """Sums of one group of outcomes. `key` is what they are grouped by; what does not apply has no rows.

    `error` sums errors of classes, and what predicted numbers are off by; `size` and `square` are of the latter.
    """

    key: tuple[Any, ...]
    kind: str
    error: Sums
    size: Sums
    square: Sums
    log_loss: Sums
    brier: Sums
    truth: Sums

    def __add__(self, other: Part) -> Part:
        return Part(
            self.key,
            self.kind,
            self.error + other.error,
            self.size + other.size,
            self.square + other.square,
            self.log_loss + other.log_loss,
            self.brier + other.brier,
            self.truth + other.truth,
        )


async def outputs_of(connection: AsyncConnection, manifests: Sequence[str]) -> list[str]:
    """Those that have outcomes, by name."""
    query = select(_C.output).where(_C.manifest_sha256.in_(manifests)).distinct().order_by(_C.output)
    return list((await connection.execute(query)).scalars())


async def heaviest(connection: AsyncConnection, of: Slice) -> tuple[float, bool]:
    """The largest weight there is, and whether any of the rows was taken for no special reason (stratum `base`)."""
    plain = func.max(case((_C.stratum == "base", 1), else_=0))
    row = (await connection.execute(select(func.max(_C.weight), plain).where(of.condition))).one()
    return float(row[0] or 0.0), bool(row[1])


async def parts(connection: AsyncConnection, of: Slice, by: Sequence[Column[Any]], limit: int) -> list[Part]:
    """One per group, those with most rows first."""
    error, truth = _sums("error", _C.error), _sums("truth", _C.truth)
    size, square = _sums("size", func.abs(_C.error)), _sums("square", _C.error * _C.error)
    log_loss, brier = _sums("log_loss", _C.log_loss), _sums("brier", _C.brier)
    query: Select[Any] = (
        select(*by, _C.kind, *error, *size, *square, *log_loss, *brier, *truth)
        .where(of.condition)
        .group_by(*by, _C.kind)
        .order_by(func.count().desc(), *by)
        .limit(limit)
    )
    return [_part(row, len(by), of.heaviest) for row in await connection.execute(query)]


async def pairs(connection: AsyncConnection, of: Slice) -> list[Row[Any]]:
    """Rows per build, truth and answer, with their weights."""
    query = (
        select(
            _C.manifest_sha256,
            _C.truth,
            _C.predicted,
            func.count().label("rows"),
            func.sum(_C.weight).label("w"),
            func.sum(_C.weight * _C.weight).label("w2"),
            func.max(_C.weight).label("largest"),
        )
        .where(of.condition, _C.kind == "class")
        .group_by(_C.manifest_sha256, _C.truth, _C.predicted)
    )
    return list(await connection.execute(query))


async def bins(connection: AsyncConnection, of: Slice) -> list[BinCell]:
    """Per bin of the confidence."""
    query: Select[Any] = (
        select(
            _C.bin,
            *_sums("error", _C.error),
            func.sum(_C.weight * _C.confidence).label("wc"),
            func.sum(_C.weight * _C.weight * _C.confidence * (1 - _C.confidence)).label("w2v"),
        )
        .where(of.condition, _C.bin.is_not(None))
        .group_by(_C.bin)
    )
    found = await connection.execute(query)
    return [BinCell(row.bin, _read(row, "error", of.heaviest), row.wc, row.w2v) for row in found]


async def cells(connection: AsyncConnection, of: Slice) -> dict[tuple[int, int], Sums]:
    """Errors per day and cell of the confidence's reference."""
    query: Select[Any] = (
        select(_C.day, _C.cell, *_sums("error", _C.error))
        .where(of.condition, _C.cell.is_not(None))
        .group_by(_C.day, _C.cell)
    )
    found = await connection.execute(query)
    return {(row.day, row.cell): _read(row, "error", of.heaviest) for row in found}


async def distance(connection: AsyncConnection, of: Slice, place: float) -> tuple[float, float]:
    """The weighted mean distance of the truth from `place`, and the root of that of the square."""
    off, total = _C.truth - place, func.sum(_C.weight)
    query = select(func.sum(_C.weight * func.abs(off)) / total, func.sum(_C.weight * off * off) / total)
    row = (await connection.execute(query.where(of.condition, _C.kind == "number"))).one()
    return float(row[0] or 0.0), math.sqrt(float(row[1] or 0.0))


def _sums(name: str, value: _Number) -> list[ColumnElement[Any]]:
    """The sums over rows in which there is a value."""
    w = case((value.is_not(None), _C.weight))
    return [
        func.count(value).label(f"{name}_rows"),
        func.coalesce(func.sum(w), 0.0).label(f"{name}_w"),
        func.coalesce(func.sum(w * w), 0.0).label(f"{name}_w2"),
        func.coalesce(func.sum(w * value), 0.0).label(f"{name}_wx"),
        func.coalesce(func.sum(w * w * value), 0.0).label(f"{name}_w2x"),
        func.coalesce(func.sum(w * w * value * value), 0.0).label(f"{name}_w2x2"),
        func.coalesce(func.max(w), 0.0).label(f"{name}_largest"),
    ]


def _read(row: Row[Any], name: str, heaviest: float) -> Sums:
    found = row._mapping
    w, w2, wx, w2x, w2x2, largest = (
        float(found[f"{name}_{field}"]) for field in ("w", "w2", "wx", "w2x", "w2x2", "largest")
    )
    rows = int(found[f"{name}_rows"])
    return Sums(rows, w, w2, wx, w2x, w2x2, max(largest, heaviest if rows else 0.0))


def _part(row: Row[Any], keys: int, heaviest: float) -> Part:
    names = ("error", "size", "square", "log_loss", "brier", "truth")
    return Part(tuple(row[:keys]), row.kind, *(_read(row, name, heaviest) for name in names))
