"""How much more looks differ from others than independent rows would: for rows that hang together. Pure.

Neighbouring frames of a video, or a temperature that goes with the hour, are not independent draws, and evidence that
takes them for such cries wolf. The chi-square distance of one span of looks to another, per degree of freedom, is about
1 for independent rows, and about k where k rows say as much as one. It is taken between looks that follow each other
and between spans that are half a day of hourly looks apart (COMPARED), at many places; so a night is held against
nights. What all places say together is their median, or the mean without the highest where that is more (looks of
several kinds): a change is in few of them. Counts are divided by it before they are weighed, and never multiplied.

What is slower (seasons), and the first cycles, are not seen here. Used by `layout`, `joint` and `conditions`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from cloud_hub.monitoring.evidence import MAX_LOOKS, WINDOWS, FloatArray, IntArray

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

LEAST_PAIRS: Final = 8
MOST_PAIRS: Final = 40  # the latest
LEAST_ROWS: Final = 20  # in either span of a pair


class Compared(NamedTuple):
    """Spans of `length` looks, `apart` looks from each other; one in `trimmed` pairs is left out of the mean.

    Independent rows are rarely found further above 1 than `chance` times the spread of a chi-square over its mean.
    """

    length: int
    apart: int
    trimmed: int
    chance: float


# The further apart, the more pairs a change is in.
COMPARED: Final = (Compared(1, 1, 8, 0.4), Compared(1, 12, 3, 0.4), Compared(4, 12, 3, 0.6), Compared(12, 12, 2, 1.0))
# For each span of WINDOWS: the last of COMPARED that tells of it, which none before it exceeds.
_TELLS: Final = [1 if span == 1 else 2 if span <= 4 else 3 for span in WINDOWS]


def dispersion(looks: IntArray, starts: IntArray) -> FloatArray:
    """How many rows say as much as one, per span of WINDOWS and feature: 1 or more; 1 where looks are too few to tell.

    `looks` are counts (looks, cells), oldest first; `starts` is the first cell of each feature.
    """
    return by_span(looks, lambda now, before, compared: _between(now, before, starts, compared), len(starts))


def by_span(
    looks: IntArray, between: Callable[[FloatArray, FloatArray, Compared], FloatArray], features: int
) -> FloatArray:
    """What `between(now, before, compared)` says of pairs of merged looks, never less for longer spans."""
    summed = np.concatenate([np.zeros((1, looks.shape[1])), np.cumsum(looks[-MAX_LOOKS:], axis=0, dtype=np.float64)])
    found = [np.ones(features)]
    for compared in COMPARED:
        length, apart = compared.length, compared.apart
        ends = np.arange(len(summed) - 1, length + apart - 1, -max(length // 4, 1))[:MOST_PAIRS]
        here = found[-1]
        if len(ends) >= LEAST_PAIRS:
            earlier = ends - apart
            now, before = summed[ends] - summed[ends - length], summed[earlier] - summed[earlier - length]
            here = np.maximum(here, between(now, before, compared))
        found.append(here)
    return np.stack(found[1:])[_TELLS]


def typical(squares: FloatArray, freedom: FloatArray, usable: BoolArray, compared: Compared) -> FloatArray:
    """What chi-squares (pairs, features) of `freedom` degrees say together of how far pairs lie apart, 1 or more."""
    number = usable.sum(axis=0)
    shares = np.sort(np.where(usable, squares / freedom, np.inf), axis=0)
    kept = np.maximum(number - number // compared.trimmed - 1, 1)
    below = np.arange(len(shares))[:, np.newaxis] < kept
    mean = np.where(below, shares, 0.0).sum(axis=0) / kept
    middle = np.take_along_axis(shares, np.maximum(number - 1, 0)[np.newaxis] // 2, axis=0)[0]
    # The median of a chi-square is below its mean: Wilson and Hilferty.
    median = middle / (1 - 2 / (9 * freedom.mean(axis=0))) ** 3
    found = np.maximum(mean, median)
    clear = found >= 1 + compared.chance * np.sqrt(2 / freedom.mean(axis=0))
    return np.where((number >= LEAST_PAIRS) & clear, found, 1.0)


def _between(now: FloatArray, before: FloatArray, starts: IntArray, compared: Compared) -> FloatArray:
    rows_now, rows_before = np.add.reduceat(now, starts, axis=-1), np.add.reduceat(before, starts, axis=-1)
    usable = (rows_now >= LEAST_ROWS) & (rows_before >= LEAST_ROWS)
    sizes = np.diff(np.append(starts, now.shape[-1]))
    ratio = np.repeat(np.sqrt(np.where(usable, rows_now, 1.0) / np.where(usable, rows_before, 1.0)), sizes, axis=-1)
    both = now + before
    squares = np.square(now / ratio - before * ratio) / np.maximum(both, 1.0)
    freedom = np.add.reduceat((both > 0).astype(np.float64), starts, axis=-1) - 1
    chosen = usable & (freedom > 0)
    return typical(np.add.reduceat(squares, starts, axis=-1), np.maximum(freedom, 1.0), chosen, compared)
