"""Showing a rollout, and following it to its end. Used by every command that gives one."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.live import Live

from cloud_hub.operator.cli.session import Format, act, note, show, stdout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cloud_hub.operator.client import HubClient
    from cloud_hub.rollouts.status import RolloutStatus

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end; status 1 unless it finished.")]
POLL_S: Final = 0.5


def shown(
    context: typer.Context,
    work: Callable[[HubClient], Awaitable[RolloutStatus]],
    output: Format,
    watch: bool,
    well: Callable[[RolloutStatus], bool] = lambda status: status.rollout.state == "finished",
) -> None:
    """Does it and shows the rollout; with `watch` until it has ended, with exit status 0 only if that is `well`."""

    async def all_of_it(hub: HubClient) -> RolloutStatus:
        status = await work(hub)
        for said in status.notes:
            note(f"note: {said}")
        return await follow(hub, status, live=output is Format.TABLE) if watch else status

    status = act(context, all_of_it)
    from cloud_hub.operator import render_rollout

    show(status, output, render_rollout.rollout)
    if watch and not well(status):
        raise typer.Exit(1)


def all_back(status: RolloutStatus) -> bool:
    """Whether a fleet rollback has reached everybody."""
    stuck = any(count for group in status.groups for state, count in group.states.items() if state == "stuck")
    return status.rollout.state == "rolled_back" and not stuck


async def follow(hub: HubClient, status: RolloutStatus, live: bool) -> RolloutStatus:
    """Asks until the rollout has ended, drawing it meanwhile on a terminal."""
    from cloud_hub.operator.pace import Pace
    from cloud_hub.operator.render_rollout import rollout
    from cloud_hub.rollouts.states import ENDED, RolloutState

    console = stdout()
    console.quiet = not live or not console.is_terminal
    pace = Pace()
    with Live(rollout(status), console=console, transient=True, auto_refresh=False) as view:
        while status.rollout.state not in ENDED and status.rollout.state is not RolloutState.DRAFT:
            await asyncio.sleep(POLL_S)
            status = await hub.rollout(status.rollout.id)
            pace.note(status, time.monotonic())
            view.update(rollout(status, pace.progress(), time.time()), refresh=True)
    return status
