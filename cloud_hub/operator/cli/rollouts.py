"""`mooring rollout`: create, steer, approve, list, and how they stand with --watch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli import completing
from cloud_hub.operator.cli.rollout_create import EXAMPLE, create
from cloud_hub.operator.cli.rollout_watch import Watch, all_back, shown
from cloud_hub.operator.cli.session import Format, Output, act, show

if TYPE_CHECKING:
    from cloud_hub.operator.client import HubClient
    from cloud_hub.rollouts.states import Execution, Rollout

app = typer.Typer(no_args_is_help=True, help="Rollouts: a module to many devices, group by group.")
app.command(epilog=EXAMPLE)(create)
RolloutId = Annotated[
    str, typer.Argument(metavar="ROLLOUT", help="Its id, such as r7.", autocompletion=completing.rollouts)
]
Reason = Annotated[str, typer.Option(help="For the audit trail.")]
Limit = Annotated[int, typer.Option(min=1, max=1_000_000, help="At most so many.")]


@app.command(epilog="Example:  mooring rollout start r7 --watch")
def start(context: typer.Context, rollout: RolloutId, watch: Watch = False, output: Output = Format.TABLE) -> None:
    """Start a draft."""
    shown(context, lambda hub: hub.start_rollout(rollout), output, watch)


@app.command(epilog="Example:  mooring rollout pause r7")
def pause(context: typer.Context, rollout: RolloutId, output: Output = Format.TABLE) -> None:
    """Open no further group; devices that are at it go on."""
    shown(context, lambda hub: hub.pause_rollout(rollout), output, watch=False)


@app.command(epilog="Example:  mooring rollout resume r7 --watch")
def resume(context: typer.Context, rollout: RolloutId, watch: Watch = False, output: Output = Format.TABLE) -> None:
    """Go on with a paused rollout. What it paused for is let pass; further failures count again."""
    shown(context, lambda hub: hub.resume_rollout(rollout), output, watch)


@app.command(epilog="Example:  mooring rollout abort r7 --roll-back --reason 'wrong labels'")
def abort(
    context: typer.Context,
    rollout: RolloutId,
    reason: Reason = "",
    roll_back: Annotated[bool, typer.Option("--roll-back", help="Verified devices go back, too.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """End a rollout now. Devices that are at it get back what they had; verified ones keep the module."""
    shown(context, lambda hub: hub.abort_rollout(rollout, reason, roll_back), output, watch=False)


@app.command("rollback", epilog="Example:  mooring rollout rollback r7 --reason 'too slow in the field' --watch")
def roll_back(
    context: typer.Context,
    rollout: RolloutId,
    reason: Reason = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Give every device back what it had before, also of a rollout that has ended.

    With --watch the status is 0 only if all are back, and nobody is stuck.
    """
    shown(context, lambda hub: hub.roll_back_rollout(rollout, reason), output, watch, all_back)


@app.command(epilog="Example:  mooring rollout retry r7 --watch")
def retry(context: typer.Context, rollout: RolloutId, watch: Watch = False, output: Output = Format.TABLE) -> None:
    """Begin again on devices that failed; in a rollout that has ended also on those that it cancelled."""
    shown(context, lambda hub: hub.retry_rollout(rollout), output, watch)


@app.command(epilog="Example:  mooring rollout finish r7")
def finish(context: typer.Context, rollout: RolloutId, output: Output = Format.TABLE) -> None:
    """End a rollout that devices go on to join. What has not ended is cancelled."""
    shown(context, lambda hub: hub.finish_rollout(rollout), output, watch=False)


@app.command(epilog="Example:  mooring rollout approve r7 --before group:2 -m 'the canaries look well'")
def approve(
    context: typer.Context,
    rollout: RolloutId,
    before: Annotated[str, typer.Option(metavar="STAGE", help="start, or group:2 (groups from 1).")] = "start",
    comment: Annotated[str, typer.Option("--comment", "-m", help="It stands in the audit trail.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Say yes to the start or to a group. Who may, and how many must, is in the plan."""
    shown(context, lambda hub: hub.approve_rollout(rollout, before, comment), output, watch=False)


@app.command("status", epilog="Example:  mooring rollout status r7 --watch")
def show_status(
    context: typer.Context, rollout: RolloutId, watch: Watch = False, output: Output = Format.TABLE
) -> None:
    """Show a rollout: its groups, what it waits for, and the devices that are at work or did not succeed."""
    shown(context, lambda hub: hub.rollout(rollout), output, watch)


@app.command("devices", epilog="Example:  mooring rollout devices r7 --state failed")
def list_devices(
    context: typer.Context,
    rollout: RolloutId,
    state: Annotated[str, typer.Option(help="Such as waiting, updating, verified, failed, reverted or stuck.")] = "",
    group: Annotated[int, typer.Option(min=0, help="Only of this group, from 1 on; 0 for all.")] = 0,
    limit: Limit = 100,
    output: Output = Format.TABLE,
) -> None:
    """List the devices of a rollout with how they stand and why, by id."""

    async def work(hub: HubClient) -> list[Execution]:
        page = hub.executions(rollout, _key(state), group - 1 if group else None, min(limit, 1000))
        return await hub.all_of(page, limit)

    found = act(context, work)
    from cloud_hub.operator import render_rollout

    show(found, output, render_rollout.executions)


@app.command("list", epilog="Example:  mooring rollout list --state running")
def list_rollouts(
    context: typer.Context,
    state: Annotated[
        str,
        typer.Option(help="draft, running, paused, rolling_back, finished, aborted, failed or rolled_back."),
    ] = "",
    module: Annotated[
        str, typer.Option(metavar="NAME", help="Only of this module.", autocompletion=completing.module_names)
    ] = "",
    limit: Limit = 100,
    output: Output = Format.TABLE,
) -> None:
    """List rollouts, newest first."""

    async def work(hub: HubClient) -> list[Rollout]:
        return await hub.all_of(hub.rollouts(_key(state), min(limit, 1000), module), limit)

    found = act(context, work)
    from cloud_hub.operator import render_rollout

    show(found, output, render_rollout.rollouts)


def _key(state: str) -> str:
    """Of a state as tables show it, or as programs read it."""
    return state.strip().replace(" ", "_")
