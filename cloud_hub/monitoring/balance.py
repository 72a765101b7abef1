"""How much one device may count among many: no device outvotes the others by sending more rows. Pure.

The evidence of a fleet or a group should speak of its devices. One that sends a million rows while the others send a
hundred would hide a change of all others, or pass its own for theirs. So a device counts at most as many rows per look
as make LARGEST_SHARE of what the others usually send together (twice its fair share in a small fleet); what is above
that is thinned, evenly over its cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from cloud_hub.monitoring.evidence import FloatArray, IntArray
from cloud_hub.monitoring.verdict import LookSeries

LARGEST_SHARE: Final = 0.1
NEWEST: Final = 4


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
    own = [part for part in (aligned(looks, series) for series in heavy) if _outweighs(part[0], looks.rows, share)]
    if not own:
        return looks
    rest = np.maximum(looks.rows - sum(rows for rows, _, _, _ in own), 0)
    # Where hardly any others are left, everybody's average is what a device may count at least.
    average = float(looks.rows.mean()) / devices
    allowed = max(share / (1 - share) * float(rest.mean()), average, 1.0)
    counts, joint, moments, rows = looks.counts.copy(), looks.joint.copy(), looks.moments.copy(), looks.rows.copy()
    thinned = False
    for own_rows, own_counts, own_joint, own_moments in own:
        for place in np.flatnonzero(own_rows > allowed).tolist():
            kept = allowed / float(own_rows[place])
            thinned = True
            counts[place] += thin(own_counts[place], kept) - own_counts[place]
            moments[place] -= own_moments[place] * (1 - kept)
            rows[place] += round(own_rows[place] * kept) - int(own_rows[place])
            if joint.shape[1] and own_joint.shape[1]:
                joint[place] -= np.rint(own_joint[place] * (1 - kept)).astype(np.int64)
    if not thinned:
        return looks
    # A device's look may have grown between the two readings.
    return replace(looks, counts=np.maximum(counts, 0), joint=joint, moments=moments, rows=np.maximum(rows, 0))


def _outweighs(own: IntArray, rows: IntArray, share: float) -> bool:
    """Whether it sends more than its share, in all looks together or in the newest ones."""
    return any(float(own[-last:].sum()) > share * float(rows[-last:].sum()) for last in (NEWEST, len(rows)))


def thin(counts: IntArray, kept: float) -> IntArray:
    """A share of the counts, whole: each cell, and each sum from the left, is within a row of its share."""
    return np.asarray(np.diff(np.rint(np.cumsum(counts) * kept).astype(np.int64), prepend=0))


def without(looks: LookSeries, parts: Sequence[LookSeries]) -> LookSeries:
    """`looks` less those of some of the devices."""
    counts, joint, moments, rows = looks.counts.copy(), looks.joint.copy(), looks.moments.copy(), looks.rows.copy()
    for part in parts:
        own_rows, own_counts, own_joint, own_moments = aligned(looks, part)
        counts, moments, rows = counts - own_counts, moments - own_moments, rows - own_rows
        if joint.shape[1] and own_joint.shape[1]:
            joint = joint - own_joint
    return replace(looks, counts=np.maximum(counts, 0), joint=joint, moments=moments, rows=np.maximum(rows, 0))


def aligned(looks: LookSeries, part: LookSeries) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
    """Rows, counts, joint and moments of `part`, look by look of `looks`; zeros where it has none."""
    places = {start: place for place, start in enumerate(looks.starts)}
    there = [(places[start], own) for own, start in enumerate(part.starts) if start in places]
    to, source = [place for place, _ in there], [own for _, own in there]
    rows = np.zeros(len(looks), np.int64)
    counts, moments = np.zeros_like(looks.counts), np.zeros_like(looks.moments)
    width = looks.joint.shape[1] if part.joint.shape[1] else 0
    joint = np.zeros((len(looks), width), np.int64)
    if there:
        rows[to], counts[to], moments[to] = part.rows[source], part.counts[source], part.moments[source]
        if width:
            joint[to] = part.joint[source]
    return rows, counts, joint, moments
