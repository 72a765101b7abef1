"""Candidate against champion on held-out rows, by what the user asked for. Pure; run in the child of `judge`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
import numpy as np

from cloud_hub.retraining.bounds import bootstrap_at_least, effective_rows, mean_at_least
from cloud_hub.retraining.criteria import CLASSES, PER_CLASS, Criterion, Metric, parse_criterion
from cloud_hub.retraining.figures import Scored
from cloud_hub.retraining.plan import Judging

SHOWN: Final[tuple[Metric, ...]] = ("accuracy", "balanced_accuracy", "f1")
SHOWN_NUMBERS: Final[tuple[Metric, ...]] = ("mae", "rmse")


class Finding(msgspec.Struct, frozen=True):
    """One criterion, for one group or for all rows. `sure` is the bound that must reach `needed`: of the candidate's
    figure, or of how much better than the champion it is. `why` says why it was not judged, or could not be.
    """

    text: str
    group: str
    rows: int
    candidate: float | None
    champion: float | None
    sure: float | None
    needed: float
    holds: bool
    why: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """`accepted` when every finding holds. `effective_rows` is what the weights leave of `rows`."""

    accepted: bool
    rows: int
    effective_rows: float
    candidate: dict[str, float]
    champion: dict[str, float]
    findings: tuple[Finding, ...]
    why: str = ""


def judge(scored: Scored, judging: Judging) -> Verdict:
    rows, effective = len(scored), effective_rows(scored.weights)
    candidate, champion = _figures(scored, False), _figures(scored, True)
    if rows < judging.least_rows:
        why = f"expected at least {judging.least_rows} labelled rows that were held out, got {rows}"
        return Verdict(False, rows, effective, candidate, champion, (), why)
    findings = tuple(
        finding for text in judging.accept for finding in _findings(scored, parse_criterion(text), judging)
    )
    failed = [finding for finding in findings if not finding.holds]
    why = "" if not failed else "; ".join(_words(finding) for finding in failed[:3])
    return Verdict(not failed, rows, effective, candidate, champion, findings, why)


def _figures(scored: Scored, champion: bool) -> dict[str, float]:
    metrics = SHOWN if scored.is_class else SHOWN_NUMBERS
    return {metric: scored.figure(metric, champion) for metric in metrics} if len(scored) else {}


def _findings(scored: Scored, criterion: Criterion, judging: Judging) -> Iterator[Finding]:
    if (criterion.metric in CLASSES) != scored.is_class:
        kind = "classes" if scored.is_class else "numbers"
        yield _none(criterion, "", len(scored), f"the output is of {kind}")
        return
    judged = False
    for name, part in _parts(scored, criterion):
        small = len(part) < judging.least_group_rows and criterion.group
        if small:
            yield _none(criterion, name, len(part), f"fewer than {judging.least_group_rows} rows: not judged", True)
            continue
        if not len(part):
            yield _none(criterion, name, 0, "no rows")
            continue
        judged = True
        yield _finding(part, criterion, name, judging.confidence)
    if not judged and criterion.group:
        yield _none(criterion, "", len(scored), f"no group has {judging.least_group_rows} rows")


def _parts(scored: Scored, criterion: Criterion) -> Iterator[tuple[str, Scored]]:
    if criterion.label:
        place = scored.classes.index(criterion.label) if criterion.label in scored.classes else -2
        yield criterion.label, scored.only(np.flatnonzero(scored.truth == place))
    elif criterion.group == PER_CLASS:
        for place in np.unique(scored.truth):
            index = int(place)
            name = scored.classes[index] if 0 <= index < len(scored.classes) else str(index)
            yield name, scored.only(np.flatnonzero(scored.truth == place))
    elif criterion.group:
        values = np.array(scored.groups[criterion.group], object)
        for name in sorted(set(values.tolist())):
            yield name, scored.only(np.flatnonzero(values == name))
    else:
        yield "", scored


def _finding(part: Scored, criterion: Criterion, name: str, confidence: float) -> Finding:
    candidate = part.figure(criterion.metric, champion=False)
    champion = part.figure(criterion.metric, champion=True)
    sure = _gain(part, criterion, confidence) if criterion.champion else _level(part, criterion, confidence)
    # "mae <= champion + 0.1" asks that the gain, champion minus candidate, is at least -0.1.
    needed = -criterion.bound if criterion.lower_is_better else criterion.bound
    holds = sure >= needed
    if criterion.lower_is_better and not criterion.champion:
        sure, needed = -sure, criterion.bound
    return Finding(criterion.text, name, len(part), candidate, champion, sure, needed, bool(holds))


def _level(part: Scored, criterion: Criterion, confidence: float) -> float:
    """What the figure is at least; of one that is better when small, minus what it is at most."""
    if criterion.metric in ("accuracy", "recall"):
        return mean_at_least(1.0 - part.candidate_errors, part.weights, 0.0, confidence)
    sign = -1.0 if criterion.lower_is_better else 1.0
    return bootstrap_at_least(
        lambda rows: sign * part.only(rows).figure(criterion.metric, champion=False), len(part), confidence
    )


def _gain(part: Scored, criterion: Criterion, confidence: float) -> float:
    """By how much the candidate is at least better, on the same rows."""
    if criterion.metric in ("accuracy", "recall"):
        return mean_at_least(part.champion_errors - part.candidate_errors, part.weights, -1.0, confidence)
    sign = -1.0 if criterion.lower_is_better else 1.0

    def figure(rows: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> float:
        drawn = part.only(rows)
        return sign * (drawn.figure(criterion.metric, champion=False) - drawn.figure(criterion.metric, champion=True))

    return bootstrap_at_least(figure, len(part), confidence)


def _none(criterion: Criterion, name: str, rows: int, why: str, holds: bool = False) -> Finding:
    return Finding(criterion.text, name, rows, None, None, None, criterion.bound, holds, why)


def _words(finding: Finding) -> str:
    of = f" ({finding.group})" if finding.group else ""
    if finding.why:
        return f"{finding.text}{of}: {finding.why}"
    return f"{finding.text}{of}: sure of {finding.sure:.4g}, needed {finding.needed:.4g} ({finding.rows} rows)"
