"""`mooring samples export`, `mooring windows export`: files for other tools. Registered by `root`."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli.monitoring import Module, OfDevice, SinceHours, Version, samples
from cloud_hub.operator.cli.session import act, fail, note, transferring

if TYPE_CHECKING:
    from cloud_hub.operator.client import HubClient

windows = typer.Typer(no_args_is_help=True, help="Windows: what devices counted, for other tools.")
PARQUET = ".parquet"


@samples.command("export", epilog="Example:  mooring samples export digits.parquet --module digits --version 2")
def export_samples(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Parquet where it ends so; else a JSON object per line; - for those here."),
    ],
    module: Module = "",
    version: Version = 0,
    device: OfDevice = "",
    stratum: Annotated[str, typer.Option(help="Kept for this reason only.")] = "",
    since_hours: SinceHours = 0.0,
) -> None:
    """Write all sampled predictions that match to a file."""

    async def work(hub: HubClient) -> int:
        from cloud_hub.monitoring.samples import SampleQuery

        query = SampleQuery(
            module=module, version=version, device=device, stratum=stratum, since=_since(since_hours), limit=100
        )
        if str(file) != "-":
            with transferring(str(file), None) as progress:
                export = hub.export_samples_parquet if file.suffix == PARQUET else hub.export_samples
                return await export(query, file, progress)
        with tempfile.TemporaryDirectory(prefix="mooring-export-") as folder:
            whole = Path(folder) / "samples.ndjson"
            count = await hub.export_samples(query, whole)
            with whole.open() as lines:
                sys.stdout.writelines(lines)
        return count

    count = act(context, work)
    note(f"{count} bytes to {'standard output' if str(file) == '-' else file}")


@windows.command("export", epilog="Example:  mooring windows export june.parquet --module digits --since-hours 720")
def export_windows(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A Parquet file, named so.")],
    module: Module = "",
    version: Version = 0,
    device: OfDevice = "",
    each: Annotated[bool, typer.Option("--each", help="Each device and group, not the fleet as a whole.")] = False,
    totals: Annotated[bool, typer.Option("--totals", help="A row per look, not per cell of each feature.")] = False,
    since_hours: SinceHours = 0.0,
) -> None:
    """Write what devices counted to a file: per look and cell of each feature, beside the reference profile."""
    if file.suffix != PARQUET:
        fail(f"{file}: expected a name that ends in {PARQUET}: windows are written as Parquet only")

    async def work(hub: HubClient) -> int:
        from cloud_hub.datasets.counts import CountQuery

        since = _since(since_hours)
        query = CountQuery(module, version, device, each, since, table="looks" if totals else "cells")
        with transferring(str(file), None) as progress:
            return await hub.export_windows(query, file, progress)

    note(f"{act(context, work)} bytes to {file}")


@windows.callback()
def _windows() -> None:
    """Keeps `export` a command of its own."""


def _since(hours: float) -> float:
    return round(time.time() - 3600 * hours, 3) if hours else 0.0
