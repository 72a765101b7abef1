"""Evidence from private counts: the noise that devices have put into them is part of what may happen by chance. Pure.

The counts of one feature, less what the reference expects of them, are normal under "nothing changed": their spread is
that of rows that fall into cells at random, of a reference that is itself a sample, and of the noise, whose variance is
known. "Something changed" adds to it a shift of the shares of unknown size, in any direction or along the order of the
cells. The logarithm of the averaged ratio of the two densities is the evidence, and has the same meaning as that of
`evidence`: under "nothing changed" the ratio has mean 1.

Source: the multivariate normal with known covariance; the shift's covariance is that of a multinomial, so that its size
is a PSI.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from cloud_hub.monitoring.evidence import FloatArray, IntArray, log_mean

# Sizes of the shift that are thought of, as PSI; all are as likely as each other.
SIZES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
HIDDEN = 3.0  # standard deviations of the number of rows: with fewer nobody knows that there are any


def evidence(current: IntArray, reference: IntArray, starts: IntArray, noise: FloatArray) -> FloatArray:
    """In nats: `current` is (spans, cells) and may be below zero, the result (spans, features).

    `noise` (spans,) is the variance of each cell of a span; `starts` is the first cell of each feature, whose cells are
    in order of their values.
    """
    borders = [*starts.tolist(), reference.size]
    found = [
        _feature(current[:, low:high].astype(np.float64), reference[low:high].astype(np.float64), noise)
        for low, high in pairwise(borders)
    ]
    return np.stack(found, axis=1) if found else np.zeros((len(current), 0))


def psi(current: IntArray, reference: IntArray, starts: IntArray, noise: FloatArray) -> FloatArray:
    """About the PSI per feature, less what chance and noise make of it: (spans, features), 0 or more. It is 0 where the
    noise hides how many rows there are: shares of no rows mean nothing.

    The squared difference of shares over the reference's, which PSI is for small changes; the logarithm of a noisy
    share means nothing.
    """
    borders = [*starts.tolist(), reference.size]
    found = []
    for low, high in pairwise(borders):
        now, before = current[:, low:high].astype(np.float64), reference[low:high].astype(np.float64)
        shares, rows = _shares(before), _rows(now)
        apart = np.square(now / rows[:, np.newaxis] - shares) / shares
        chance = (len(before) - 1) * (1 / rows + 1 / max(before.sum(), 1.0))
        size = np.maximum(apart.sum(axis=1) - chance - noise / rows**2 * (1 / shares).sum(), 0.0)
        found.append(np.where(now.sum(axis=1) > HIDDEN * np.sqrt(noise * len(before)), size, 0.0))
    return np.stack(found, axis=1) if found else np.zeros((len(current), 0))


def _feature(now: FloatArray, before: FloatArray, noise: FloatArray) -> FloatArray:
    """Of each span. The last cell says nothing that the others do not, and is left out."""
    cells = len(before)
    if cells < 2:
        return np.zeros(len(now))
    shares, rows, sample = _shares(before), _rows(now), before.sum() + cells
    apart = (now - rows[:, np.newaxis] * shares)[:, :-1]
    chance = np.diag(shares) - np.outer(shares, shares)
    centre = np.eye(cells) - shares[:, np.newaxis]
    spread = (rows * (1 + rows / sample))[:, None, None] * chance + noise[:, None, None] * (centre @ centre.T)
    spread = spread[:, :-1, :-1]
    shifts = np.stack([chance / (cells - 1), np.outer(along := shares * _scores(shares), along)])[:, :-1, :-1]
    changed = [spread + size * np.square(rows)[:, None, None] * shift for shift in shifts for size in SIZES]
    null = _log_density(apart, spread)
    ratios = np.stack([_log_density(apart, one) - null for one in changed])
    return log_mean(ratios - np.log(len(changed)), axis=0)


def _log_density(values: FloatArray, spread: FloatArray) -> FloatArray:
    """Of the normal with mean 0, less the constant: values are (spans, cells), spread (spans, cells, cells)."""
    _, size = np.linalg.slogdet(spread)
    length = np.einsum("si,si->s", values, np.linalg.solve(spread, values[..., np.newaxis])[..., 0])
    return np.asarray(-(size + length) / 2)


def _shares(before: FloatArray) -> FloatArray:
    return np.asarray((before + 1) / (before.sum() + len(before)))


def _rows(now: FloatArray) -> FloatArray:
    """Of each span; noise may have left less than one."""
    return np.asarray(np.maximum(now.sum(axis=1), 1.0))


def _scores(shares: FloatArray) -> FloatArray:
    """The middle rank of each cell, with mean 0 and variance 1 under the reference."""
    ranks = np.cumsum(shares) - shares / 2
    centred = ranks - (ranks * shares).sum()
    return np.asarray(centred / np.sqrt((np.square(centred) * shares).sum()))
