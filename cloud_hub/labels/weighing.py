"""What the labelled errors of one build say, as evidence for an alert: a change of concept, a bound that is not kept.

Pure; used by `watch`, which reads the rows and keeps the alerts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cloud_hub.labels.bounds import Bound
from cloud_hub.labels.concept import Breach, Change, Row, breach, false_alarm_rows, replay
from cloud_hub.labels.outputs import Outputs
from cloud_hub.monitoring.alert_book import AlertEvidence, Fact

LabelKind = Literal["concept", "performance"]
LATEST: Final = 64  # rows that say whether a bound is kept again
Streams = Mapping[str, Sequence[Row]]  # by output, in the order of the predictions


@dataclass(frozen=True)
class Build:
    """What is watched: one build, its outputs that have labels, and the bounds that hold for them."""

    module: str
    version: int
    manifest_sha256: str
    outputs: tuple[str, ...]
    known: Outputs
    bounds: tuple[Bound, ...]

    def bound(self, output: str) -> Bound | None:
        """The one that holds for an output, if it is of the output's kind."""
        metric = "mae" if self.is_number(output) else "accuracy"
        mine = (one for one in self.bounds if (one.output or self.known.main) == output)
        return next((one for one in mine if one.metric == metric), None)

    def is_number(self, output: str) -> bool:
        found = self.known.by_name.get(output)
        return found is not None and found.kind == "number"


@dataclass(frozen=True)
class Promise:
    """At most one false alarm in `seconds`, over `streams` streams together."""

    seconds: float
    streams: int

    def rows(self, stream: Sequence[Row]) -> float:
        return false_alarm_rows(stream, self.seconds, self.streams)


def weigh(kind: LabelKind, build: Build, rows: Streams, promise: Promise) -> AlertEvidence | None:
    """Evidence for an alert of this kind; None where there is nothing to tell."""
    return _concept(build, rows, promise) if kind == "concept" else _performance(build, rows, promise)


def is_calm(kind: LabelKind, build: Build, rows: Streams, evidence: AlertEvidence) -> bool:
    """Whether an alert that no longer has evidence is over.

    A change that began before the rows at hand cannot be judged by them; a bound must be kept by the latest of them.
    """
    if kind == "concept":
        return any(stream and stream[0].at <= evidence.since for stream in rows.values())
    for output, stream in rows.items():
        bound = build.bound(output)
        if bound is None:
            continue
        found = breach(stream[-LATEST:], bound.metric, bound.bound)
        if found is not None and found.evidence >= evidence.threshold / 2:
            return False
    return True


def _concept(build: Build, rows: Streams, promise: Promise) -> AlertEvidence | None:
    facts: list[Fact] = []
    changes: list[Change] = []
    for output, stream in rows.items():
        change = replay(stream, build.is_number(output), promise.rows(stream))
        if change is not None:
            changes.append(change)
            facts.append(_concept_fact(output, change, build.is_number(output)))
    if not changes:
        return None
    threshold = max(math.log(promise.rows(stream)) for stream in rows.values())
    return AlertEvidence(threshold, min(change.since for change in changes), facts=tuple(facts))


def _performance(build: Build, rows: Streams, promise: Promise) -> AlertEvidence | None:
    facts: list[Fact] = []
    worst: list[Breach] = []
    threshold = 0.0
    for output, stream in rows.items():
        bound = build.bound(output)
        if bound is None:
            continue
        found = breach(stream, bound.metric, bound.bound)
        promised = math.log(promise.rows(stream))
        if found is not None and found.evidence >= promised:
            worst.append(found)
            facts.append(_bound_fact(output, found, bound))
            threshold = max(threshold, promised)
    if not worst:
        return None
    return AlertEvidence(threshold, min(one.since for one in worst), facts=tuple(facts))


def _concept_fact(output: str, change: Change, is_number: bool) -> Fact:
    what = "mean absolute error" if is_number else "share of wrong answers"
    text = f"{output}: {what} {change.now:.4g} over the latest {change.rows} labelled predictions"
    return Fact(output, change.now, change.before, f"{text}, before {change.before:.4g}")


def _bound_fact(output: str, found: Breach, bound: Bound) -> Fact:
    least = "at least" if bound.metric == "accuracy" else "at most"
    text = f"{output}: {bound.metric} {found.value:.4g} over the latest {found.rows} labelled predictions"
    return Fact(output, found.value, bound.bound, f"{text}, {least} {bound.bound:g} is asked for")
