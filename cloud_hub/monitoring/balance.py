"""How much one device may count among many: no device outvotes the others by sending more rows. Pure.

The evidence of a fleet or a group should speak of its devices. One that sends a million rows while the others send a
hundred would hide a change of all others, or pass its own for theirs. So a device counts at most as many rows per look
as make LARGEST_SHARE of what the others usually send together (twice its fair share in a small fleet); what is above
that is thinned, evenly over its cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final

import numpy as np

from cloud_hub.monitoring.evidence import IntArray
from cloud_hub.monitoring.verdict import LookSeries

LARGEST_SHARE: Final = 0.1
NEWEST: Final = 4
ARRAYS: Final = tuple(field.name for field in fields(LookSeries) if field.name != "starts")
SIGNED: Final = ("moments", "joint")

AnyArray = np.ndarray[Any, np.dtype[Any]]


def share_allowed(devices: int) -> float:
    """The largest share of the rows that one of so many devices may have."""
    return min(1.0, max(LARGEST_SHARE, 2 / max(devices, 1)))


def balance(looks: LookSeries, heavy: Sequence[LookSeries], devices: int) -> LookSeries:
    """`looks` of all `devices`, with each of `heavy`, which are among them, thinned to its share.

    The very same looks where nothing is to be thinned.
    """
    share = share_allowed(devices)
    if share >= 1.0 or not len(looks) or not heavy:
        return looks
    own = [part for part in (along(looks, series) for series in heavy) if _outweighs(part.rows, looks.rows, share)]
    if not own:
        return looks
    rest = np.maximum(looks.rows - np.sum([part.rows for part in own], axis=0), 0)
    # Where no others are left, a device may count as much as all do on average.
    allowed = share / (1 - share) * float(rest.mean()) or float(looks.rows.mean()) / devices
    return without(looks, [_excess(part, allowed) for part in own])


def without(looks: LookSeries, parts: Sequence[LookSeries]) -> LookSeries:
    """`looks` less those of some of the devices."""
    for part in (along(looks, part) for part in parts):
        left = {name: _less(getattr(looks, name), getattr(part, name), name in SIGNED) for name in ARRAYS}
        looks = LookSeries(looks.starts, **left)
    return looks


def along(looks: LookSeries, part: LookSeries) -> LookSeries:
    """`part` look by look of `looks`, zeros where it has none."""
    if part.starts == looks.starts:
        return part
    places = {start: place for place, start in enumerate(looks.starts)}
    there = [(places[start], own) for own, start in enumerate(part.starts) if start in places]
    to, source = [place for place, _ in there], [own for _, own in there]
    found = {}
    for name in ARRAYS:
        array = getattr(part, name)
        known = len(array) == len(part)
        found[name] = np.zeros((len(looks), *array.shape[1:]), array.dtype) if known else array
        if known and there:
            found[name][to] = array[source]
    return LookSeries(looks.starts, **found)


def thin(counts: IntArray, kept: float) -> IntArray:
    """A share of the counts, whole: each cell, and each sum from the left, is within a row of its share."""
    return np.asarray(np.diff(np.rint(np.cumsum(counts) * kept).astype(np.int64), prepend=0))


def _excess(part: LookSeries, allowed: float) -> LookSeries:
    """What is above the allowed rows in each look."""
    over = {name: np.zeros_like(getattr(part, name)) for name in ARRAYS}
    for place in np.flatnonzero(part.rows > allowed).tolist():
        kept = allowed / float(part.rows[place])
        for name in ARRAYS:
            row = getattr(part, name)[place : place + 1]
            over[name][place : place + 1] = row - _share(row, kept, name)
    return LookSeries(part.starts, **over)


def _share(row: AnyArray, kept: float, name: str) -> AnyArray:
    if name == "moments":
        return row * kept
    return np.rint(row * kept).astype(np.int64) if name == "joint" else thin(row.ravel(), kept).reshape(row.shape)


def _less(whole: AnyArray, part: AnyArray, signed: bool) -> AnyArray:
    """A device's look may have grown between the two readings: counts do not fall below zero."""
    if part.shape != whole.shape:
        return whole
    return whole - part if signed else np.maximum(whole - part, 0)


def _outweighs(own: IntArray, rows: IntArray, share: float) -> bool:
    """Whether it sends more than its share, in all looks together or in the newest ones."""
    return any(float(own[-last:].sum()) > share * float(rows[-last:].sum()) for last in (NEWEST, len(rows)))
