"""`mooring dataset`: build, list, show, download, delete."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli.session import (
    Format,
    ModelRef,
    Output,
    WatchedRef,
    act,
    note,
    parse_pairs,
    show,
    transferring,
    watching,
)
from cloud_hub.operator.errors import FileError

if TYPE_CHECKING:
    from cloud_hub.datasets.wishes import Dataset
    from cloud_hub.operator.client import HubClient

app = typer.Typer(no_args_is_help=True, help="Data sets: samples and labels as versioned Parquet, to train on.")
DatasetRef = Annotated[ModelRef, typer.Argument(parser=ModelRef.parse, metavar="NAME:VERSION", help="Such as june:2.")]
HOUR_S = 3600.0


@app.command(epilog="Example:  mooring dataset build june --module digits --since-hours 720 --labelled-only")
def build(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Small letters, digits, - and _.")],
    module: Annotated[
        WatchedRef,
        typer.Option(parser=WatchedRef.parse, metavar="NAME[:VERSION]", help="Whose samples; of all versions without."),
    ],
    since: Annotated[str, typer.Option(metavar="TIME", help="Not older; 2026-06-01 or 2026-06-01T12:00, in UTC.")] = "",
    until: Annotated[str, typer.Option(metavar="TIME", help="Older than this; now without it.")] = "",
    since_hours: Annotated[float, typer.Option(min=0, help="Not older than so many hours; 0 for all.")] = 0.0,
    device: Annotated[list[str], typer.Option(help="Of this device; may be given more than once.")] = [],  # noqa: B006
    tag: Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="Of devices with this tag.")] = [],  # noqa: B006
    query: Annotated[str, typer.Option(help="Of devices that this tag query means, such as site=lyon.")] = "",
    stratum: Annotated[list[str], typer.Option(help="Kept for this reason; may be given more than once.")] = [],  # noqa: B006
    labelled_only: Annotated[bool, typer.Option("--labelled-only", help="Without rows that have no label.")] = False,
    asked: Annotated[bool, typer.Option("--asked", help="With samples asked for by hand; they weigh nothing.")] = False,
    held_out: Annotated[float, typer.Option(min=0, max=0.99, help="The share that training must not see.")] = 0.2,
    salt: Annotated[str, typer.Option(help="What the split is drawn by; the module's name without it.")] = "",
    append: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Training data from before: goes along as base.SUFFIX.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Build the next version of a data set from samples and the labels that have come.

    The same rows give the same files. Which rows are held out is decided by their prediction id, so that it is the same
    in every data set of the module.
    """
    terms = [f"{key}={value}" for key, value in parse_pairs(tag).items()] + ([query] if query else [])
    start = _moment(since) or (time.time() - HOUR_S * since_hours if since_hours else 0.0)

    async def work(hub: HubClient) -> Dataset:
        from cloud_hub.datasets.wishes import NewDataset

        base, path = "", ""
        if append is not None:
            with transferring(append.name, None) as progress:
                base, path = (await hub.upload(append, progress)).sha256, f"base{''.join(append.suffixes)}"
        try:
            new = NewDataset(
                name, module.name, module.version, round(start, 3), _moment(until), tuple(device), " and ".join(terms),
                tuple(stratum), labelled_only, asked, held_out, salt, base, path,
            )  # fmt: skip
        except ValueError as error:
            raise FileError("dataset-invalid", f"{error}; nothing was built") from error
        with watching(name) as watch:
            return await hub.build_dataset(new, watch)

    found = act(context, work)
    from cloud_hub.operator import render_datasets

    show(found, output, render_datasets.dataset)


@app.command("list", epilog="Example:  mooring dataset list --name june")
def list_datasets(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Versions of this data set only.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many.")] = 100,
    output: Output = Format.TABLE,
) -> None:
    """List data sets, newest versions first."""
    found = act(context, lambda hub: hub.datasets(name, limit))
    from cloud_hub.operator import render_datasets

    show(found, output, render_datasets.datasets)


@app.command("show", epilog="Example:  mooring dataset show june:2")
def show_dataset(context: typer.Context, dataset: DatasetRef, output: Output = Format.TABLE) -> None:
    """Show a data set: what was asked for, what came, its columns and files."""
    found = act(context, lambda hub: hub.dataset(dataset.name, dataset.version))
    from cloud_hub.operator import render_datasets

    show(found, output, render_datasets.dataset)


@app.command(epilog="Example:  mooring dataset download june:2 ./june")
def download(
    context: typer.Context,
    dataset: DatasetRef,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Made where it is not there.")],
) -> None:
    """Download a data set's files and check their digests; dataset.json says what they are."""

    async def work(hub: HubClient) -> int:
        from cloud_hub.operator import datasets

        found = await hub.dataset(dataset.name, dataset.version)
        with transferring(str(folder), sum(file.size for file in found.files)) as progress:
            await datasets.download(hub, found, folder, progress)
        return len(found.files)

    note(f"{act(context, work)} files in {folder}, digests as recorded")


@app.command(epilog="Example:  mooring dataset delete june:1")
def delete(context: typer.Context, dataset: DatasetRef) -> None:
    """Delete a data set that no model version was trained on."""
    act(context, lambda hub: hub.delete_dataset(dataset.name, dataset.version))
    note(f"deleted {dataset.name}:{dataset.version}; its number is not used again")


def _moment(text: str) -> float:
    """A date, or a date and a time, in UTC where it names no other zone; 0 for none."""
    from datetime import UTC, datetime

    if not text:
        return 0.0
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"expected a time such as 2026-06-01T12:00, got {text!r}") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
