"""What one version did on one device in one look, as numbers that can be compared: rates, speed, answers. Pure.

A measure is a name, a value and the rows that it is of. Both versions' measures have the same names where they speak of
the same thing: classes by their text, numbers in the unit of the model's answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.tallies import TICK, Tally
from modules.windows import LATENCY_BINS, Categorical, Numeric

Role = Literal["health", "quality", "answers"]
MAX_CLASSES: Final = 16  # of one output that are compared one by one
MAX_Z: Final = 8.0
ERRORS, REFUSED, LATENCY = "errors", "refused", "latency"
QUALITY: Final = "error of "  # and the output: of labelled predictions

# Middle of each octave of microseconds, in octaves.
_OCTAVES = np.arange(LATENCY_BINS) + 0.5


@dataclass(frozen=True)
class Measure:
    name: str
    value: float
    rows: int


def role_of(name: str) -> Role:
    """Health and quality can be better or worse; answers can only differ."""
    if name in (ERRORS, REFUSED, LATENCY):
        return "health"
    return "quality" if name.startswith(QUALITY) else "answers"


def measures(tally: Tally, layout: Layout) -> Iterator[Measure]:
    """Of one look of one version on one device.

    `errors` and `refused` are shares of requests, `latency` is the mean of log2 microseconds: 1 more is twice as slow.
    """
    asked = tally.rows + tally.errors + tally.refused
    if asked:
        yield Measure(ERRORS, tally.errors / asked, asked)
        yield Measure(REFUSED, tally.refused / asked, asked)
    if timed := int(tally.latency.sum()):
        yield Measure(LATENCY, float((tally.latency * _OCTAVES).sum() / timed), timed)
    yield from _answers(tally, layout)


def _answers(tally: Tally, layout: Layout) -> Iterator[Measure]:
    """Shares of classes, means of numbers. A private look has no moments, and counts that may be below zero."""
    place = 0
    for index, feature in enumerate(layout.features):
        if isinstance(feature, Categorical):
            if index >= layout.inputs:
                yield from _shares(tally, layout, index, feature)
            continue
        if index >= layout.inputs and len(tally.moments):
            yield from _mean(tally, layout, index, feature, place)
        place += 1


def _shares(tally: Tally, layout: Layout, index: int, feature: Categorical) -> Iterator[Measure]:
    counts = tally.counts[layout.starts[index] : layout.starts[index] + len(feature.categories) + 1]
    rows = int(counts.sum())
    if rows > 0:
        for category, count in list(zip(feature.categories, counts.tolist(), strict=False))[:MAX_CLASSES]:
            yield Measure(f"{feature.name}={category}", count / rows, rows)


def _mean(tally: Tally, layout: Layout, index: int, feature: Numeric, place: int) -> Iterator[Measure]:
    missing = int(tally.counts[layout.starts[index] + feature.cells - 1])
    rows = tally.rows - missing
    if rows > 0:
        # One wild value must not decide: a look whose mean lies further out says no more than that it lies far out.
        z = min(max(float(tally.moments[2 * place]) * TICK / rows, -MAX_Z), MAX_Z)
        yield Measure(feature.name, feature.mean + z * feature.scale, rows)
