"""What drift monitors do by default, on raw rows: one verdict per feature for one look. Used by `evidence`.

Written from the rules that the projects document, for looks and references of standard benchmarks (many rows per
look divide the rows of the reference):

- Evidently 0.7.23, numeric columns: up to 1,000 reference rows Kolmogorov-Smirnov p < 0.05, beyond them the
  Wasserstein distance over the reference's standard deviation >= 0.1.
- alibi-detect 0.13: Kolmogorov-Smirnov with Bonferroni's correction over the features, p < 0.05.
- The usual population stability index on ten deciles of the reference > 0.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Rule = Callable[["Reference", Array], Array]

_SMALL: Final = 1000
_TERMS: Final = 20


class Reference:
    """Rows of the reference by feature, sorted: (features, rows)."""

    def __init__(self, training: Array) -> None:
        self.ordered = np.sort(training.T, axis=1)
        self.scale = self.ordered.std(axis=1)
        rows = self.ordered.shape[1]
        self.deciles = self.ordered[:, np.arange(1, 10) * rows // 10]


def evidently(reference: Reference, look: Array) -> Array:
    """Per feature of `look` (rows, features)."""
    if reference.ordered.shape[1] <= _SMALL:
        return _ks_p(reference, look) < 0.05
    return _wasserstein(reference, look) / reference.scale >= 0.1


def evidently_dataset(reference: Reference, look: Array) -> Array:
    """Evidently's drift of the whole data set: at least half of the columns."""
    return np.full(look.shape[1], evidently(reference, look).mean() >= 0.5)


def ks_bonferroni(reference: Reference, look: Array) -> Array:
    return _ks_p(reference, look) < 0.05 / look.shape[1]


def psi(reference: Reference, look: Array) -> Array:
    found = np.empty(look.shape[1])
    for index, edges in enumerate(reference.deciles):
        now = _shares(np.searchsorted(edges, look[:, index], side="right"))
        before = _shares(np.searchsorted(edges, reference.ordered[index], side="right"))
        found[index] = ((now - before) * np.log(now / before)).sum()
    return found > 0.1


def always(_: Reference, look: Array) -> Array:
    return np.ones(look.shape[1], bool)


def never(_: Reference, look: Array) -> Array:
    return np.zeros(look.shape[1], bool)


RULES: Final[Mapping[str, Rule]] = {
    "evidently": evidently,
    "evidently_dataset": evidently_dataset,
    "ks_bonferroni": ks_bonferroni,
    "psi_01": psi,
    "always": always,
    "never": never,
}


def _shares(bins: Array) -> Array:
    counts = np.bincount(bins, minlength=10)
    return np.maximum(counts / counts.sum(), 1e-4)


def _wasserstein(reference: Reference, look: Array) -> Array:
    """Between two samples: the area between their quantile functions, on the finer one's steps."""
    now = np.sort(look.T, axis=1)
    places = (np.arange(reference.ordered.shape[1]) * now.shape[1]) // reference.ordered.shape[1]
    return np.abs(reference.ordered - now[:, places]).mean(axis=1)


def _ks_p(reference: Reference, look: Array) -> Array:
    """P values by Kolmogorov's limit with Stephens's correction for few rows."""
    now = np.sort(look.T, axis=1)
    rows, before = now.shape[1], reference.ordered.shape[1]
    gaps = np.empty(len(now))
    for index, values in enumerate(now):
        for side in ("left", "right"):  # just below and at each value, so that ties are one step
            theirs = np.searchsorted(reference.ordered[index], values, side=side) / before
            gap = np.abs(np.searchsorted(values, values, side=side) / rows - theirs).max()
            gaps[index] = max(gap, gaps[index] if side == "right" else 0.0)
    root = np.sqrt(rows * before / (rows + before))
    scaled = (root + 0.12 + 0.11 / root) * gaps
    terms = np.arange(1, _TERMS + 1)[:, np.newaxis]
    return np.clip(2 * (np.where(terms % 2, 1, -1) * np.exp(-2 * terms**2 * scaled**2)).sum(axis=0), 0, 1)
