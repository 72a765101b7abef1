"""`mooring compare`: one version of a module against another, as it stands now or until it is decided."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli.references import versioned
from cloud_hub.operator.cli.session import Format, ModelRef, Output, act, note, show

if TYPE_CHECKING:
    from cloud_hub.arms.compare import Comparison
    from cloud_hub.operator.client import HubClient

app = typer.Typer()
POLL_S = 5.0


@app.command(epilog="Example:  mooring compare digits:8 --baseline 7 --quality 0.01")
def compare(
    context: typer.Context,
    module: Annotated[
        ModelRef,
        versioned("The candidate, such as digits:8."),
    ],
    baseline: Annotated[int, typer.Option(min=0, help="The version to compare with; 0: the newest one below.")] = 0,
    device: Annotated[str, typer.Option(help="On this device only.")] = "",
    errors: Annotated[float, typer.Option(metavar="SHARE", help="So much more of all requests may fail.")] = 0.01,
    refused: Annotated[float, typer.Option(metavar="SHARE", help="So much more of them may be refused.")] = 0.01,
    slower: Annotated[float, typer.Option(metavar="TIMES", help="So many times slower is still as fast.")] = 1.25,
    quality: Annotated[float, typer.Option(metavar="SHARE", help="So much larger may the error be.")] = 0.02,
    answers: Annotated[float, typer.Option(metavar="SHARE", help="So far apart, answers count as the same.")] = 0.05,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Until it is decided; status 1 when worse.")] = False,
    for_s: Annotated[float, typer.Option("--for", metavar="SECONDS", min=0, help="Watch no longer than this.")] = 7
    * 86_400.0,
    output: Output = Format.TABLE,
) -> None:
    """Compare two versions of a module: requests that fail, speed, labelled quality, and what they answer.

    The intervals hold however often you look, so a word that is said may be acted on at once.
    """

    async def work(hub: HubClient) -> Comparison:
        from cloud_hub.arms.margins import ComparisonQuery

        query = ComparisonQuery(
            module.name, module.version, baseline, device, errors=errors, refused=refused, slower=slower,
            quality=quality, answers=answers,
        )  # fmt: skip
        deadline = time.monotonic() + for_s
        found = await hub.compare(query)
        while watch and found.verdict == "undecided" and time.monotonic() + POLL_S < deadline:
            await asyncio.sleep(POLL_S)
            found = await hub.compare(query)
        return found

    found = act(context, work)
    from cloud_hub.operator import render_arms

    show(found, output, render_arms.comparison)
    if watch and found.verdict == "worse":
        note("the candidate is worse")
        raise typer.Exit(1)
