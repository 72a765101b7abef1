"""`mooring simulate`: a fleet of devices without models, to try out a hub, or to find out how large it must be."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.live import Live

from cloud_hub.operator.cli.session import Format, Settings, parse_pairs, stdout, told

if TYPE_CHECKING:
    from cloud_hub.simulator.counts import Summary
    from cloud_hub.simulator.profile import Profile
    from cloud_hub.simulator.run import Wish

EPILOG = "Example:  mooring simulate --devices 1000 --profile fleet.toml --for 600"


def simulate(
    context: typer.Context,
    devices: Annotated[
        int | None, typer.Option("--devices", "-n", min=1, help="How many; by default those of --state, else 100.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile",
            "-p",
            metavar="FILE",
            help="What they are like (TOML): links, failures, silences, clones, liars.",
        ),
    ] = None,
    report_every: Annotated[
        float | None, typer.Option("--report-every", metavar="S", help="Seconds between two reports of a device.")
    ] = None,
    windows_every: Annotated[
        float | None, typer.Option("--windows-every", metavar="S", help="Between two windows; 0: none.")
    ] = None,
    for_s: Annotated[float, typer.Option("--for", metavar="S", min=0, help="How long; 0: until Ctrl-C.")] = 0.0,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state", metavar="FILE", help="Keeps the fleet: the next run with it is a restart of the devices."
        ),
    ] = None,
    hardware: Annotated[
        str, typer.Option("--hardware", metavar="NAME", help="The device profile that they enrol with.")
    ] = "generic-x86_64",
    prefix: Annotated[
        str, typer.Option("--prefix", metavar="TEXT", help="Of their ids; by default a new one for each new fleet.")
    ] = "",
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="NAME=VALUE", help="For all of them.")] = None,
    seed_database: Annotated[
        Path | None,
        typer.Option(
            "--seed-database",
            metavar="DIR",
            help="Put them into the database of the hub in DIR, without its API: for benchmarks on the hub's machine.",
        ),
    ] = None,
    output: Annotated[
        Format, typer.Option("--output", "-o", help="A live table, or a line of JSON each second.")
    ] = Format.TABLE,
) -> None:
    """A fleet that speaks the real protocol with real keys and signatures, and has no models.

    Ctrl-C ends it in order.
    """
    with told():
        from cloud_hub.simulator.run import Wish

        wish = Wish(
            devices or 0, _profile(profile, report_every, windows_every), hardware, prefix, parse_pairs(tag or []),
            for_s, state, seed_database,
        )  # fmt: skip
        settings = context.find_object(Settings) or Settings()
        summary = asyncio.run(_run(settings, wish, output))
    from cloud_hub.operator.render_simulation import line, table

    if output is Format.JSON:
        line("summary", summary)
    else:
        stdout().print(table(summary, None))


def _profile(path: Path | None, report_every: float | None, windows_every: float | None) -> Profile:
    """The file's, with what the command line says. Raises FileError, BadParameter."""
    from cloud_hub.simulator.profile import Profile, load

    read = load(path) if path is not None else Profile()
    said = {"report_every_s": report_every, "window_every_s": windows_every}
    try:
        return msgspec.structs.replace(read, **{name: value for name, value in said.items() if value is not None})
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


async def _run(settings: Settings, wish: Wish, output: Format) -> Summary:
    from cloud_hub.operator.render_simulation import Shown
    from cloud_hub.simulator.run import simulate as run

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    live = Live(console=Console(stderr=True), transient=True, refresh_per_second=4)
    if output is Format.JSON or not live.console.is_terminal:
        return await run(settings.load(), wish, stop, Shown(output is Format.JSON, None))
    with live:
        return await run(settings.load(), wish, stop, Shown(False, live))
