"""`mooring privacy`: what private windows have spent, and what a promise costs in noise."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli.session import Format, Output, act, fail, show

if TYPE_CHECKING:
    from cloud_hub.operator.client import HubClient
    from cloud_hub.privacy import PrivacySpent

app = typer.Typer(no_args_is_help=True, help="Privacy: what windows with noise have spent, and what they cost.")


@app.command("show", epilog="Example:  mooring privacy show --module digits --days 7")
def show_spent(
    context: typer.Context,
    module: Annotated[str, typer.Option(help="Of this module only.")] = "",
    device: Annotated[str, typer.Option(help="Of this device only.")] = "",
    days: Annotated[float, typer.Option(min=0, help="Not older than this; 0 for all.")] = 7.0,
    delta: Annotated[float, typer.Option(help="At which epsilon is said.")] = 1e-6,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 200,
    output: Output = Format.TABLE,
) -> None:
    """Show what each device has spent on each day, in zCDP (rho) and as epsilon at the delta given."""

    async def work(hub: HubClient) -> list[PrivacySpent]:
        from cloud_hub.privacy import PrivacyQuery

        since = time.time() - 86_400 * days if days else 0.0
        return await hub.privacy(PrivacyQuery(device, module, round(since, 3), delta, limit))

    found = act(context, work)
    from cloud_hub.operator import render_privacy

    show(found, output, render_privacy.spent)


@app.command("cost", epilog="Example:  mooring privacy cost --epsilon 3 --features 20 --window 3600 --devices 10000")
def show_cost(
    epsilon: Annotated[float, typer.Option(help="For each day, of one device and module.")],
    features: Annotated[int, typer.Option(min=1, help="Inputs and outputs that are counted.")],
    delta: Annotated[float, typer.Option(help="The chance that the promise does not hold.")] = 1e-6,
    rows_per_person: Annotated[int, typer.Option(min=1, help="Rows of one window that may be of one person.")] = 1,
    window: Annotated[float, typer.Option(metavar="SECONDS", help="Length of a window.")] = 300.0,
    devices: Annotated[int, typer.Option(min=1, help="Devices that are watched together.")] = 1,
    rows: Annotated[int, typer.Option(min=1, help="Predictions of a device in an hour.")] = 1200,
    output: Output = Format.TABLE,
) -> None:
    """Say how much noise a promise puts into an hour of counts, before you make it. Asks no hub."""
    from cloud_hub.operator import render_privacy
    from modules.errors import ManifestError
    from modules.privacy import Privacy

    try:
        privacy = Privacy(epsilon, delta, rows_per_person)
    except ManifestError as error:
        fail(str(error))
    show(render_privacy.cost_of(privacy, features, window, devices, rows), output, render_privacy.cost)
