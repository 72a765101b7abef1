"""A comparison for a terminal: the verdict, what it rests on, and each difference with its interval. Pure."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cloud_hub.arms.compare import Comparison, MeasuredDifference
from cloud_hub.arms.measure import LATENCY

_STYLES = {
    "worse": "bold red",
    "different": "yellow",
    "better": "bold green",
    "not worse": "green",
    "same": "green",
    "fine": "bold green",
}
_DESIGNS = {
    "paired": "the same devices at the same time",
    "switched": "the same devices before and after",
    "arms": "some devices against others",
    "none": "nothing has been counted of both",
}


def comparison(found: Comparison) -> RenderableType:
    """Health and quality decide; answers are only told apart."""
    parts: list[RenderableType] = [_headline(found)]
    parts += [Text(f"! {words}", style="yellow") for words in _reservations(found)]
    if found.differences:
        made = Table(box=None, pad_edge=False, header_style="bold")
        for header in ("measure", f"v{found.baseline}", f"v{found.candidate}", "difference", "interval", "margin", ""):
            made.add_column(header, justify="right" if header not in ("measure", "") else "left")
        for difference in found.differences:
            made.add_row(*_row(difference))
        parts += [Text(""), made]
    return Group(*parts)


def _headline(found: Comparison) -> Text:
    line = Text.assemble((f"{found.module}: version {found.candidate} against {found.baseline}", "bold"), ": ")
    line.append(found.verdict, style=_STYLES.get(found.verdict, "bold yellow"))
    return line.append(
        f", {_DESIGNS[found.design]}; {found.candidate_devices} and {found.baseline_devices} devices, "
        f"{found.candidate_rows} and {found.baseline_rows} predictions"
    )


def _reservations(found: Comparison) -> list[str]:
    words = []
    if found.design != "none" and not found.generalises:
        words.append("too few devices to say anything of others")
    if not found.controlled:
        words.append("no device kept the old version: the world may have changed at the same time")
    return words


def _row(difference: MeasuredDifference) -> tuple[Text, ...]:
    """Texts: what a publisher wrote as a class is never read as markup."""
    known = difference.low is not None and difference.high is not None
    interval = f"{difference.low:+.4g} to {difference.high:+.4g}" if known else "not yet known"
    name = "latency (log2 µs)" if difference.name == LATENCY else difference.name
    numbers = (f"{difference.baseline:.4g}", f"{difference.candidate:.4g}", f"{difference.difference:+.4g}")
    words = (name, *numbers, interval, f"{difference.margin:.3g}")
    return (*map(Text, words), Text(difference.word, style=_STYLES.get(difference.word, "")))
