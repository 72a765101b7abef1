"""`mooring samples`, `mooring events`: what devices saw, and what happened."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli import completing
from cloud_hub.operator.cli.session import Format, Output, act, show

if TYPE_CHECKING:
    from cloud_hub.monitoring.samples import SampleQuery

samples = typer.Typer(no_args_is_help=True, help="Samples: predictions that devices kept and sent.")
events = typer.Typer(no_args_is_help=True, help="Events: the audit trail, and what devices told.")

Module = Annotated[str, typer.Option(help="Of this module only.", autocompletion=completing.module_names)]
Version = Annotated[int, typer.Option(min=0, help="Of this version only; 0 for any.")]
OfDevice = Annotated[str, typer.Option(help="Of this device only.", autocompletion=completing.devices)]
SinceHours = Annotated[float, typer.Option("--since-hours", min=0, help="Not older than this; 0 for all.")]


@samples.command("list", epilog="Example:  mooring samples list --module digits --device cam-17")
def list_samples(
    context: typer.Context,
    module: Module = "",
    version: Version = 0,
    device: OfDevice = "",
    stratum: Annotated[str, typer.Option(help="Kept for this reason only, such as base or low_confidence.")] = "",
    since_hours: SinceHours = 0.0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 20,
    output: Output = Format.TABLE,
) -> None:
    """List sampled predictions."""

    def query() -> SampleQuery:
        return _query(module, version, device, stratum, since_hours, limit)

    found = act(context, lambda hub: hub.samples(query()))
    from cloud_hub.operator import render

    show(found, output, render.samples)


@events.command("list", epilog="Example:  mooring events list --subject cam-17")
def list_events(
    context: typer.Context,
    kind: Annotated[str, typer.Option(help="Such as model.registered or device.enrolled.")] = "",
    subject: Annotated[str, typer.Option(help="Of this device, rollout or model (NAME:VERSION) only.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    output: Output = Format.TABLE,
) -> None:
    """List what happened, newest first."""
    found = act(context, lambda hub: hub.events(kind, subject, limit))
    from cloud_hub.operator import render

    show(found, output, render.events)


@events.callback()
def _events() -> None:
    """Keeps `list` a command of its own."""


def _query(module: str, version: int, device: str, stratum: str, since_hours: float, limit: int) -> SampleQuery:
    from cloud_hub.monitoring.samples import SampleQuery

    since = time.time() - 3600 * since_hours if since_hours else 0.0
    return SampleQuery(
        module=module, version=version, device=device, stratum=stratum, since=round(since, 3), limit=limit
    )
