"""The features of several inputs together: one function for the training sample and for the rows on a device.

Their meaning, and where they come from, stands at `modules.windows.Joint`. Imports NumPy, so the agent's parent does
not import this file. Called by `agent.watching` and `cloud_hub.joint_reference`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from modules.errors import WindowError
from modules.windows import JOINT_CUT, Joint, Numeric, ReferenceProfile

Array = np.ndarray[Any, np.dtype[Any]]
FLOAT32 = np.dtype("<f4")


class JointMap:
    """Rows of the joint's inputs to bounded features, and sums of these to whitened sums."""

    def __init__(self, profile: ReferenceProfile) -> None:
        """Raises WindowError where there are no joint features, or of numbers that are none."""
        joint = profile.joint
        if joint is None:
            raise WindowError("reference profile: expected joint features, got none")
        self.inputs = _inputs(joint, profile)
        self.dimensions = size = joint.dimensions
        width = len(joint.inputs)
        self._frequencies = _matrix("frequencies", joint.frequencies, size, width).T.copy()
        self._offsets = _matrix("offsets", joint.offsets, 1, size)[0]
        self._mean = _matrix("mean", joint.mean, 1, size)[0].astype(np.float64)
        self._whiten = _matrix("whiten", joint.whiten, size, size).astype(np.float64)
        self._centres = np.array([feature.mean for feature in self.inputs])
        self._scales = np.array([feature.scale for feature in self.inputs])

    def sums(self, values: Array) -> tuple[int, Array]:
        """Of (rows, inputs): how many rows had all inputs, and the sum of their features as float64."""
        features = raw_features(values, self._centres, self._scales, self._frequencies, self._offsets)
        total = features.sum(axis=0, dtype=np.float64)
        if not math.isnan(total.sum()):
            return len(features), total
        known = features[~np.isnan(values.astype(np.float64, copy=False)).any(axis=1)]
        return len(known), known.sum(axis=0, dtype=np.float64)

    def whitened(self, rows: int, total: Array) -> list[float]:
        """In standard deviations of one training row."""
        white: list[float] = (self._whiten @ (total - rows * self._mean)).tolist()
        return white


def raw_features(values: Array, centres: Array, scales: Array, frequencies: Array, offsets: Array) -> Array:
    """The cosines of the cut and scaled values; `frequencies` is (inputs, dimensions)."""
    with np.errstate(over="ignore", invalid="ignore"):
        cut = np.subtract(values, centres, dtype=np.float64)
        cut /= scales
        np.minimum(cut, JOINT_CUT, out=cut)  # both keep NaN
        np.maximum(cut, -JOINT_CUT, out=cut)
        phases = cut.astype(np.float32) @ frequencies
        phases += offsets
        return np.asarray(np.cos(phases, out=phases))


def _inputs(joint: Joint, profile: ReferenceProfile) -> list[Numeric]:
    """All numeric, or the profile could not be."""
    found = (profile.inputs[place] for place in joint.inputs)
    return [feature for feature in found if isinstance(feature, Numeric)]


def _matrix(name: str, data: bytes, rows: int, columns: int) -> Array:
    found = np.frombuffer(data, FLOAT32).reshape(rows, columns).astype(np.float32)
    if not np.isfinite(found).all():
        raise WindowError(f"joint features: expected finite {name}")
    return found
