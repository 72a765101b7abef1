"""Labels as they are kept: rows in, rows out. Which sample one belongs to is `join`'s to say.

A label is of a prediction id and, where they are said, a device, a module and an output. Of the labels of the same
four the newest counts, by the time at which it was given; the others stay as its history. Used by `desk`, by `join`
and by whoever needs labels beside samples (`cloud_hub.datasets`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.store.engine import among
from cloud_hub.store.tables import labels

Value = bool | int | float | str | list[float | None]
_PIECE: Final = 500


class Label(msgspec.Struct, frozen=True):
    """What the right answer was. Empty texts mean any device, any module, the main output.

    `at` is when it was given, `received_at` when it came here; `replaced_at` is None for one that counts.
    """

    id: int
    prediction_id: str
    device: str
    module: str
    output: str
    value: Value
    weight: float
    at: float
    received_at: float
    author: str
    replaced_at: float | None
    state: str
    reason: str

    @property
    def order(self) -> tuple[float, int]:
        """The newest of several is the one with the largest."""
        return self.at, self.id

    def speaks_of(self, device: str, module: str) -> bool:
        return self.device in ("", device) and self.module in ("", module)


@dataclass(frozen=True)
class Place:
    """Where a label stands: a second one there is a correction."""

    prediction_id: str
    device: str
    module: str
    output: str

    @classmethod
    def of(cls, label: Label) -> Place:
        return cls(label.prediction_id, label.device, label.module, label.output)


async def current_labels(
    connection: AsyncConnection, prediction_ids: Collection[str], devices: Collection[str] | None = None
) -> dict[str, list[Label]]:
    """The labels that count, oldest first, of those predictions that have any; with `devices` those that may mean them.

    One with `device` or `module` set speaks of that one only (`Label.speaks_of`); of several for the same output the
    last counts. Labels in the state `unusable` are among them: they fit no sample, or more than one device's.
    """
    found: defaultdict[str, list[Label]] = defaultdict(list)
    wanted = sorted(set(prediction_ids))
    for start in range(0, len(wanted), _PIECE):
        piece = wanted[start : start + _PIECE]
        query = (
            select(labels)
            .where(among(labels.c.prediction_id, piece), labels.c.replaced_at.is_(None))
            .order_by(labels.c.at, labels.c.id)
        )
        if devices is not None:
            query = query.where(among(labels.c.device, {"", *devices}))
        for row in await connection.execute(query):
            found[row.prediction_id].append(label_of(row))
    return dict(found)


async def labelled(connection: AsyncConnection, prediction_ids: Iterable[str]) -> set[str]:
    """Which of them have a label."""
    wanted = set(prediction_ids)
    if not wanted:
        return set()
    query = select(labels.c.prediction_id).where(among(labels.c.prediction_id, wanted), labels.c.replaced_at.is_(None))
    return set((await connection.execute(query.distinct())).scalars())


def label_of(row: Row[Any]) -> Label:
    return msgspec.convert(row, Label, from_attributes=True)
