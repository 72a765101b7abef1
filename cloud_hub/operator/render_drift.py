"""Drift for a terminal: a bar for how large each feature's change is, and the evidence against its threshold. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cloud_hub.monitoring.reports import DriftReport
from cloud_hub.monitoring.verdict import FeatureEvidence
from cloud_hub.operator.render import table, when
from cloud_hub.words import counted

BAR_CHARS = 24
FULL_PSI = 0.5  # a change of this size or more fills the bar
SHOWN = 20


def drift(reports: Sequence[DriftReport], everything: bool = False) -> RenderableType:
    """One part per build; the strongest features first, all of them on request."""
    parts: list[RenderableType] = []
    for report in reports:
        parts += [_headline(report), _features(report, everything)]
        rates = [
            (r.name, r.problem, f"{100 * r.rate:.2f}%", f"{100 * r.reference_rate:.2f}%", f"{r.log_bf:.1f}")
            for r in report.rates
            if r.alarm or everything
        ]
        if rates:
            parts += [Text(""), table(("data quality", "problem", "now", "in training", "evidence"), rates, "")]
    return Group(*parts)


def _headline(report: DriftReport) -> Text:
    where = report.device or "fleet"
    line = Text.assemble((f"{report.module}:{report.version}", "bold"), f" on {where}: ")
    if not report.looks:
        return line.append(_nothing(report.device))
    line.append_text(Text("ALARM", "bold red") if report.alarm else Text("calm", "bold green"))
    span = f"{when(report.since)} to {when(report.until)}"
    looks = counted(report.looks, "look")
    against = "" if report.reference == "training" else f", compared with {report.reference}"
    return line.append(f", {report.rows} predictions in {looks}, {span}{against}")


def _nothing(where: str) -> str:
    """Calm is what was looked at."""
    nothing = "nothing has been counted yet"
    return f"{nothing}; groups are counted by what hub.toml names: [monitoring] group_by" if "=" in where else nothing


def _features(report: DriftReport, everything: bool) -> RenderableType:
    ordered = sorted(report.features, key=lambda f: (f.alarm, f.log_bf), reverse=True)
    shown = ordered if everything else ordered[:SHOWN]
    if not shown:
        return Text("no features", style="dim")
    made = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("feature", "effect (PSI)", "", "evidence", "threshold", "shift", "rows"):
        made.add_column(header, justify="left" if header in ("feature", "effect (PSI)") else "right")
    for feature in shown:
        made.add_row(
            Text(f"{feature.name} ({feature.role})"),
            _bar(feature) if feature.distance is None else Text(f"distance {feature.distance:.2f} σ"),
            f"{feature.psi:.3f}" if feature.distance is None else "",
            Text(f"{feature.log_bf:.1f}", style="bold red" if feature.alarm else ""),
            f"{feature.threshold:.1f}",
            "" if feature.mean_shift is None else f"{feature.mean_shift:+.2f} σ",
            str(feature.rows),
        )
    hidden = len(ordered) - len(shown)
    return Group(made, Text(f"{hidden} weaker features not shown; --all shows them", style="dim")) if hidden else made


def _bar(feature: FeatureEvidence) -> Text:
    filled = round(BAR_CHARS * min(1.0, max(0.0, feature.psi) / FULL_PSI))
    bar = Text("█" * filled, style="red" if feature.alarm else "green")
    return bar.append("·" * (BAR_CHARS - filled), "bright_black")
