"""Chooses and whitens the joint features of a training sample: what `modules.windows.Joint` says, made of data.

Each feature looks at a few inputs, so that a change of how two of them go together moves it far; together they cover
all. Pure; called by `cloud_hub.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from modules.joint import FLOAT32, raw_features
from modules.windows import JOINT_MOST, Joint, Numeric

Array = np.ndarray[Any, np.dtype[Any]]

MAX_INPUTS = 64
DIMENSIONS = (8, 16, 24, 32, 48, 64)
ROWS_PER_DIMENSION = 20  # fewer, and the whitening is more of chance than of the data
LOOKS_AT = 4  # inputs per feature
MAX_MISSING = 0.1  # share of rows: a row with one missing input does not count at all
WEIGHT = 0.5  # typical frequency: with LOOKS_AT inputs of variance 1 the phase has variance 1, too
ODD_EACH = 8  # one of so many features is a sine, for changes that leave all even moments as they were
_LEAST_VARIANCE = 0.05  # of a direction, as a share of the mean one: less would be blown up by a few odd rows
_SEED = 41


def joint_features(features: Sequence[tuple[int, Numeric, Array]]) -> Joint | None:
    """Of numeric inputs with their places and training values; None where they are fewer than two, or too few rows."""
    chosen = _spread([one for one in features if _is_fit(one[2])])
    if len(chosen) < 2:
        return None
    values = np.stack([column.astype(np.float64) for _, _, column in chosen], axis=1)
    values = values[~np.isnan(values).any(axis=1)]
    size = _dimensions(len(chosen), len(values))
    if not size:
        return None
    centres = np.array([feature.mean for _, feature, _ in chosen])
    scales = np.array([feature.scale for _, feature, _ in chosen])
    frequencies, offsets = _drawn(size, len(chosen))
    raw = raw_features(values, centres, scales, frequencies.T, offsets).astype(np.float64)
    mean = raw.mean(axis=0).astype(FLOAT32)
    whiten = _whitening(np.cov(raw, rowvar=False))
    if whiten is None:
        return None
    return Joint(
        inputs=tuple(place for place, _, _ in chosen),
        dimensions=size,
        rows=len(values),
        frequencies=frequencies.tobytes(),
        offsets=offsets.tobytes(),
        mean=mean.tobytes(),
        whiten=whiten.astype(FLOAT32).tobytes(),
    )


def _is_fit(column: Array) -> bool:
    """Values that differ, and are mostly there."""
    known = column[~np.isnan(column)] if column.dtype.kind == "f" else column
    return len(known) >= (1 - MAX_MISSING) * len(column) and len(known) > 0 and bool((known != known[0]).any())


def _spread(features: list[tuple[int, Numeric, Array]]) -> list[tuple[int, Numeric, Array]]:
    """At most MAX_INPUTS, evenly over all."""
    if len(features) <= MAX_INPUTS:
        return features
    return [features[place] for place in np.linspace(0, len(features) - 1, MAX_INPUTS).astype(int)]


def _dimensions(inputs: int, rows: int) -> int:
    """As many as there are pairs to tell apart, where there are rows for them."""
    wanted = next((size for size in DIMENSIONS if size >= inputs * (inputs + 1)), DIMENSIONS[-1])
    return max((size for size in DIMENSIONS if size <= wanted and rows >= size * ROWS_PER_DIMENSION), default=0)


def _drawn(size: int, inputs: int) -> tuple[Array, Array]:
    """Frequencies, each of a few inputs that take turns, and offsets.

    Most are plain cosines: even functions, which change with how inputs go together; the rest of what a feature could
    show is in the inputs' own bins already.
    """
    rng = np.random.default_rng(_SEED)
    looks_at = min(LOOKS_AT, inputs)
    frequencies = np.zeros((size, inputs), FLOAT32)
    turns: list[int] = []
    for row in frequencies:
        while len(set(turns[:looks_at])) < looks_at:
            turns = turns[looks_at:] if len(turns) >= looks_at else [*turns, *rng.permutation(inputs).tolist()]
        picked, turns = turns[:looks_at], turns[looks_at:]
        row[picked] = rng.choice([-1, 1], looks_at) * WEIGHT * rng.uniform(0.6, 1.4, looks_at)
    odd = np.arange(size) % ODD_EACH == ODD_EACH - 1
    return frequencies, np.where(odd, math.pi / 2, 0.0).astype(FLOAT32)


def _whitening(covariance: Array) -> Array | None:
    """The inverse root, with small variances raised. None where nothing varies."""
    size = len(covariance)
    mean_variance = float(np.trace(covariance)) / size
    least = mean_variance * _LEAST_VARIANCE
    if not mean_variance > 0 or 2 * math.sqrt(size / least) > JOINT_MOST:
        return None
    variances, directions = np.linalg.eigh(covariance)
    return np.asarray((directions / np.sqrt(np.maximum(variances, least))) @ directions.T)
