"""How much more one look differs from the next than independent rows would: for rows that hang together. Pure.

Neighbouring frames of a video, or a temperature read every second, are not independent draws, and evidence that takes
them for such cries wolf. The chi-square distance of two looks in a row, per degree of freedom, is about 1 for
independent rows and about k where k rows say as much as one. A change is in one pair of looks only, an outage in two:
so what the latest pairs say together is their median, or their mean without the highest where that is more (looks of
several kinds). Counts are divided by it before they are weighed, and never multiplied.

What is slower than looks (day and night, seasons) is not seen here. Used by `layout`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from cloud_hub.monitoring.evidence import FloatArray, IntArray

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

LEAST_PAIRS: Final = 8
MOST_PAIRS: Final = 64  # the latest
LEAST_ROWS: Final = 20  # in either look of a pair
_TRIMMED: Final = 8  # one in so many pairs, and one more, is left out of the mean


def dispersion(looks: IntArray, starts: IntArray) -> FloatArray:
    """How many rows say as much as one, per feature, 1 or more; 1 where looks are too few to tell.

    `looks` are counts (looks, cells), oldest first; `starts` is the first cell of each feature.
    """
    recent = looks[-MOST_PAIRS - 1 :].astype(np.float64)
    if len(recent) <= LEAST_PAIRS:
        return np.ones(len(starts))
    now, before = recent[1:], recent[:-1]
    rows_now, rows_before = np.add.reduceat(now, starts, axis=-1), np.add.reduceat(before, starts, axis=-1)
    usable = (rows_now >= LEAST_ROWS) & (rows_before >= LEAST_ROWS)
    sizes = np.diff(np.append(starts, now.shape[-1]))
    ratio = np.repeat(np.sqrt(np.where(usable, rows_now, 1.0) / np.where(usable, rows_before, 1.0)), sizes, axis=-1)
    both = now + before
    squares = np.square(now / ratio - before * ratio) / np.maximum(both, 1.0)
    freedom = np.add.reduceat((both > 0).astype(np.float64), starts, axis=-1) - 1
    return typical(np.add.reduceat(squares, starts, axis=-1), np.maximum(freedom, 1.0), usable & (freedom > 0))


def typical(squares: FloatArray, freedom: FloatArray, usable: BoolArray) -> FloatArray:
    """What chi-squares (pairs, features) of `freedom` degrees say together of how far pairs lie apart, 1 or more."""
    number = usable.sum(axis=0)
    shares = np.sort(np.where(usable, squares / freedom, np.inf), axis=0)
    # The median of a chi-square is below its mean: Wilson and Hilferty.
    scaled = np.sort(np.where(usable, squares / (freedom * (1 - 2 / (9 * freedom)) ** 3), np.inf), axis=0)
    kept = np.maximum(number - number // _TRIMMED - 1, 1)
    below = np.arange(len(shares))[:, np.newaxis] < kept
    mean = np.where(below, shares, 0.0).sum(axis=0) / kept
    median = np.take_along_axis(scaled, np.maximum(number - 1, 0)[np.newaxis] // 2, axis=0)[0]
    return np.where(number >= LEAST_PAIRS, np.maximum(np.maximum(mean, median), 1.0), 1.0)
