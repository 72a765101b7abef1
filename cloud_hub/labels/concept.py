"""Errors in the order of their predictions, replayed: has the model become wrong in a new way, and since when? Pure.

Labels come late and are corrected, so a detector that had gone on from where it stood would have seen the rows in the
wrong order, or twice. It is begun anew over all rows instead, at most MAX_ROWS: the same rows give the same, whenever
they came. Used by `watch`; the detector is `monitoring.error_bits`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from cloud_hub.labels.intervals import Sums, mean_evidence, share_evidence
from cloud_hub.monitoring.error_bits import ErrorBits

MAX_ROWS: Final = 20_000
FIRST: Final = 50  # rows whose errors say what is an ordinary one
SPANS: Final = tuple(2**k for k in range(5, 13))  # of latest rows over which a bound is held
LEAST_FALSE_ALARM_ROWS: Final = 1000.0
LEAST_SPAN_S: Final = 86_400.0


class Row(NamedTuple):
    """One labelled prediction: time, device, error (0 or 1, or off by how much), weight."""

    at: float
    device: str
    error: float
    weight: float


@dataclass(frozen=True)
class Change:
    """Errors have become more frequent (or larger) since the prediction at `since`; means are weighted."""

    since: float
    rows: int
    before: float
    now: float


@dataclass(frozen=True)
class Breach:
    """Over the latest `rows` the figure is worse than its bound, with so much evidence (nats)."""

    since: float
    rows: int
    value: float
    evidence: float


def false_alarm_rows(rows: Sequence[Row], months_s: float, streams: int) -> float:
    """How many rows come in that time, on all streams together: the promise is one false alarm in them at most."""
    if not rows:
        return LEAST_FALSE_ALARM_ROWS
    span_s = max(rows[-1].at - rows[0].at, LEAST_SPAN_S)
    return max(len(rows) / span_s * months_s * max(streams, 1), LEAST_FALSE_ALARM_ROWS)


def replay(rows: Sequence[Row], numbers: bool, threshold: float) -> Change | None:
    """The change that stands at the end of the rows, which are in order of time; None where errors are as they were.

    The error of a number is squashed to |e| / (|e| + an ordinary one), so that one wild value is one error.
    """
    if not rows:
        return None
    usual = statistics.median(abs(row.error) for row in rows[:FIRST]) if numbers else 0.0
    heaviest = max(row.weight for row in rows)
    detector = ErrorBits(threshold)
    alarm = False
    for row in rows:
        size = abs(row.error)
        error = (size / (size + usual) if size + usual > 0 else 0.0) if numbers else size
        alarm = detector.update(error, row.weight / heaviest)
    since = detector.since
    if not alarm or since is None or not 0 < since < len(rows):
        return None
    before, now = _mean(rows[:since]), _mean(rows[since:])
    return Change(rows[since].at, len(rows) - since, before, now)


def breach(rows: Sequence[Row], metric: str, bound: float) -> Breach | None:
    """The span of latest rows with the most evidence against the bound; None where there is none at all."""
    best: Breach | None = None
    for span in SPANS:
        latest = rows[-span:]
        if len(latest) < min(span, SPANS[0]):
            break
        sums = _sums(latest)
        evidence = share_evidence(sums, 1 - bound, above=True) if metric == "accuracy" else mean_evidence(sums, bound)
        if best is None or evidence > best.evidence:
            value = 1 - sums.mean if metric == "accuracy" else sums.mean
            best = Breach(latest[0].at, len(latest), value, evidence)
        if span >= len(rows):
            break
    return best if best is not None and best.evidence > 0 else None


def _sums(rows: Sequence[Row]) -> Sums:
    w = [row.weight for row in rows]
    x = [abs(row.error) for row in rows]
    return Sums(
        len(rows),
        sum(w),
        sum(a * a for a in w),
        sum(a * b for a, b in zip(w, x, strict=True)),
        sum(a * a * b for a, b in zip(w, x, strict=True)),
        sum(a * a * b * b for a, b in zip(w, x, strict=True)),
        max(w),
    )


def _mean(rows: Sequence[Row]) -> float:
    return sum(row.weight * abs(row.error) for row in rows) / sum(row.weight for row in rows)
