"""From evidence to the next state of an alert. Pure: `alerts` reads the looks, asks here, and writes the answer.

An alert opens when any window of looks holds evidence above the threshold (or entries were refused), is kept while
that lasts, and is resolved after `calm_looks` closed looks in which the window that raised it held less than half.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from cloud_hub.monitoring.alert_book import AlertEvidence, ProblemCount
from cloud_hub.monitoring.evidence import AlarmRate
from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.verdict import (
    Kind,
    LookSeries,
    Verdict,
    calm_since,
    detecting_window,
    group_threshold,
    judge,
    looks_since,
    strength,
)

MAX_SHOWN = 20  # features and rates kept with an alert


@dataclass(frozen=True)
class Finding:
    """What is known of one group for one kind of alert. `closed` looks are over by the hub's clock."""

    kind: Kind
    layout: Layout
    looks: LookSeries
    closed: int
    rate: AlarmRate
    calm_looks: int
    problems: tuple[ProblemCount, ...] = ()
    reference: str = "training"

    @property
    def threshold(self) -> float:
        return group_threshold(self.layout, self.rate)

    @property
    def window(self) -> int:
        """Index of the shortest window of looks that alarms, -1 when none does."""
        return detecting_window(self.layout, self.looks, self.kind, self.threshold)


def opening(finding: Finding) -> AlertEvidence | None:
    """The evidence to open an alert with; None when there is nothing to say."""
    window = finding.window
    if window < 0 and not finding.problems:
        return None
    return _evidence(finding, window, finding.looks.starts[-1] if window >= 0 else 0.0)


def next_evidence(old: AlertEvidence, finding: Finding) -> AlertEvidence | None:
    """What an open alert says now; with a `resolution` it is to be resolved. None leaves it as it is."""
    if old.window >= 0 and (calm := _calm_from(old, finding)) is not None and not finding.problems:
        return msgspec.structs.replace(old, problems=(), resolution="calm", calm_from=calm)
    window = finding.window
    if window < 0 and old.window < 0 and not finding.problems:
        return msgspec.structs.replace(old, problems=(), resolution="calm")
    if window < 0 and not finding.problems:
        return None
    if window < 0:
        return _evidence(finding, old.window, old.alarm_look)
    shortest = min(window, old.window) if old.window >= 0 else window
    held = strength(finding.layout, finding.looks, finding.kind)[: shortest + 1].max()
    alarm_look = finding.looks.starts[-1] if held >= finding.threshold else old.alarm_look
    return _evidence(finding, shortest, alarm_look)


def _calm_from(old: AlertEvidence, finding: Finding) -> float | None:
    """Start of the first of enough calm looks since the last alarming one."""
    closed = finding.looks.until(finding.closed)
    if sum(start > old.alarm_look for start in closed.starts) < finding.calm_looks:
        return None
    place = calm_since(finding.layout, closed, finding.kind, finding.threshold, old.window, finding.calm_looks)
    return None if place is None else closed.starts[place]


def _evidence(finding: Finding, window: int, alarm_look: float) -> AlertEvidence:
    verdict = judge(finding.layout, finding.looks, finding.rate)
    return AlertEvidence(
        threshold=finding.threshold,
        since=_since(finding, verdict),
        features=(verdict.drifted or verdict.drift)[:MAX_SHOWN] if finding.kind == "drift" else (),
        rates=verdict.poor[:MAX_SHOWN] if finding.kind == "quality" else (),
        problems=finding.problems,
        window=window,
        alarm_look=alarm_look,
        reference=finding.reference,
    )


def _since(finding: Finding, verdict: Verdict) -> float:
    """Start of the look in which the strongest change most likely began; 0 where no counts tell."""
    if finding.kind == "drift" and verdict.drift:
        return finding.looks.starts[-looks_since(finding.layout, finding.looks, verdict.drift[0].index)]
    if finding.kind == "quality" and verdict.rates:
        return finding.looks.starts[-verdict.rates[0].looks]
    return 0.0
