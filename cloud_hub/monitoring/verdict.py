"""What the evidence says in words and numbers: one Verdict per group of looks. Pure.

The values here are what the API, the alerts and the command line show.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

import msgspec
import numpy as np

from cloud_hub.monitoring.effects import effect
from cloud_hub.monitoring.evidence import WINDOWS, AlarmRate, FloatArray, IntArray
from cloud_hub.monitoring.layout import Layout, Scan, cell_names
from modules.windows import Numeric

MAX_MOMENT: Final = 2.0**30  # a window's sum is cut here, so that one wild value cannot overflow the look

Kind = Literal["drift", "quality"]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]


class FeatureEvidence(msgspec.Struct, frozen=True):
    """One feature: the evidence (nats) in the window of looks where it is largest, and how large the change is.

    `index` is the feature's place in the reference profile.

    `current` and `reference` count rows per cell, as named in `cells`. `mean_shift` is in standard deviations of the
    training data, null for categories; one wild value moves it, so nothing is decided on it.
    """

    index: int
    name: str
    role: Literal["input", "output"]
    log_bf: float
    threshold: float
    alarm: bool
    looks: int
    rows: int
    psi: float
    js: float
    ks: float | None
    mean_shift: float | None
    cells: tuple[str, ...]
    reference: tuple[int, ...]
    current: tuple[int, ...]


class RateEvidence(msgspec.Struct, frozen=True):
    """How often a feature is missing, or outside what the training data held (range or categories), against then."""

    name: str
    problem: Literal["missing", "outside"]
    log_bf: float
    threshold: float
    alarm: bool
    looks: int
    rows: int
    rate: float
    reference_rate: float


class Verdict(msgspec.Struct, frozen=True):
    """All features and rates of one group, alarms and strongest evidence first.

    An alarm needs evidence above the threshold and a change that matters.
    """

    drift: tuple[FeatureEvidence, ...]
    rates: tuple[RateEvidence, ...]

    @property
    def drifted(self) -> tuple[FeatureEvidence, ...]:
        return tuple(feature for feature in self.drift if feature.alarm)

    @property
    def poor(self) -> tuple[RateEvidence, ...]:
        return tuple(rate for rate in self.rates if rate.alarm)


def _none() -> IntArray:
    return np.zeros((0, 0), np.int64)


@dataclass(frozen=True)
class LookSeries:
    """Looks of one group, oldest first: counts are (looks, cells), moments (looks, two per numeric feature).

    What else was kept of each look, (0, 0) where it was not read: `joint` (looks, 1 + dimensions) has the rows and the
    sums in JOINT_TICK, `still` (looks, numeric features) in how many windows each stood still, `windows`, `rows`,
    `errors` and `refused` (looks,) how many there were, `latency` (looks, LATENCY_BINS) predictions per octave.
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

    @classmethod
    def empty(cls, layout: Layout) -> LookSeries:
        return cls((), np.zeros((0, layout.cells), np.int64), np.zeros((0, 2 * layout.numeric)))

    def __len__(self) -> int:
        return len(self.starts)

    def until(self, count: int) -> LookSeries:
        """The first `count` looks."""
        parts = {f.name: getattr(self, f.name)[:count] for f in fields(self)}
        return LookSeries(**parts)


def judge(layout: Layout, looks: LookSeries, rate: AlarmRate) -> Verdict:
    """Weigh everything and say it in full."""
    if not len(looks) or not layout.features:
        return Verdict((), ())
    scan = layout.scan(looks.counts)
    threshold = group_threshold(layout, rate)
    return Verdict(_features(layout, looks, scan, threshold), _rates(layout, looks, scan, threshold))


def group_threshold(layout: Layout, rate: AlarmRate) -> float:
    """The one threshold for drift and quality of a group: three tests per feature share the allowance."""
    return rate.threshold(3 * len(layout.features))


def strength(layout: Layout, looks: IntArray, kind: Kind) -> FloatArray:
    """The strongest evidence that matters, per window of looks; 0 without looks."""
    if not len(looks) or not layout.features:
        return np.zeros(len(WINDOWS))
    matrix = layout.drift_that_matters(looks) if kind == "drift" else layout.rates_that_matter(looks)
    return np.asarray(matrix.max(axis=1))


def detecting_window(layout: Layout, looks: IntArray, kind: Kind, threshold: float) -> int:
    """Index of the shortest window of looks that alarms, -1 when none does."""
    return next((i for i, value in enumerate(strength(layout, looks, kind)) if value >= threshold), -1)


def calm_since(
    layout: Layout, looks: IntArray, kind: Kind, threshold: float, window: int, looks_needed: int
) -> int | None:
    """Index of the first of the last `looks_needed` looks when each of them was calm, else None.

    Calm: no window up to the one that raised the alarm (`window`, an index) holds half the threshold. Longer windows
    still hold the past, so they are not asked.
    """
    if len(looks) < looks_needed:
        return None
    for end in range(len(looks), len(looks) - looks_needed, -1):
        if strength(layout, looks[:end], kind)[: window + 1].max() >= threshold / 2:
            return None
    return len(looks) - looks_needed


def _features(layout: Layout, looks: LookSeries, scan: Scan, threshold: float) -> tuple[FeatureEvidence, ...]:
    that_matters = scan.drift_that_matters
    best = np.where(that_matters.any(axis=0), that_matters.argmax(axis=0), scan.drift.argmax(axis=0))
    inputs = layout.inputs
    found = []
    for index, feature in enumerate(layout.features):
        window = int(best[index])
        now = layout.drift_counts(scan.counts[window], index)
        before = layout.drift_counts(layout.reference, index)
        size = effect(now, before)
        merged = min(WINDOWS[window], len(looks))
        found.append(
            FeatureEvidence(
                index=index,
                name=feature.name,
                role="input" if index < inputs else "output",
                log_bf=float(scan.drift[window, index]),
                threshold=threshold,
                alarm=bool(that_matters[window, index] >= threshold),
                looks=merged,
                rows=int(now.sum()),
                psi=size.psi,
                js=size.js,
                ks=size.ks if isinstance(feature, Numeric) else None,
                mean_shift=_mean_shift(layout, looks, index, merged, int(now.sum())),
                cells=cell_names(feature),
                reference=tuple(before.tolist()),
                current=tuple(now.tolist()),
            )
        )
    return tuple(sorted(found, key=lambda item: (-item.alarm, -item.log_bf, item.name)))


def _mean_shift(layout: Layout, looks: LookSeries, index: int, merged: int, rows: int) -> float | None:
    if not isinstance(layout.features[index], Numeric) or not rows:
        return None
    place = 2 * sum(isinstance(feature, Numeric) for feature in layout.features[:index])
    sums, squares = looks.moments[-merged:, place], looks.moments[-merged:, place + 1]
    if (squares >= MAX_MOMENT).any():
        return None  # an infinite value, or one that might as well be, was cut: no mean is better than a made-up one
    return float(sums.sum() / rows)


def _rates(layout: Layout, looks: LookSeries, scan: Scan, threshold: float) -> tuple[RateEvidence, ...]:
    that_matters = scan.rates_that_matter
    before = layout.rate_counts(layout.reference)
    found = []
    for test in np.flatnonzero(scan.rates_matter.any(axis=0)).tolist():
        window = int(that_matters[:, test].argmax())
        without, holding = layout.rate_counts(scan.counts[window])[test].tolist()
        was_without, was_holding = before[test].tolist()
        found.append(
            RateEvidence(
                name=layout.features[test // 2].name,
                problem="outside" if test % 2 else "missing",
                log_bf=float(scan.rates[window, test]),
                threshold=threshold,
                alarm=bool(that_matters[window, test] >= threshold),
                looks=min(WINDOWS[window], len(looks)),
                rows=without + holding,
                rate=holding / max(without + holding, 1),
                reference_rate=was_holding / max(was_without + was_holding, 1),
            )
        )
    return tuple(sorted(found, key=lambda item: (-item.alarm, -item.log_bf, item.name)))
