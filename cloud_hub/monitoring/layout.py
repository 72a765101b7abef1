"""Where the cells of a reference profile lie, and both scans over looks that follow it: drift and rates. Pure.

Drift compares how the values that are there are distributed: bins, under, over, unknown. Whether a value is there at
all, and whether it is in range, are questions of data quality and are tested as rates of their own, upwards only: a
sensor that sends nothing has not drifted.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from cloud_hub.monitoring import noisy
from cloud_hub.monitoring.alternatives import LOG_PRIOR, RATE_LOG_PRIOR, alternatives, rises
from cloud_hub.monitoring.dispersion import dispersion
from cloud_hub.monitoring.effects import unbiased_psi
from cloud_hub.monitoring.evidence import WINDOWS, FloatArray, IntArray, Weights, merge_latest
from modules.windows import Categorical, Feature, Numeric, ReferenceProfile

# A change smaller than these is nobody's concern however sure it is: a mean moved by x sd has a PSI of about x * x.
LEAST_PSI = 0.0025
LEAST_RATE_RISE = 0.005
_ALIKE_STEP = 1.25
NO_NOISE = np.zeros(0)

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Scan:
    """Evidence per window of looks (rows) and test (columns), in nats; `matters` is false for changes too small.

    Rate tests stand as missing of feature 0, outside of feature 0, missing of feature 1, ... `dispersion` is how many
    rows of each span and feature say as much as one: see `dispersion`.
    """

    counts: IntArray
    drift: FloatArray
    drift_matters: BoolArray
    rates: FloatArray
    rates_matter: BoolArray
    dispersion: FloatArray

    @property
    def drift_that_matters(self) -> FloatArray:
        return np.where(self.drift_matters, self.drift, 0.0)

    @property
    def rates_that_matter(self) -> FloatArray:
        return np.where(self.rates_matter, self.rates, 0.0)


class Layout:
    """Built once per reference profile. Cells of a window are in the profile's order (`modules.windows`)."""

    def __init__(self, profile: ReferenceProfile) -> None:
        self.features: tuple[Feature, ...] = profile.features
        self.inputs = len(profile.inputs)
        sizes = [feature.cells for feature in self.features]
        self.starts: IntArray = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.cells = int(self.starts[-1])
        self.reference: IntArray = np.array([c for f in self.features for c in f.counts], np.int64)
        self.joint = profile.joint
        self.joint_reference: IntArray | None = None
        self.is_live = False  # whether the reference is of other rows than the training data
        parts = [start + _drift_cells(f) for start, f in zip(self.starts, self.features, strict=False)]
        self._drift_cells: IntArray = np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)
        self._drift_sizes = [len(part) for part in parts]
        self._drift_starts = _starts(self._drift_sizes)
        self._thirds: IntArray = np.array(
            [start + third for start, f in zip(self.starts, self.features, strict=False) for third in _thirds(f)],
            np.int64,
        )
        self._rate_starts = _starts([2] * (2 * len(self.features)))
        self._weighed: tuple[Weights, Weights] | None = None
        self._deflated: tuple[bytes, Weights] | None = None  # of the last dispersion of a live reference

    @property
    def numeric(self) -> int:
        """Number of features with moments."""
        return sum(isinstance(feature, Numeric) for feature in self.features)

    def against(self, reference: IntArray, joint: IntArray | None = None) -> Layout:
        """The same cells with other reference counts (cells,): those of a chosen period, a version, other devices.

        Their noise is in the evidence like that of training data. `joint` are the rows and sums of the same rows. No
        row may be in both the reference and the looks that are weighed against it. Raises ValueError when the counts
        do not fit the cells.
        """
        counts = np.asarray(reference, np.int64)
        if counts.shape != self.reference.shape or (counts < 0).any():
            raise ValueError(f"reference counts: expected {self.cells} of at least 0, got {counts.shape}")
        other = copy.copy(self)
        other.reference = counts
        other.joint_reference = joint
        other.is_live = True
        other._weighed = other._deflated = None
        return other

    def scan(self, looks: IntArray, noise: FloatArray = NO_NOISE) -> Scan:
        """Weigh the latest of `looks` (looks, cells), oldest first, merged in the spans of WINDOWS.

        `noise` (looks,) is the variance that privacy added to each cell; rates are not weighed in spans that hold any.
        """
        merged, spread, alike = self._merge(looks, noise)
        drift, drift_matters = self._weigh_drift(merged, spread, alike)
        rates, rates_matter = self._weigh_rates(merged, spread)
        return Scan(merged, drift, drift_matters, rates, rates_matter, alike)

    def drift_that_matters(self, looks: IntArray, noise: FloatArray = NO_NOISE) -> FloatArray:
        """That part of `scan`, in less time."""
        drift, matters = self._weigh_drift(*self._merge(looks, noise))
        return np.where(matters, drift, 0.0)

    def rates_that_matter(self, looks: IntArray, noise: FloatArray = NO_NOISE) -> FloatArray:
        """That part of `scan`, in less time."""
        rates, matter = self._weigh_rates(merge_latest(looks), _merge_noise(noise))
        return np.where(matter, rates, 0.0)

    def looks_since_change(self, looks: IntArray, feature: int, noise: FloatArray = NO_NOISE) -> int:
        """How many of the latest looks hold the most evidence of drift of one feature: the likeliest time of change."""
        found, start = self.drift_counts(looks, feature), np.zeros(1, np.int64)
        spans = np.cumsum(found[::-1], axis=0)
        if noise.any():
            before = self.drift_counts(self.reference, feature)
            evidence = noisy.evidence(spans, before, start, np.cumsum(noise[::-1]))
        else:
            evidence = self._feature_weights(feature).evidence(spans / dispersion(found, start)[-1])
        return int(evidence[:, 0].argmax()) + 1

    def drift_counts(self, counts: IntArray, feature: int) -> IntArray:
        """The feature's cells of `counts` without missing, in order of their values."""
        return np.asarray(counts[..., self.starts[feature] + _drift_cells(self.features[feature])])

    def rate_counts(self, counts: IntArray) -> IntArray:
        """Pairs (without, with) per rate test: (tests, 2)."""
        return self._rates(counts).reshape(-1, 2)

    def _merge(self, looks: IntArray, noise: FloatArray) -> tuple[IntArray, FloatArray, FloatArray]:
        """Per span the counts and the noise of each cell; per span and feature how many rows say as much as one."""
        private = noise.any()
        alike = (
            np.ones((len(WINDOWS), len(self.features)))
            if private
            else dispersion(looks[:, self._drift_cells], self._drift_starts)
        )
        return merge_latest(looks), _merge_noise(noise), alike

    def _weigh_drift(self, merged: IntArray, spread: FloatArray, alike: FloatArray) -> tuple[FloatArray, BoolArray]:
        now, before = merged[:, self._drift_cells], self.reference[self._drift_cells]
        plain = np.maximum(now, 0)
        evidence = self._drift_weights(alike[-1]).evidence(plain / np.repeat(alike, self._drift_sizes, axis=1))
        size = unbiased_psi(plain, before, self._drift_starts)
        if (private := spread > 0).any():
            evidence[private] = noisy.evidence(now[private], before, self._drift_starts, spread[private])
            size[private] = noisy.psi(now[private], before, self._drift_starts, spread[private])
        return evidence, size >= LEAST_PSI

    def _weigh_rates(self, merged: IntArray, spread: FloatArray) -> tuple[FloatArray, BoolArray]:
        now, before = self._rates(np.maximum(merged, 0)), self._rates(self.reference)
        evidence = self._weights[1].evidence(now.astype(np.float64))
        evidence[spread > 0] = 0.0
        return evidence, share_of_second(now) - share_of_second(before) >= LEAST_RATE_RISE

    def _drift_weights(self, alike: FloatArray) -> Weights:
        """Where rows hang together, those of a live reference do so too; training rows are taken as they are."""
        steps = np.ceil(np.log(alike) / math.log(_ALIKE_STEP) - 0.5) * self.is_live
        if not steps.any():
            return self._weights[0]
        key = steps.tobytes()
        if self._deflated is None or self._deflated[0] != key:
            self._deflated = (key, self._weigh_against(_ALIKE_STEP**steps))
        return self._deflated[1]

    def _weigh_against(self, alike: FloatArray) -> Weights:
        counts = [self.drift_counts(self.reference, index) / rows for index, rows in enumerate(alike.tolist())]
        changed = [self._alternatives(index, part) for index, part in enumerate(counts)]
        return Weights(1.0 + np.concatenate(counts), np.concatenate(changed, axis=1), LOG_PRIOR, self._drift_starts)

    @property
    def _weights(self) -> tuple[Weights, Weights]:
        """Of drift and of rates; made when first asked for, since many layouts only check the size of windows."""
        if self._weighed is None:
            rates = self._rates(self.reference).astype(np.float64)
            self._weighed = (
                self._weigh_against(np.ones(len(self.features))),
                Weights(1.0 + rates, rises(rates), RATE_LOG_PRIOR, self._rate_starts),
            )
        return self._weighed

    def _feature_weights(self, feature: int) -> Weights:
        counts = self.drift_counts(self.reference, feature).astype(np.float64)
        return Weights(1.0 + counts, self._alternatives(feature, counts), LOG_PRIOR, np.zeros(1, np.int64))

    def _alternatives(self, feature: int, counts: FloatArray) -> FloatArray:
        return alternatives(counts, isinstance(self.features[feature], Numeric))

    def _rates(self, counts: IntArray) -> IntArray:
        """Per feature: (present, missing), (inside, outside)."""
        thirds = np.add.reduceat(counts, self._thirds, axis=-1)
        inside, outside, missing = thirds[..., 0::3], thirds[..., 1::3], thirds[..., 2::3]
        pairs = np.stack([inside + outside, missing, inside, outside], axis=-1)
        return np.asarray(pairs.reshape(*counts.shape[:-1], -1))


def _merge_noise(noise: FloatArray) -> FloatArray:
    """Of the spans of WINDOWS."""
    return np.asarray(merge_latest(noise[:, np.newaxis])[:, 0]) if noise.any() else np.zeros(len(WINDOWS))


def share_of_second(pairs: IntArray) -> FloatArray:
    """Of (without, with) pairs in a row, the share of the second; 0 without rows."""
    without, holding = pairs[..., 0::2], pairs[..., 1::2]
    return np.asarray(holding / np.maximum(without + holding, 1))


def cell_names(feature: Feature) -> tuple[str, ...]:
    """What each cell of `Layout.drift_counts` holds, in words."""
    if isinstance(feature, Categorical):
        return (*feature.categories, "unknown")
    edges = [f"{edge:.6g}" for edge in feature.edges]
    inner = (f"{low} to {high}" for low, high in pairwise(edges))
    return (f"below {edges[0]}", *inner, f"above {edges[-1]}")


def _drift_cells(feature: Feature) -> IntArray:
    """Positions of the cells that drift looks at, ascending by value: under, bins, over; or categories, unknown."""
    if isinstance(feature, Numeric):
        return np.array([feature.bins, *range(feature.bins), feature.bins + 1], np.int64)
    return np.arange(feature.cells - 1)


def _thirds(feature: Feature) -> tuple[int, int, int]:
    """First cells of: inside, outside, missing."""
    return (0, feature.bins, feature.cells - 1) if isinstance(feature, Numeric) else (0, *_last_two(feature))


def _last_two(feature: Categorical) -> tuple[int, int]:
    return feature.cells - 2, feature.cells - 1


def _starts(sizes: list[int]) -> IntArray:
    return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) if sizes else np.zeros(0, np.int64)
