"""What counts are compared with: the training data, or something else that somebody chose. Pure.

    training             what the model was trained on (the signed reference profile)
    period:FROM..TO      what was counted between two times (ISO 8601, UTC without an offset)
    version:N            what was counted of another version of the module
    fleet                what all other devices counted in the same looks: which one is odd?

Where the chosen reference has no rows of a feature, its training rows stand in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, Literal, TypeVar

import msgspec
import numpy as np

from cloud_hub.errors import BadRequest
from cloud_hub.monitoring.evidence import WINDOWS, FloatArray, IntArray
from cloud_hub.monitoring.layout import NO_NOISE, Layout, Scan

_Found = TypeVar("_Found")


class Reference(msgspec.Struct, frozen=True):
    """`start` and `end` are seconds since the epoch and belong to a period, `version` to a version."""

    kind: Literal["training", "period", "version", "fleet"] = "training"
    start: float = 0.0
    end: float = 0.0
    version: int = 0

    def __str__(self) -> str:
        if self.kind == "period":
            return f"period:{_written(self.start)}..{_written(self.end)}"
        return f"version:{self.version}" if self.kind == "version" else self.kind


TRAINING: Final = Reference()


def parse(text: str) -> Reference:
    """Raises BadRequest `reference-invalid`."""
    kind, _, rest = text.partition(":")
    if kind == "training" and not rest:
        return TRAINING
    if kind == "fleet" and not rest:
        return Reference("fleet")
    if kind == "version" and rest.isascii() and rest.isdigit() and 0 < int(rest[:10]) < 10**9:
        return Reference("version", version=int(rest))
    if kind == "period" and ".." in rest:
        start, end = (_time(part) for part in rest.split("..", 1))
        if start < end:
            return Reference("period", start, end)
    raise BadRequest(
        "reference-invalid",
        f"reference: expected training, period:FROM..TO, version:N or fleet, got {text[:80]!r}",
    )


def filled(layout: Layout, counts: IntArray) -> IntArray:
    """`counts` per cell, with the training rows of features of which there are none."""
    rows = np.add.reduceat(counts, layout.starts[:-1]) if layout.cells else counts
    missing = np.repeat(rows == 0, np.diff(layout.starts))
    return np.where(missing, layout.reference, counts)


def matched(layout: Layout, other: Layout, counts: IntArray) -> IntArray:
    """Counts of another layout's cells in those of this one: of features with the same name and cells; 0 elsewhere."""
    found = np.zeros(layout.cells, np.int64)
    places = {_cells_of(feature): place for place, feature in enumerate(other.features)}
    for place, feature in enumerate(layout.features):
        source = places.get(_cells_of(feature))
        if source is not None:
            found[layout.starts[place] : layout.starts[place + 1]] = counts[
                other.starts[source] : other.starts[source + 1]
            ]
    return found


class BesideOthers(Layout):
    """A layout whose reference is what other devices counted in the same looks: each span has a reference of its own.

    So what changes for all, such as day and night, is not held against one. `others` (looks, cells) go with the looks
    that are weighed, from the oldest on.
    """

    def __init__(self, base: Layout, others: IntArray) -> None:
        self.__dict__.update(vars(base.against(filled(base, others.sum(axis=0)))))
        self._base = base
        self._others = others

    def scan(self, looks: IntArray, noise: FloatArray = NO_NOISE) -> Scan:
        """As of a Layout."""
        scans: list[Scan] = self._each(looks, noise, lambda layout, *span: layout.scan(*span))
        parts = ("counts", "drift", "drift_matters", "rates", "rates_matter")
        rows = {name: np.stack([getattr(scan, name)[row] for row, scan in enumerate(scans)]) for name in parts}
        return replace(scans[-1], **rows)

    def drift_that_matters(self, looks: IntArray, noise: FloatArray = NO_NOISE) -> FloatArray:
        """As of a Layout."""
        found = self._each(looks, noise, lambda layout, *span: layout.drift_that_matters(*span))
        return np.stack([matrix[row] for row, matrix in enumerate(found)])

    def rates_that_matter(self, looks: IntArray, noise: FloatArray = NO_NOISE) -> FloatArray:
        """As of a Layout."""
        found = self._each(looks, noise, lambda layout, *span: layout.rates_that_matter(*span))
        return np.stack([matrix[row] for row, matrix in enumerate(found)])

    def _each(
        self, looks: IntArray, noise: FloatArray, weigh: Callable[[Layout, IntArray, FloatArray], _Found]
    ) -> list[_Found]:
        """What is found in each span of looks against the others' in the same."""
        found: dict[int, _Found] = {}
        for length in {min(span, len(looks)) for span in WINDOWS}:
            others = self._others[: len(looks)][-length:].sum(axis=0)
            found[length] = weigh(self._base.against(filled(self._base, others)), looks[-length:], noise[-length:])
        return [found[min(span, len(looks))] for span in WINDOWS]


def _cells_of(feature: object) -> bytes:
    """What must be equal for counts to be comparable."""
    raw = msgspec.to_builtins(feature)
    return msgspec.json.encode({key: raw[key] for key in ("name", "edges", "categories") if key in raw})


def _time(text: str) -> float:
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise BadRequest(
            "reference-invalid", f"reference: expected a time such as 2026-11-01T06:00, got {text[:40]!r}"
        ) from error
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


def _written(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")
