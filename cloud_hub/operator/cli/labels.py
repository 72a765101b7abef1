"""`mooring labels`, `mooring quality`: what the right answers were, and how good the modules are by them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from cloud_hub.operator.cli.references import watched
from cloud_hub.operator.cli.session import Format, Output, WatchedRef, act, note, show, transferring

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cloud_hub.labels.rows import LabelsTaken, NewLabel
    from cloud_hub.operator.client import HubClient
    from cloud_hub.operator.label_files import LabelFile, Progress

labels = typer.Typer(no_args_is_help=True, help="Labels: what the right answers were.")
quality = typer.Typer(
    no_args_is_help=True, help="Quality: how good modules are by their labels, and estimated without."
)

BATCH = 500
MAX_REFUSED = 10_000  # that are kept for the report
SHOWN_REFUSED = 50
ModuleArgument = Annotated[
    WatchedRef,
    watched("Without a version the newest with labels."),
]


class RefusedLine(msgspec.Struct, frozen=True):
    """A row that was not kept, and why."""

    line: int
    key: str
    text: str


class ImportReport(msgspec.Struct):
    """What became of a file's rows. `refused_rows` may be more than are listed; `empty` rows have no label."""

    file: str
    dry_run: bool = False
    rows: int = 0
    accepted: int = 0
    waiting: int = 0
    corrected: int = 0
    unchanged: int = 0
    older: int = 0
    empty: int = 0
    refused_rows: int = 0
    refused: list[RefusedLine] = []
    ignored_columns: list[str] = []

    def refuse(self, line: int, key: str, text: str) -> None:
        self.refused_rows += 1
        if len(self.refused) < MAX_REFUSED:
            self.refused.append(RefusedLine(line, key, text))

    def count(self, taken: LabelsTaken, lines: list[int]) -> None:
        for name in ("accepted", "waiting", "corrected", "unchanged", "older"):
            setattr(self, name, getattr(self, name) + getattr(taken, name))
        for one in taken.refused:
            self.refuse(lines[one.row], one.key, one.text)


@labels.command("import", epilog="Example:  mooring labels import labels.csv --module digits")
def import_labels(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="CSV with a header, NDJSON or Parquet; - for standard input. Columns: prediction_id, label, and any "
            "of device, module, output, at, weight.",
        ),
    ],
    kind: Annotated[
        Literal["csv", "ndjson", "parquet"] | None,
        typer.Option("--format", help="What the file is; without it, what its name says, else CSV."),
    ] = None,
    module: Annotated[str, typer.Option(help="For rows that name none.")] = "",
    device: Annotated[str, typer.Option(help="For rows that name none.")] = "",
    of_output: Annotated[str, typer.Option("--of-output", help="The output, for rows that name none.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every row and keep nothing.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Bring labels to the hub. The newest label of a prediction counts; importing a file again changes nothing."""
    from cloud_hub.operator.label_files import LabelFile

    defaults = {"module": module, "device": device, "output": of_output}
    source = LabelFile(file, kind, {name: value for name, value in defaults.items() if value}, time.time())
    report = ImportReport(str(file), dry_run)

    async def work(hub: HubClient) -> None:
        size = file.stat().st_size if str(file) != "-" and file.is_file() else None
        with transferring(str(file), size) as progress:
            await _send(hub, source, report, progress)

    try:
        act(context, work)
    finally:
        report.ignored_columns = sorted(source.ignored)
        if report.rows:
            show(report, output, _rendered)
    if report.refused_rows:
        raise typer.Exit(1)


@labels.command("list", epilog="Example:  mooring labels list --state waiting")
def list_labels(
    context: typer.Context,
    prediction: Annotated[str, typer.Option(help="Of this prediction id only.")] = "",
    module: Annotated[str, typer.Option(help="Naming this module only.")] = "",
    device: Annotated[str, typer.Option(help="Naming this device only.")] = "",
    state: Annotated[str, typer.Option(help="waiting, joined or unusable; any without it.")] = "",
    history: Annotated[bool, typer.Option("--history", help="Also those that were corrected.")] = False,
    after: Annotated[int, typer.Option(min=0, help="The id of the last one of the page before.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    output: Output = Format.TABLE,
) -> None:
    """List labels, in the order in which they came."""
    from cloud_hub.labels.rows import LabelQuery

    query = LabelQuery(prediction, device, module, state, history, after, limit)
    found = act(context, lambda hub: hub.labels(query))
    from cloud_hub.operator import render_quality

    show(found, output, render_quality.labels)
    if len(found) == limit:
        note(f"there may be more: --after {found[-1].id}, or --limit")


@quality.command("show", epilog="Example:  mooring quality show digits:2 --by device")
def show_quality(
    context: typer.Context,
    module: ModuleArgument,
    by: Annotated[str, typer.Option(help="device, day, version, profile, agent, os, or a tag such as site.")] = "",
    device: Annotated[str, typer.Option(help="One device; without it all of them.")] = "",
    of_output: Annotated[str, typer.Option("--of-output", help="One output; without it each that has labels.")] = "",
    since_hours: Annotated[float, typer.Option("--since-hours", min=0, help="Not older than this; 0 for 90 days.")] = 0,
    output: Output = Format.TABLE,
) -> None:
    """Show how good a module is by its labels, weighted so that it holds for all predictions, and what is estimated."""
    from cloud_hub.labels.report import QualityQuery

    since = round(time.time() - 3600 * since_hours, 3) if since_hours else 0.0
    query = QualityQuery(module.name, module.version, of_output, device, by, since)
    found = act(context, lambda hub: hub.quality(query))
    from cloud_hub.operator import render_quality

    show(found, output, render_quality.quality)


@quality.command("bounds", epilog="Example:  mooring quality bounds")
def list_bounds(
    context: typer.Context,
    module: Annotated[str, typer.Option(help="Of this module only.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """List how good modules are asked to be."""
    found = act(context, lambda hub: hub.all_of(hub.quality_bounds(module)))
    from cloud_hub.operator import render_quality

    show(found, output, render_quality.bounds)


@quality.command("ask", epilog="Example:  mooring quality ask digits --accuracy 0.95")
def ask(
    context: typer.Context,
    module: Annotated[str, typer.Argument(metavar="NAME", help="The module, in every version.")],
    accuracy: Annotated[float | None, typer.Option(help="At least this share of right answers.")] = None,
    mae: Annotated[float | None, typer.Option(help="At most this mean absolute error.")] = None,
    of_output: Annotated[str, typer.Option("--of-output", help="The output; without it the main one.")] = "",
    nothing: Annotated[bool, typer.Option("--nothing", help="Ask for nothing any more.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Say how good a module must be: when labels prove that it is worse, there is an alert."""
    if sum((accuracy is not None, mae is not None, nothing)) != 1:
        raise typer.BadParameter("expected one of --accuracy, --mae and --nothing")
    if nothing:
        act(context, lambda hub: hub.remove_quality_bound(module, of_output))
        note(f"nothing is asked of {module} any more")
        return
    from cloud_hub.labels.bounds import NewBound

    new = (
        NewBound(module, "mae", mae, of_output)
        if mae is not None
        else NewBound(module, "accuracy", accuracy or 0.0, of_output)
    )
    made = act(context, lambda hub: hub.set_quality_bound(new))
    from cloud_hub.operator import render_quality

    show([made], output, render_quality.bounds)


async def _send(hub: HubClient, source: LabelFile, report: ImportReport, progress: Progress) -> None:
    """In batches; what a batch brought is in the report before the next is sent."""
    batch: list[tuple[int, NewLabel]] = []
    for line in source.lines(progress):
        report.rows += 1
        if line.problem is not None:
            report.refuse(line.number, line.problem.key, str(line.problem))
        elif line.label is None:
            report.empty += 1
        else:
            batch.append((line.number, line.label))
        if len(batch) == BATCH:
            await _flush(hub, batch, report)
            batch = []
    if batch:
        await _flush(hub, batch, report)


async def _flush(hub: HubClient, batch: list[tuple[int, NewLabel]], report: ImportReport) -> None:
    from cloud_hub.labels.rows import NewLabels

    taken = await hub.add_labels(NewLabels(tuple(label for _, label in batch), report.dry_run))
    report.count(taken, [number for number, _ in batch])


def _rendered(report: ImportReport) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from cloud_hub.operator.render import table

    said = (
        ("accepted", report.accepted, "new labels of predictions that are here"),
        ("waiting", report.waiting, "of predictions that are not here yet: kept until they come"),
        ("corrected", report.corrected, "took the place of another label"),
        ("unchanged", report.unchanged, "said what was known"),
        ("older", report.older, "given before the label that counts: kept as history"),
        ("empty", report.empty, "rows without a label"),
        ("refused", report.refused_rows, "see below"),
    )
    counts = table(("rows", "", ""), [(name, str(count), text) for name, count, text in said if count], "no rows")
    parts = [Text("dry run: nothing was kept", style="bold yellow")] if report.dry_run else []
    if report.ignored_columns:
        parts.append(Text(f"ignored columns: {', '.join(report.ignored_columns)}"))
    lines = [(f"line {one.line}", one.key, one.text) for one in report.refused[:SHOWN_REFUSED]]
    more = report.refused_rows - len(lines)
    last = [Text(f"{more} more were refused; -o json lists them", style="dim")] if more > 0 else []
    return Group(*parts, counts, *([table(("refused", "", ""), lines, "")] if lines else []), *last)
