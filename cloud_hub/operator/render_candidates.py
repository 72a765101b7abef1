"""Candidates for a terminal: the list, and how one of them does. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from cloud_hub.arms.candidate import Candidate, CandidateReport, Outcomes
from cloud_hub.operator.render import table, when
from cloud_hub.operator.render_arms import comparison
from cloud_hub.words import counted, spoken

_STYLES = {"running": "bold", "promoted": "green", "dropped": "dim"}


def candidates(found: Sequence[Candidate]) -> RenderableType:
    rows = [
        (
            one.id, f"{one.module}:{one.version}", _way(one), f"{one.share:.4g}", one.target,
            one.state, when(one.created_at),
        )
        for one in found
    ]  # fmt: skip
    headers = ("id", "module", "as", "share", "target", "state", "since")
    return table(headers, rows, "no candidates; start one with `mooring candidate start`")


def candidate(one: Candidate) -> RenderableType:
    line = Text.assemble((f"{one.id}: {one.module}:{one.version}", "bold"), f", {_way(one)} of {one.share:.4g}, ")
    line.append(one.state, style=_STYLES.get(one.state, ""))
    line.append(f" by rollout {one.promoted_by}" if one.promoted_by else "")
    return Group(line, Text(f"target {one.target}, salt {one.salt}, started {when(one.created_at)}", style="dim"))


def report(found: CandidateReport) -> RenderableType:
    """What devices count first: it is there before anything can be compared."""
    parts: list[RenderableType] = [candidate(found.candidate), _standing(found)]
    parts += [Text(line) for line in _counts(found.outcomes)]
    if found.partial:
        parts.append(Text("! more devices have it: these are the first of them", style="yellow"))
    parts.append(Text(""))
    parts.append(comparison(found.comparison) if found.comparison else Text("nothing of both versions was counted yet"))
    return Group(*parts)


def _standing(found: CandidateReport) -> Text:
    return Text(
        f"rollout {found.candidate.id} is {spoken(found.rollout)}, verified on {counted(found.verified, 'device')}"
    )


def _counts(seen: Outcomes) -> list[str]:
    counts = ((seen.requests, "prediction"), (seen.errors, "error"), (seen.restarts, "restart"))
    lines = [f"{counted(seen.devices, 'device')}: " + ", ".join(counted(*one) for one in counts)]
    if seen.offered:
        lines.append(f"fed {seen.fed} of {seen.offered} predictions, {seen.missed} missed")
    if seen.agreement is not None:
        lines.append(f"says the same in {seen.agreed} of {seen.compared} rows ({seen.agreement:.2%})")
    if seen.answered or seen.fell_back or seen.kept:
        lines.append(f"answered {seen.answered} requests; {seen.fell_back} fell back, {seen.kept} were not asked of it")
    if seen.reasons:
        lines.append(", ".join(f"{word} {count}" for word, count in seen.reasons.items()))
    return lines


def _way(one: Candidate) -> str:
    return one.way if one.way == "shadow" else f"arm by {one.split}"
