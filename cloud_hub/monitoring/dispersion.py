"""How much more one look differs from the next than independent rows would: for rows that hang together. Pure.

Neighbouring frames of a video, or a temperature read every second, are not independent draws, and evidence that takes
them for such cries wolf. The chi-square distance of two looks in a row, per degree of freedom, is about 1 for
independent rows and about k where k rows say as much as one. The median over the latest pairs of looks does not see a
change, which is in one pair only. Counts are divided by it before they are weighed, and never multiplied.

What is slower than looks (day and night, seasons) is not seen here. Used by `layout`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from cloud_hub.monitoring.evidence import FloatArray, IntArray

LEAST_PAIRS: Final = 8
MOST_PAIRS: Final = 64  # the latest
LEAST_ROWS: Final = 20  # in either look of a pair


def dispersion(looks: IntArray, starts: IntArray) -> FloatArray:
    """How many rows say as much as one, per feature, 1 or more; 1 where looks are too few to tell.

    `looks` are counts (looks, cells), oldest first; `starts` is the first cell of each feature.
    """
    recent = looks[-MOST_PAIRS - 1 :].astype(np.float64)
    if len(recent) <= LEAST_PAIRS:
        return np.ones(len(starts))
    distances, usable = _distances(recent[1:], recent[:-1], starts)
    if usable.all():
        return np.maximum(np.median(distances, axis=0), 1.0)
    found = np.ones(len(starts))
    enough = usable.sum(axis=0) >= LEAST_PAIRS
    if enough.any():
        chosen = np.where(usable, distances, np.nan)[:, enough]
        found[enough] = np.maximum(np.nanmedian(chosen, axis=0), 1.0)
    return found


def _distances(
    now: FloatArray, before: FloatArray, starts: IntArray
) -> tuple[FloatArray, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]:
    """Chi-square per degree of freedom over its median, per pair and feature; and where it can be used."""
    rows_now, rows_before = np.add.reduceat(now, starts, axis=-1), np.add.reduceat(before, starts, axis=-1)
    usable = (rows_now >= LEAST_ROWS) & (rows_before >= LEAST_ROWS)
    sizes = np.diff(np.append(starts, now.shape[-1]))
    ratio = np.repeat(np.sqrt(np.where(usable, rows_now, 1.0) / np.where(usable, rows_before, 1.0)), sizes, axis=-1)
    both = now + before
    squares = np.square(now / ratio - before * ratio) / np.maximum(both, 1.0)
    freedom = np.add.reduceat((both > 0).astype(np.float64), starts, axis=-1) - 1
    usable &= freedom > 0
    freedom = np.maximum(freedom, 1.0)
    median = freedom * (1 - 2 / (9 * freedom)) ** 3
    return np.add.reduceat(squares, starts, axis=-1) / median, usable
