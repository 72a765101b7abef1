"""What "something changed" may mean for the cells of one feature: the weights of several Dirichlet-multinomials. Pure.

The reference's weights (1 + counts) are tilted: multiplied by exp(size * score) and scaled back to the same sum, so
that an alternative is as unsure of its shares as the reference is. For cells in order of their values the scores are
the normal scores of the ranks (values moved up or down) and their squares (values spread or drew together); ranks
know nothing of how far out an outlier lies. For categories each tilt makes one of the frequent ones more or less
frequent. The last alternative knows nothing of the reference. Used by `layout`, weighed by `evidence`.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Final

import numpy as np

from cloud_hub.monitoring.evidence import UNSEEN_WEIGHT, FloatArray

# Standard deviations of a normal feature: near enough to each other that one between two loses little.
SHIFTS: Final = (0.06, 0.1, 0.16, 0.25, 0.4, 0.65, 1.0)
SPREADS: Final = (0.07, 0.13, 0.25, 0.5)
ODDS: Final = 0.5  # natural logarithm, for the most frequent categories
WIDER_ODDS: Final = 1.5
COUNT: Final = 2 * (len(SHIFTS) + len(SPREADS)) + 1
FREE_SHARE: Final = 0.25  # prior weight of the alternative that knows nothing
LOG_PRIOR: Final[FloatArray] = np.log([*([(1 - FREE_SHARE) / (COUNT - 1)] * (COUNT - 1)), FREE_SHARE])
# A rate that is tested upwards: natural logarithms of the odds it may have grown by.
RISES: Final = (0.4, 0.8, 1.6, 3.2)
RATE_LOG_PRIOR: Final[FloatArray] = np.log([*([(1 - FREE_SHARE) / len(RISES)] * len(RISES)), FREE_SHARE])

_NORMAL: Final = NormalDist()
_HIGHEST_SCORE: Final = 4.0


def alternatives(reference: FloatArray, ordered: bool) -> FloatArray:
    """Weights of one feature's cells, (COUNT, cells). With `ordered` the cells ascend by value."""
    base = 1.0 + reference
    tilts = _ordered(base) if ordered or len(base) < 3 else _by_category(base)
    tilted = base * np.exp(tilts)
    tilted *= base.sum() / tilted.sum(axis=1, keepdims=True)
    return np.concatenate([tilted, [np.where(reference > 0, 1.0, UNSEEN_WEIGHT)]])


def rises(reference: FloatArray) -> FloatArray:
    """Weights of pairs (without, with) whose second has grown: (len(RISES) + 1, 2 * pairs)."""
    pairs = (1.0 + reference).reshape(-1, 2)
    tilted = pairs * np.exp([[[0.0, rise]] for rise in RISES])
    tilted *= pairs.sum(axis=1, keepdims=True) / tilted.sum(axis=2, keepdims=True)
    free = np.where(reference > 0, 1.0, UNSEEN_WEIGHT)
    return np.concatenate([tilted.reshape(len(RISES), -1), [free]])


def location_scores(base: FloatArray) -> FloatArray:
    """Normal scores of the cells' ranks, with mean 0 and variance 1 under `base`; 0 where all is one cell.

    The cells at either end, which no training row may have filled, have the scores of their neighbours, so that a
    wild value weighs no more than any other large one.
    """
    shares = base / base.sum()
    ranks = np.cumsum(shares) - shares / 2
    scores = np.array([_NORMAL.inv_cdf(rank) for rank in ranks.tolist()])
    if len(scores) > 3:
        scores[0], scores[-1] = scores[1], scores[-2]
    return _standard(scores, shares)


def spread_scores(base: FloatArray) -> FloatArray:
    """Squares of the location scores, less what goes with the location; mean 0 and variance 1 under `base`."""
    shares, location = base / base.sum(), location_scores(base)
    squares = location * location
    return _standard(squares - (shares * squares * location).sum() * location, shares)


def _ordered(base: FloatArray) -> FloatArray:
    location, spread = location_scores(base), spread_scores(base)
    return np.array(
        [sign * size * location for size in SHIFTS for sign in (1, -1)]
        + [sign * size * spread for size in SPREADS for sign in (1, -1)]
    )


def _by_category(base: FloatArray) -> FloatArray:
    frequent = np.argsort(-base, kind="stable")
    tilts = np.zeros((COUNT - 1, len(base)))
    wanted = [(place, ODDS) for place in range(len(SHIFTS))] + [(place, WIDER_ODDS) for place in range(len(SPREADS))]
    for row, (place, odds) in enumerate(wanted):
        cell = frequent[place % len(base)]
        tilts[2 * row, cell], tilts[2 * row + 1, cell] = odds, -odds
    return tilts


def _standard(scores: FloatArray, shares: FloatArray) -> FloatArray:
    centred = scores - (shares * scores).sum()
    variance = float((shares * centred * centred).sum())
    if not variance > 1e-12:
        return np.zeros(len(scores))
    # Where one cell holds nearly all rows, the others' scores know no bounds.
    return np.asarray(np.clip(centred / np.sqrt(variance), -_HIGHEST_SCORE, _HIGHEST_SCORE))
