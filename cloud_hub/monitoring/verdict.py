"""What the evidence says in words and numbers: one Verdict per group of looks. Pure.

The values here are what the API, the alerts and the command line show.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
import numpy as np

from cloud_hub.monitoring import noisy
from cloud_hub.monitoring.conditions import Condition, weigh_conditions
from cloud_hub.monitoring.effects import Effect, IntArray, effect
from cloud_hub.monitoring.evidence import WINDOWS, AlarmRate
from cloud_hub.monitoring.joint import inputs_behind
from cloud_hub.monitoring.layout import Layout, Scan, cell_names
from cloud_hub.monitoring.look_series import MAX_MOMENT as MAX_MOMENT
from cloud_hub.monitoring.look_series import LookSeries as LookSeries
from cloud_hub.monitoring.strengths import TOGETHER, joint_scan
from cloud_hub.monitoring.strengths import Kind as Kind
from cloud_hub.monitoring.strengths import calm_since as calm_since
from cloud_hub.monitoring.strengths import detecting_window as detecting_window
from cloud_hub.monitoring.strengths import group_threshold as group_threshold
from cloud_hub.monitoring.strengths import looks_since as looks_since
from cloud_hub.monitoring.strengths import strength as strength
from modules.windows import Categorical, Numeric

PREDICTIONS: Final = "predictions"  # errors and slow answers are of no feature

Problem = Literal["missing", "outside", "unknown", "still", "errors", "slow"]


class FeatureEvidence(msgspec.Struct, frozen=True):
    """One feature: the evidence (nats) in the span of looks where it is largest, and how large the change is.

    `index` is the feature's place in the reference profile; -1 is TOGETHER, all inputs at once: there, `distance` is
    how far the joint features' means moved (in standard deviations of a row, less what chance moves), and `inputs`
    names those that seem to be behind it, likeliest first.

    `current` and `reference` count rows per cell, as named in `cells`. `mean_shift` is in standard deviations of the
    training data, null for categories; one wild value moves it, so nothing is decided on it. `dispersion` is how many
    rows were found to say as much as one (1: independent). For `psi`, `js`, `ks`, `w1`, `p` see `effects.Effect`.
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
    w1: float | None = None
    p: float | None = None
    dispersion: float = 1.0
    distance: float | None = None
    inputs: tuple[str, ...] = ()


class RateEvidence(msgspec.Struct, frozen=True):
    """How often something is wrong, against before: `problem` of the feature `name`, or of all PREDICTIONS.

    missing, outside (the range of the training data), unknown (a category) are held against the reference; still,
    errors, slow against the group's own looks before: see `conditions`. `rows` are windows for still.
    """

    name: str
    problem: Problem
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


def judge(layout: Layout, looks: LookSeries, rate: AlarmRate) -> Verdict:
    """Weigh everything and say it in full."""
    if not len(looks):
        return Verdict((), ())
    threshold = group_threshold(layout, rate)
    drift: list[FeatureEvidence] = []
    rates = [_condition(layout, looks, found, threshold) for found in weigh_conditions(looks) if found.matters.any()]
    if layout.features:
        scan = layout.scan(looks.counts, looks.noise)
        drift += _features(layout, looks, scan, threshold) + _together(layout, looks, threshold)
        rates += _rates(layout, looks, scan, threshold)
    return Verdict(
        tuple(sorted(drift, key=lambda item: (-item.alarm, -item.log_bf, item.name))),
        tuple(sorted(rates, key=lambda item: (-item.alarm, -item.log_bf, item.name))),
    )


def _features(layout: Layout, looks: LookSeries, scan: Scan, threshold: float) -> list[FeatureEvidence]:
    that_matters = scan.drift_that_matters
    best = np.where(that_matters.any(axis=0), that_matters.argmax(axis=0), scan.drift.argmax(axis=0))
    return [_feature(layout, looks, scan, threshold, index, int(best[index])) for index in range(len(layout.features))]


def _feature(
    layout: Layout, looks: LookSeries, scan: Scan, threshold: float, index: int, window: int
) -> FeatureEvidence:
    feature = layout.features[index]
    now = layout.drift_counts(scan.counts[window], index)
    before = layout.drift_counts(layout.reference, index)
    merged = min(WINDOWS[window], len(looks))
    size = _effect(now, before, float(looks.noise[-merged:].sum()))
    ordered = isinstance(feature, Numeric)
    return FeatureEvidence(
        index=index,
        name=feature.name,
        role="input" if index < layout.inputs else "output",
        log_bf=float(scan.drift[window, index]),
        threshold=threshold,
        alarm=bool(scan.drift_that_matters[window, index] >= threshold),
        looks=merged,
        rows=max(int(now.sum()), 0),
        psi=size.psi,
        js=size.js,
        ks=size.ks if ordered else None,
        mean_shift=_mean_shift(layout, looks, index, merged, int(now.sum())),
        cells=cell_names(feature),
        reference=tuple(before.tolist()),
        current=tuple(now.tolist()),
        w1=size.w1 if ordered else None,
        p=size.p,
        dispersion=float(scan.dispersion[window, index]),
    )


def _effect(now: IntArray, before: IntArray, noise: float) -> Effect:
    """Private counts may be below zero: distances take those for none, and PSI is the one that knows of the noise."""
    found = effect(np.maximum(now, 0), before)
    if not noise:
        return found
    psi = noisy.psi(now[np.newaxis], before, np.zeros(1, np.int64), np.array([noise]))
    return msgspec.structs.replace(found, psi=float(psi[0, 0]), p=1.0)


def _together(layout: Layout, looks: LookSeries, threshold: float) -> list[FeatureEvidence]:
    scan = joint_scan(layout, looks)
    if scan is None or layout.joint is None:
        return []
    that_matters = np.where(scan.matters, scan.evidence, 0.0)
    window = int(that_matters.argmax() if that_matters.any() else scan.evidence.argmax())
    names = tuple(feature.name for feature in layout.features)
    return [
        FeatureEvidence(
            index=-1,
            name=TOGETHER,
            role="input",
            log_bf=float(scan.evidence[window]),
            threshold=threshold,
            alarm=bool(that_matters[window] >= threshold),
            looks=min(WINDOWS[window], len(looks)),
            rows=int(scan.rows[window]),
            psi=0.0,
            js=0.0,
            ks=None,
            mean_shift=None,
            cells=(),
            reference=(),
            current=(),
            dispersion=float(scan.dispersion[window]),
            distance=float(scan.distance[window]),
            inputs=inputs_behind(layout.joint, names, scan.means[window]),
        )
    ]


def _mean_shift(layout: Layout, looks: LookSeries, index: int, merged: int, rows: int) -> float | None:
    if not isinstance(layout.features[index], Numeric) or not rows or looks.noise[-merged:].any():
        return None
    place = 2 * sum(isinstance(feature, Numeric) for feature in layout.features[:index])
    sums, squares = looks.moments[-merged:, place], looks.moments[-merged:, place + 1]
    if (squares >= MAX_MOMENT).any():
        return None  # an infinite value, or one that might as well be, was cut: no mean is better than a made-up one
    return float(sums.sum() / rows)


def _rates(layout: Layout, looks: LookSeries, scan: Scan, threshold: float) -> list[RateEvidence]:
    that_matters = scan.rates_that_matter
    before = layout.rate_counts(layout.reference)
    found = []
    for test in np.flatnonzero(scan.rates_matter.any(axis=0)).tolist():
        window = int(that_matters[:, test].argmax())
        found.append(
            _rate(
                layout.features[test // 2].name,
                _problem(layout, test),
                (float(scan.rates[window, test]), float(that_matters[window, test]), threshold),
                min(WINDOWS[window], len(looks)),
                layout.rate_counts(scan.counts[window])[test].tolist(),
                before[test].tolist(),
            )
        )
    return found


def _condition(layout: Layout, looks: LookSeries, found: Condition, threshold: float) -> RateEvidence:
    that_matters = np.where(found.matters, found.evidence, 0.0)
    window = int(that_matters.argmax())
    numeric = [feature.name for feature in layout.features if isinstance(feature, Numeric)]
    return _rate(
        PREDICTIONS if found.feature < 0 else numeric[found.feature],
        found.problem,
        (float(found.evidence[window]), float(that_matters[window]), threshold),
        min(WINDOWS[window], len(looks)),
        found.now[window].tolist(),
        found.before[window].tolist(),
    )


def _rate(
    name: str, problem: Problem, weighed: tuple[float, float, float], looks: int, now: list[int], before: list[int]
) -> RateEvidence:
    """`weighed`: evidence, evidence that matters, threshold. `now` and `before`: (good, bad)."""
    evidence, that_matters, threshold = weighed
    return RateEvidence(
        name=name,
        problem=problem,
        log_bf=evidence,
        threshold=threshold,
        alarm=that_matters >= threshold,
        looks=looks,
        rows=sum(now),
        rate=now[1] / max(sum(now), 1),
        reference_rate=before[1] / max(sum(before), 1),
    )


def _problem(layout: Layout, test: int) -> Problem:
    if not test % 2:
        return "missing"
    return "unknown" if isinstance(layout.features[test // 2], Categorical) else "outside"
