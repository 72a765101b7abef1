"""How strong the evidence is over the spans of the latest looks, all tests of a kind together. Pure.

Drift: each feature's distribution, and all inputs together. Quality: values missing or out of range, stillness,
errors, slow answers. Used by `verdict`, which says it in full, and by `finding`, which opens and resolves alerts.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np

from cloud_hub.monitoring.conditions import count_conditions, weigh_conditions
from cloud_hub.monitoring.evidence import WINDOWS, AlarmRate, FloatArray, IntArray
from cloud_hub.monitoring.joint import JointScan, weigh_joint
from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.look_series import LookSeries

Kind = Literal["drift", "quality"]
TOGETHER: Final = "inputs together"  # the name of the joint evidence, among those of features
Looks = LookSeries | IntArray  # counts alone: nothing is said of what they do not hold


def group_threshold(layout: Layout, rate: AlarmRate) -> float:
    """The one threshold for drift and quality of a group: all of its tests share the allowance."""
    together = 0 if layout.joint is None else 1
    return rate.threshold(3 * len(layout.features) + together + count_conditions(layout.numeric))


def strength(layout: Layout, looks: Looks, kind: Kind) -> FloatArray:
    """The strongest evidence that matters, per span of looks; 0 without looks."""
    series = as_series(looks)
    if not len(series):
        return np.zeros(len(WINDOWS))
    parts = _drift(layout, series) if kind == "drift" else _quality(layout, series)
    return np.asarray(np.max([np.zeros(len(WINDOWS)), *parts], axis=0))


def drift_by_name(layout: Layout, looks: Looks) -> dict[str, float]:
    """The strongest evidence that matters of each feature, and of all inputs TOGETHER: as `judge`, in less time."""
    series = as_series(looks)
    if not len(series) or not layout.features:
        return {}
    strongest = layout.drift_that_matters(series.counts, series.noise).max(axis=0).tolist()
    found = dict(zip((feature.name for feature in layout.features), strongest, strict=True))
    scan = joint_scan(layout, series)
    return found if scan is None else found | {TOGETHER: float(np.where(scan.matters, scan.evidence, 0.0).max())}


def detecting_window(layout: Layout, looks: Looks, kind: Kind, threshold: float) -> int:
    """Index of the shortest span of looks that alarms, -1 when none does."""
    return next((i for i, value in enumerate(strength(layout, looks, kind)) if value >= threshold), -1)


def calm_since(
    layout: Layout, looks: Looks, kind: Kind, threshold: float, window: int, looks_needed: int
) -> int | None:
    """Index of the first of the last `looks_needed` looks when each of them was calm, else None.

    Calm: no span up to the one that raised the alarm (`window`, an index) holds half the threshold. Longer spans
    still hold the past, so they are not asked.
    """
    series = as_series(looks)
    if len(series) < looks_needed:
        return None
    for end in range(len(series), len(series) - looks_needed, -1):
        if strength(layout, series.until(end), kind)[: window + 1].max() >= threshold / 2:
            return None
    return len(series) - looks_needed


def looks_since(layout: Layout, looks: Looks, index: int) -> int:
    """How many of the latest looks hold the most evidence of drift of a feature, -1 for all inputs together."""
    series = as_series(looks)
    if index >= 0:
        return layout.looks_since_change(series.counts, index, series.noise)
    scan = joint_scan(layout, series)
    return 1 if scan is None else min(WINDOWS[int(scan.evidence.argmax())], len(series))


def joint_scan(layout: Layout, series: LookSeries) -> JointScan | None:
    """None where the module has no joint features, or the looks or the reference hold none."""
    known = (
        layout.joint is not None
        and len(series)
        and not series.is_private
        and series.joint.shape[1:] == (1 + layout.joint.dimensions,)
    )
    if not known or layout.joint is None or (layout.is_live and layout.joint_reference is None):
        return None
    return weigh_joint(layout.joint, series.joint, layout.joint_reference)


def as_series(looks: Looks) -> LookSeries:
    return looks if isinstance(looks, LookSeries) else LookSeries.of_counts(looks)


def _drift(layout: Layout, series: LookSeries) -> list[FloatArray]:
    parts = [layout.drift_that_matters(series.counts, series.noise).max(axis=1)] if layout.features else []
    scan = joint_scan(layout, series)
    return parts if scan is None else [*parts, np.where(scan.matters, scan.evidence, 0.0)]


def _quality(layout: Layout, series: LookSeries) -> list[FloatArray]:
    parts = [layout.rates_that_matter(series.counts, series.noise).max(axis=1)] if layout.features else []
    return [*parts, *(np.where(found.matters, found.evidence, 0.0) for found in weigh_conditions(series))]
