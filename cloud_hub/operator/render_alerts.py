"""Alerts for a terminal, to be understood in ten seconds: what, where, since when, how large, who, what next. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from cloud_hub.monitoring.alert_book import Alert, AlertDetail, AlertEvidence
from cloud_hub.monitoring.verdict import FeatureEvidence, RateEvidence
from cloud_hub.monitoring.watches import Watch
from cloud_hub.operator.render import table, when

SHOWN: Final = 8
_COLOURS: Final = {"warning": "yellow", "critical": "bold red"}
# What to do first, by kind and by the width of the scope: the next step, not the whole procedure.
_NEXT: Final = {
    ("drift", "device"): "look at this device's sensor and where it stands (dirt, light, moved), then at its samples",
    ("drift", "group"): "look for what these devices share: the site's light or product, a part, a version",
    (
        "drift",
        "fleet",
    ): "the world or what feeds all devices has changed: look at samples, label some, think of retraining",
    ("quality", "device"): "this device's data cannot be trusted: check sensor, wiring, units and clock",
    ("quality", "group"): "what these devices share feeds them bad data: a version, a profile, a site's source",
    ("quality", "fleet"): "data is bad everywhere: check the application that feeds the modules, and the last release",
    ("concept", ""): "the answer that is right has changed: label more of the latest samples and retrain",
    ("performance", ""): "the module has become worse: compare versions, and roll back if one is to blame",
    ("clone-suspected", ""): "two devices use one key: find both, and revoke the device (mooring device revoke)",
}


def alerts(found: Sequence[Alert]) -> RenderableType:
    """A line each."""
    rows = [
        (
            str(alert.id),
            alert.severity,
            alert.kind,
            _module(alert),
            alert.scope,
            _state(alert),
            when(alert.evidence.since or alert.opened_at),
            "; ".join(_what(alert.evidence)[:3]),
            _behind(alert, 3),
        )
        for alert in found
    ]
    headers = ("id", "severity", "kind", "module", "scope", "state", "since", "what", "devices")
    return table(headers, rows, "no alerts")


def detail(found: AlertDetail) -> RenderableType:
    """One alert in full."""
    alert = found.alert
    parts: list[RenderableType] = [_headline(alert), Text("")]
    parts += [Text(f"  {line}") for line in _what(alert.evidence)[:SHOWN]]
    parts.append(Text(f"  compared with {alert.evidence.reference}", style="dim"))
    for title, lines in (
        ("who is behind it", _who(alert)),
        ("what happened then", [f"{when(c.at)}  {c.kind} {c.subject}  {c.text}" for c in alert.evidence.causes]),
        ("also part of this alert", [f"{child.id}  {child.kind} of {child.scope}" for child in found.children[:SHOWN]]),
        ("history", [f"{when(h.at)}  {h.change} by {h.actor}  {h.comment}".rstrip() for h in found.history]),
    ):
        if lines:
            parts += [Text(""), Text(title, style="bold"), *(Text(f"  {line}") for line in lines)]
    if alert.live:
        parts += [Text(""), Text.assemble(("next: ", "bold"), _next(alert))]
    return Group(*parts)


def watches(found: Sequence[Watch]) -> RenderableType:
    rows = [(watch.module, watch.scope, str(watch.reference), watch.author, when(watch.at)) for watch in found]
    return table(("module", "scope", "compared with", "chosen by", "at"), rows, "all are compared with training data")


def _headline(alert: Alert) -> Text:
    module = f" of {_module(alert)}" if alert.module else ""
    line = Text.assemble((f"alert {alert.id}: ", "bold"), (alert.severity, _COLOURS[alert.severity]))
    line.append(f" {alert.kind}{module} on {_scope(alert)}, {_state(alert)}")
    return line.append(f", since {when(alert.evidence.since or alert.opened_at)}")


def _module(alert: Alert) -> str:
    """What a candidate does is told apart from what serves."""
    named = f"{alert.module}:{alert.version}" if alert.version else alert.module
    return f"{named} ({alert.evidence.beside})" if alert.evidence.beside else named


def _scope(alert: Alert) -> str:
    kind, _, name = alert.scope.partition(":")
    return "the whole fleet" if kind == "fleet" else f"device {name}" if kind == "device" else f"devices with {name}"


def _state(alert: Alert) -> str:
    if alert.state == "snoozed":
        return f"snoozed until {when(alert.snoozed_until)}"
    if alert.state == "resolved":
        return f"resolved {when(alert.resolved_at)} ({alert.evidence.resolution or 'calm'})"
    return f"{alert.state}, part of alert {alert.parent}" if alert.parent else alert.state


def _what(evidence: AlertEvidence) -> list[str]:
    """Strongest first, in words with the size."""
    found = [_feature(one) for one in evidence.features if one.alarm] + [_rate(one) for one in evidence.rates]
    found += [f"{one.field or f'{one.count} x {one.key}'}: {one.text}" for one in evidence.problems]
    return found + [fact.text for fact in evidence.facts]


def _feature(one: FeatureEvidence) -> str:
    shift = "" if one.mean_shift is None else f", mean {one.mean_shift:+.2f} σ"
    size = "small" if one.psi < 0.1 else "noticeable" if one.psi < 0.25 else "large"
    sure = f"evidence {one.log_bf:.0f}, threshold {one.threshold:.0f}"
    if one.distance is not None:  # PSI is of one feature's cells
        likely = f", most {', '.join(one.inputs[:3])}" if one.inputs else ""
        return f"{one.name} go otherwise than in training{likely}, distance {one.distance:.2f} σ, {sure}"
    return f"{one.name} ({one.role}) changed: {size}, PSI {one.psi:.2f}{shift}, {sure}"


def _rate(one: RateEvidence) -> str:
    return f"{one.name} {one.problem} in {100 * one.rate:.1f} % of rows, {100 * one.reference_rate:.1f} % before"


def _behind(alert: Alert, most: int) -> str:
    if alert.scope.startswith("device:"):
        return ""
    return ", ".join(f"{share.device} {100 * share.share:.0f}%" for share in alert.evidence.devices[:most])


def _who(alert: Alert) -> list[str]:
    evidence = alert.evidence
    lines = [_behind(alert, SHOWN)] if _behind(alert, SHOWN) else []
    if evidence.affected:
        lines.append(f"{evidence.affected} of the devices that were looked at alarm by themselves")
    return lines + [
        f"common: {one.group} ({one.behind} of {one.behind_all}; of the others {one.others} of {one.others_all})"
        for one in evidence.common
    ]


def _next(alert: Alert) -> str:
    width = alert.scope.partition(":")[0]
    return _NEXT.get((alert.kind, width)) or _NEXT.get((alert.kind, "")) or "see docs/operate/monitoring.md"
