"""Weighted sums over outcomes, made by the database over its index: what figures are computed from.

Every query is of one output of a few builds and a span of time. Samples that somebody asked for are never outcomes
(`join`), so nothing is to be left out here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

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
    kind: str = "class"

    @property
    def condition(self) -> ColumnElement[bool]:
        of = and_(
            _C.manifest_sha256.in_(self.manifests),
            _C.output == self.output,
            _C.at >= self.since,
            _C.at < self.until,
            _C.kind == self.kind,
        )
        return of if self.devices is None else and_(of, among(_C.device, self.devices))


_NOTHING: Final = Sums()


@dataclass(frozen=True)
class Part:
    """Sums of one group of outcomes. `key` is what they are grouped by; what does not apply has no rows.

    `error` sums errors of classes, and what predicted numbers are off by; `size` and `square` are of the latter.
    `plain`: some of the rows were sampled for no special reason (stratum `base`). `truth` is the mean of true numbers.
    """

    key: tuple[Any, ...]
    error: Sums
    plain: bool
    size: Sums = _NOTHING
    square: Sums = _NOTHING
    log_loss: Sums = _NOTHING
    brier: Sums = _NOTHING
    truth: float = 0.0

    def __add__(self, other: Part) -> Part:
        rows = self.error.w + other.error.w
        return Part(
            self.key,
            self.error + other.error,
            self.plain or other.plain,
            self.size + other.size,
            self.square + other.square,
            self.log_loss + other.log_loss,
            self.brier + other.brier,
            (self.truth * self.error.w + other.truth * other.error.w) / rows if rows else 0.0,
        )

    def with_largest(self, largest: float) -> Part:
        """As if a row could weigh so much."""
        names = ("error", "size", "square", "log_loss", "brier")
        sums = {name: getattr(self, name) for name in names}
        return replace(self, **{n: replace(one, largest=max(one.largest, largest)) for n, one in sums.items()})


async def outputs_of(connection: AsyncConnection, manifests: Sequence[str]) -> list[str]:
    """Those that have outcomes, by name."""
    query = select(_C.output).where(_C.manifest_sha256.in_(manifests)).distinct().order_by(_C.output)
    return list((await connection.execute(query)).scalars())


async def first_of(connection: AsyncConnection, of: Slice, limit: int) -> float:
    """The slice's start, or a later one from which no build has more than `limit` rows in it."""
    since = of.since
    for manifest in of.manifests:
        query = select(_C.at).where(
            _C.manifest_sha256 == manifest, _C.output == of.output, _C.at >= of.since, _C.at < of.until
        )
        found = (await connection.execute(query.order_by(_C.at.desc()).offset(limit).limit(1))).scalar_one_or_none()
        since = since if found is None else max(since, float(found))
    return since


async def parts(connection: AsyncConnection, of: Slice, by: Sequence[Column[Any]], limit: int) -> list[Part]:
    """One per group, those with most rows first."""
    sums = _of_numbers() if of.kind == "number" else _of_classes()
    plain = func.max(case((_C.stratum == "base", 1), else_=0)).label("plain")
    query: Select[Any] = select(*by, plain, *sums).where(of.condition)
    if by:
        query = query.group_by(*by).order_by(func.count().desc(), *by).limit(limit)
    read = _number_part if of.kind == "number" else _class_part
    found = [read(row, tuple(row[: len(by)]), of.heaviest) for row in await connection.execute(query)]
    return [part for part in found if part.error.rows]


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
        .where(of.condition)
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
    row = (await connection.execute(query.where(of.condition))).one()
    return float(row[0] or 0.0), math.sqrt(float(row[1] or 0.0))


def _sums(name: str, value: _Number) -> list[ColumnElement[Any]]:
    """The sums over rows in which there is a value."""
    w = case((value.is_not(None), _C.weight))
    return [
        func.count(value).label(f"{name}_rows"),
        func.sum(w).label(f"{name}_w"),
        func.sum(w * w).label(f"{name}_w2"),
        func.sum(w * value).label(f"{name}_wx"),
        func.sum(w * w * value).label(f"{name}_w2x"),
        func.sum(w * w * value * value).label(f"{name}_w2x2"),
        func.max(w).label(f"{name}_largest"),
    ]


def _of_classes() -> list[ColumnElement[Any]]:
    return [*_sums("error", _C.error), *_sums("log_loss", _C.log_loss), *_sums("brier", _C.brier)]


def _of_numbers() -> list[ColumnElement[Any]]:
    """Sizes and squares of errors share the sums of weights, and that of the squares, with the errors."""
    w, size = _C.weight, func.abs(_C.error)
    square = _C.error * _C.error
    return [
        *_sums("error", _C.error),
        func.sum(w * size).label("size_wx"),
        func.sum(w * w * size).label("size_w2x"),
        func.sum(w * square).label("square_wx"),
        func.sum(w * w * square * square).label("square_w2x2"),
        (func.sum(w * _C.truth) / func.sum(w)).label("truth"),
    ]


def _read(row: Row[Any], name: str, heaviest: float) -> Sums:
    found = row._mapping
    rows = int(found[f"{name}_rows"])
    if not rows:
        return Sums()
    names = ("w", "w2", "wx", "w2x", "w2x2", "largest")
    w, w2, wx, w2x, w2x2, largest = (float(found[f"{name}_{field}"]) for field in names)
    return Sums(rows, w, w2, wx, w2x, w2x2, max(largest, heaviest))


def _class_part(row: Row[Any], key: tuple[Any, ...], heaviest: float) -> Part:
    error, log_loss, brier = (_read(row, name, heaviest) for name in ("error", "log_loss", "brier"))
    return Part(key, error, bool(row.plain), log_loss=log_loss, brier=brier)


def _number_part(row: Row[Any], key: tuple[Any, ...], heaviest: float) -> Part:
    error = _read(row, "error", heaviest)
    if not error.rows:
        return Part(key, error, False)
    size = replace(error, wx=float(row.size_wx), w2x=float(row.size_w2x))
    square = replace(error, wx=float(row.square_wx), w2x=error.w2x2, w2x2=float(row.square_w2x2))
    return Part(key, error, bool(row.plain), size, square, truth=float(row.truth))
