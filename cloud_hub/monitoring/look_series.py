"""Looks of one group as arrays: what `looks` reads and the evidence is made of. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final

import numpy as np

from cloud_hub.monitoring.evidence import FloatArray, IntArray
from cloud_hub.monitoring.layout import Layout

MAX_MOMENT: Final = 2.0**30  # a window's sum is cut here, so that one wild value cannot overflow the look


def _none() -> IntArray:
    return np.zeros((0, 0), np.int64)


@dataclass(frozen=True)
class LookSeries:
    """Looks of one group, oldest first: counts are (looks, cells), moments (looks, two per numeric feature).

    What else was kept of each look, (0, 0) where it was not read: `joint` (looks, 1 + dimensions) has the rows and the
    sums in JOINT_TICK, `still` (looks, numeric features) in how many windows each stood still, `windows`, `rows`,
    `errors` and `refused` (looks,) how many there were, `latency` (looks, LATENCY_BINS) predictions per octave, `noise`
    (looks,) the variance, in rows squared, of what devices added to each cell to keep it private.
    """

    starts: tuple[float, ...]
    counts: IntArray
    moments: FloatArray
    joint: IntArray = field(default_factory=_none)
    still: IntArray = field(default_factory=_none)
    windows: IntArray = field(default_factory=_none)
    rows: IntArray = field(default_factory=_none)
    errors: IntArray = field(default_factory=_none)
    refused: IntArray = field(default_factory=_none)
    latency: IntArray = field(default_factory=_none)
    noise: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))

    @classmethod
    def empty(cls, layout: Layout) -> LookSeries:
        return cls((), np.zeros((0, layout.cells), np.int64), np.zeros((0, 2 * layout.numeric)))

    @classmethod
    def of_counts(cls, counts: IntArray) -> LookSeries:
        """Looks of which only the cells are known."""
        return cls(tuple(float(place) for place in range(len(counts))), counts, np.zeros((len(counts), 0)))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def is_private(self) -> bool:
        """Whether any of the looks holds noise."""
        return bool(self.noise.any())

    def until(self, count: int) -> LookSeries:
        """The first `count` looks."""
        return self._slice(slice(None, count))

    def since(self, start: float) -> LookSeries:
        """Those that start then or later."""
        return self._slice(slice(sum(one < start for one in self.starts), None))

    def _slice(self, part: slice) -> LookSeries:
        return LookSeries(**{f.name: getattr(self, f.name)[part] for f in fields(self)})
