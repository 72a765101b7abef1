"""Labels and quality for a terminal. Pure. What is estimated says so, and stands apart from what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.text import Text

from cloud_hub.labels.book import Label
from cloud_hub.labels.bounds import Bound
from cloud_hub.labels.estimate import Estimate, NoEstimate
from cloud_hub.labels.figures import Calibration, Figure
from cloud_hub.labels.join import DAY_S
from cloud_hub.labels.report import Figures, QualityReport
from cloud_hub.operator.render import table, when

SHOWN_CLASSES = 20
SHOWN_DAYS = 14


def labels(found: Sequence[Label]) -> RenderableType:
    rows = [
        (
            str(one.id),
            one.prediction_id,
            one.device or "any",
            one.module or "any",
            one.output or "main",
            str(one.value),
            f"{one.state} {one.reason}".strip() if one.replaced_at is None else "corrected",
            when(one.at),
            one.author,
        )
        for one in found
    ]
    head = ("id", "prediction", "device", "module", "output", "label", "state", "given", "by")
    return table(head, rows, "no labels")


def bounds(found: Sequence[Bound]) -> RenderableType:
    rows = [(one.module, one.output or "main", _asked(one), when(one.set_at), one.set_by) for one in found]
    return table(("module", "output", "asked for", "since", "by"), rows, "nothing is asked for")


def quality(reports: Sequence[QualityReport]) -> RenderableType:
    """One part per output."""
    parts: list[RenderableType] = []
    for report in reports:
        parts += [_headline(report), *_measured(report), *_estimated(report), Text("")]
    return Group(*parts[:-1])


def _headline(report: QualityReport) -> Text:
    versions = ", ".join(map(str, report.versions))
    where = report.device or "all devices"
    line = Text.assemble((f"{report.module}:{versions}", "bold"), f", output {report.output or '(none)'}, {where}: ")
    if not report.total.rows:
        return line.append("no labels yet", style="dim")
    effective = f", which count as {report.total.effective:.0f} of equal weight"
    return line.append(f"{report.total.rows} labelled predictions{effective}")


def _measured(report: QualityReport) -> list[RenderableType]:
    if not report.total.rows:
        return []
    rows = [
        (name, _value(figure), _span(figure), "" if figure.dummy is None else _number(figure.dummy))
        for name, figure in _named(report.total)
    ]
    parts: list[RenderableType] = [table(("measured", "value", "95 % interval", "without a model"), rows, "")]
    if report.parts:
        parts += [Text(""), _parts(report)]
    if report.classes:
        classes = [
            (one.name, f"{100 * one.share:.1f}%", *(_with_span(f) for f in (one.precision, one.recall, one.f1)))
            for one in report.classes[:SHOWN_CLASSES]
        ]
        parts += [Text(""), table(("class", "share", "precision", "recall", "F1"), classes, "")]
        parts += _confused(report)
    if report.calibration is not None:
        parts += [Text(""), _calibration(report.calibration)]
    return parts


def _parts(report: QualityReport) -> RenderableType:
    names = [name for name, _ in _named(report.total)]
    rows = []
    for part in report.parts:
        figures = dict(_named(part))
        rows.append((part.name, str(part.rows), *(_with_span(figures.get(name)) for name in names)))
    found = table((report.by, "labels", *names), rows, "")
    return Group(found, Text("more are not shown", style="dim")) if report.more_parts else found


def _confused(report: QualityReport) -> list[RenderableType]:
    wrong = [one for one in report.confusion if one.truth != one.predicted][:10]
    rows = [(one.truth, one.predicted, str(one.rows), f"{100 * one.share:.2f}%") for one in wrong]
    return [Text(""), table(("is", "was called", "labels", "of all"), rows, "nothing was confused")]


def _calibration(found: Calibration) -> RenderableType:
    rows = [
        (
            f"{one.low:.1f} to {one.high:.1f}",
            f"{100 * one.share:.1f}%",
            f"{one.confidence:.3f}",
            _with_span(one.accuracy),
        )
        for one in found.bins
    ]
    text = f"calibration error {found.ece:.3f}; with so few labels a perfect model would show {found.ece_by_chance:.3f}"
    return Group(table(("confidence", "share", "stated", "right"), rows, ""), Text(text))


def _estimated(report: QualityReport) -> list[RenderableType]:
    found = report.estimate
    if found is None:
        return [Text("estimate without labels: not available for numbers", style="dim")] if report.kind else []
    if isinstance(found, NoEstimate):
        return [Text(f"estimate without labels: none, {found.reason}", style="dim")]
    return [Text(""), *_estimate(found)]


def _estimate(found: Estimate) -> list[RenderableType]:
    line = Text.assemble(("ESTIMATED, not measured", "bold yellow"), f": accuracy {found.accuracy:.4f}")
    if found.low is not None and found.high is not None:
        line.append(f" ({found.low:.4f} to {found.high:.4f})")
    line.append(f" over all {found.rows} predictions, ")
    if found.basis == "labels":
        line.append(f"from confidences calibrated on {found.calibrated_on} labels")
    else:
        line.append("if the confidences are true: there are too few labels to say")
    parts: list[RenderableType] = [line]
    if (check := found.check) is not None:
        span = "" if check.low is None else f" ({check.low:+.4f} to {check.high:+.4f})"
        against = f"against {check.labels} labels ({100 * check.coverage:.2f}% of all)"
        parts.append(Text(f"{against}: truth less estimate {check.gap:+.4f}{span}"))
        if check.significant:
            parts.append(
                Text("warning: the estimate is off; the confidences do not mean what they did", style="bold red")
            )
    rows = [
        (_day(one.day), str(one.rows), f"{one.accuracy:.4f}", str(one.labels), _number(one.labelled_accuracy))
        for one in found.days[-SHOWN_DAYS:]
    ]
    parts.append(table(("day", "predictions", "estimate", "labels", "by labels"), rows, ""))
    return parts


def _named(figures: Figures) -> list[tuple[str, Figure]]:
    pairs = (
        ("accuracy", figures.accuracy), ("log loss", figures.log_loss), ("Brier score", figures.brier),
        ("MAE", figures.mae), ("RMSE", figures.rmse), ("bias", figures.bias),
    )  # fmt: skip
    return [(name, figure) for name, figure in pairs if figure is not None]


def _value(figure: Figure) -> str:
    return _number(figure.value)


def _span(figure: Figure) -> str:
    return "" if figure.low is None else f"{_number(figure.low)} to {_number(figure.high)}"


def _with_span(figure: Figure | None) -> str:
    if figure is None:
        return ""
    span = _span(figure)
    return f"{_value(figure)} ({span})" if span else _value(figure)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _asked(bound: Bound) -> str:
    return f"{bound.metric} {'at least' if bound.metric == 'accuracy' else 'at most'} {bound.bound:g}"


def _day(day: int) -> str:
    return datetime.fromtimestamp(day * DAY_S, UTC).date().isoformat()
