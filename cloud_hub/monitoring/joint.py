"""Evidence that inputs have changed together, from the sums of `modules.windows.Joint`. Pure; used by `verdict`.

Without a change, the mean of whitened features differs from the reference's by chance, by about 1/rows + 1/reference
rows in each dimension. The squared length of the difference over that is Hotelling's T-squared, whose distribution
also knows that the whitening was estimated from so many training rows. The evidence is the average of its density
ratios: for changes of several lengths in any direction, and in each single feature. Each has mean 1 while nothing
changes and stays a martingale as rows come (likelihood ratios of maximal invariants), so that the threshold is that
of `evidence`.

The features are bounded, but a few odd rows may move many of them at once (inputs with heavy tails), so that means of
few rows are not normal. So the spread counts as estimated from no more rows than the span holds: with 100 rows per
look of six Student t3 inputs of common scale, the highest evidence of 360 looks without a change fell from 15 to 5.
Rows that hang together are found as in `dispersion`.

Source: Hotelling (1931); Hall, Wijsman, Ghosh, "The relationship between sufficiency and invariance" (1965).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from cloud_hub.monitoring.dispersion import Compared, by_span, typical
from cloud_hub.monitoring.evidence import FloatArray, IntArray, log_mean, merge_latest
from modules.windows import JOINT_TICK, Joint

LEAST_ROWS: Final = 30
LEAST_DISTANCE: Final = 0.05  # standard deviations of a row; less is nobody's concern
# Lengths of a change in standard deviations of a row: in any direction, and in one feature.
LENGTHS: Final = (0.06, 0.12, 0.25, 0.5, 1.0)
MOST_NAMED: Final = 5
ROWS_PER_FREEDOM: Final = 1.0


@dataclass(frozen=True)
class JointScan:
    """Per span of looks: evidence in nats, whether the change is large enough to matter, rows, and its length.

    The length is that of the difference of means, less what is expected by chance. `means` is (spans, dimensions).
    """

    evidence: FloatArray
    matters: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    rows: FloatArray
    distance: FloatArray
    means: FloatArray
    dispersion: FloatArray


def weigh_joint(joint: Joint, looks: IntArray, reference: IntArray | None = None) -> JointScan:
    """Weigh `looks` (looks, 1 + dimensions), oldest first: rows, and sums in JOINT_TICK.

    `reference` has the rows and sums of other rows than the training data's, (1 + dimensions,).
    """
    merged = merge_latest(looks).astype(np.float64)
    rows = merged[:, 0]
    means = _means(merged)
    before = float(joint.rows)
    if reference is not None:
        before = float(max(reference[0], 1))
        means = means - _means(reference[np.newaxis].astype(np.float64))
    alike = joint_dispersion(looks)
    noise = alike * (1 / np.maximum(rows, 1.0) + 1 / before)
    squares = np.square(means) / noise[:, np.newaxis]
    freedom = np.maximum(np.minimum(rows * ROWS_PER_FREEDOM, joint.rows), 1.0)
    several = _log_ratios(squares.sum(axis=1), means.shape[1], noise, freedom)
    single = _log_ratios(squares, 1, noise[:, np.newaxis], freedom[:, np.newaxis])
    both = np.stack([_average(several, 0), _average(_average(single, 0), 1)])
    excess = np.square(means).sum(axis=1) - means.shape[1] * noise
    distance = np.sqrt(np.maximum(excess, 0.0))
    known = rows >= LEAST_ROWS
    return JointScan(
        evidence=np.where(known, _average(both, 0), 0.0),
        matters=known & (distance >= LEAST_DISTANCE),
        rows=rows,
        distance=distance,
        means=means,
        dispersion=alike,
    )


def joint_dispersion(looks: IntArray) -> FloatArray:
    """How many rows say as much as one, per span: 1 or more; 1 where looks are too few to tell."""
    return by_span(looks, _between, 1)[:, 0]


def _between(now: FloatArray, before: FloatArray, compared: Compared) -> FloatArray:
    usable = (now[:, :1] >= LEAST_ROWS) & (before[:, :1] >= LEAST_ROWS)
    noise = 1 / np.maximum(now[:, :1], 1.0) + 1 / np.maximum(before[:, :1], 1.0)
    squares = np.square(_means(now) - _means(before)).sum(axis=1, keepdims=True) / noise
    return typical(squares, np.full(squares.shape, now.shape[1] - 1.0), usable, compared)


def inputs_behind(joint: Joint, names: tuple[str, ...], means: FloatArray) -> tuple[str, ...]:
    """Inputs in which the changed features look, those with most of the change first. `names` are all inputs'."""
    frequencies = np.frombuffer(joint.frequencies, "<f4").reshape(joint.dimensions, len(joint.inputs))
    looked_at = np.abs(frequencies.astype(np.float64))
    shares = looked_at / np.maximum(looked_at.sum(axis=1, keepdims=True), 1e-12)
    blame = (np.square(means)[:, np.newaxis] * shares).sum(axis=0) / np.maximum(shares.sum(axis=0), 1e-12)
    ranked = np.argsort(-blame, kind="stable")[:MOST_NAMED]
    return tuple(names[joint.inputs[place]] for place in ranked.tolist())


def _means(merged: FloatArray) -> FloatArray:
    return np.asarray(merged[:, 1:] * JOINT_TICK / np.maximum(merged[:, :1], 1.0))


def _log_ratios(squares: FloatArray, size: int, noise: FloatArray, freedom: FloatArray) -> FloatArray:
    """Of T-squared's densities in `size` dimensions, with and without a change: (lengths, ...)."""
    lengths = np.array(LENGTHS).reshape(-1, *([1] * squares.ndim))
    grown = 1 + np.square(lengths) / size / noise
    bulk = np.log1p(squares / freedom) - np.log1p(squares / (freedom * grown))
    return np.asarray((freedom + 1) / 2 * bulk - size / 2 * np.log(grown))


def _average(ratios: FloatArray, axis: int) -> FloatArray:
    return log_mean(ratios - np.log(ratios.shape[axis]), axis)
