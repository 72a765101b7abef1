"""`mooring rollout`: create, start, pause, resume, abort, list, status with --watch."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live

from cloud_hub.operator.cli.session import Format, ModelRef, Output, act, fail, note, show, stdout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from cloud_hub.operator.client import HubClient
    from cloud_hub.rollouts.gate import CompareGate
    from cloud_hub.rollouts.status import RolloutStatus

app = typer.Typer(no_args_is_help=True, help="Rollouts: a module to many devices, group by group.")
RolloutId = Annotated[str, typer.Argument(metavar="ROLLOUT", help="Its id, such as r7.")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end; status 1 unless it finished.")]
POLL_S = 0.5


@app.command(
    epilog="Example:  mooring rollout create digits:2 --target 'site=lab' --group 1 --group 50% --group rest --start -w"
)
def create(
    context: typer.Context,
    module: Annotated[
        ModelRef, typer.Argument(parser=ModelRef.parse, metavar="NAME:VERSION", help="Such as digits:2.")
    ],
    target: Annotated[str, typer.Option(help="`all`, or terms such as site=lab,profile=jetson*,id=cam-1.")],
    group: Annotated[
        list[str], typer.Option(metavar="SIZE", help="In order: a number, a share such as 20%, or rest. Repeatable.")
    ] = ["rest"],  # noqa: B006
    success: Annotated[
        float, typer.Option(metavar="PERCENT", help="Verified devices of a group that open the next one.")
    ] = 100.0,
    max_errors: Annotated[
        float, typer.Option(metavar="PERCENT", help="More than this share of the ended devices failing stops it.")
    ] = 0.0,
    min_count: Annotated[int, typer.Option(min=1, help="Devices that must have ended before errors count.")] = 1,
    device_deadline: Annotated[float, typer.Option(metavar="SECONDS", help="For each device, from its group on.")] = (
        3600.0
    ),
    deadline: Annotated[float, typer.Option(metavar="SECONDS", help="For the rollout as a whole.")] = 7 * 86_400.0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Open each next group only once the version has proved no worse.")
    ] = False,
    baseline: Annotated[int, typer.Option(min=0, help="Compare with this version; 0: what devices ran before.")] = 0,
    margin: Annotated[
        list[str],
        typer.Option(metavar="MEASURE=AMOUNT", help="So much worse is still as good, such as errors=0.02. Repeatable."),
    ] = [],  # noqa: B006
    gate_deadline: Annotated[float, typer.Option(metavar="SECONDS", help="For each comparison.")] = 86_400.0,
    undecided: Annotated[str, typer.Option(metavar="stop|open", help="What follows when none was found by then.")] = (
        "stop"
    ),
    start: Annotated[bool, typer.Option("--start", help="Start at once; else it stays a draft.")] = False,
    watch: Watch = False,
    output: Output = Format.TABLE,
) -> None:
    """Create a rollout of a signed module. Devices are taken in the order of their ids.

    Success is a device that reports the module verified healthy after probation. A device that fails, or says nothing
    by its deadline, gets back what it had before.
    """

    async def work(hub: HubClient) -> RolloutStatus:
        from cloud_hub.rollouts.new import NewRollout

        return await hub.create_rollout(
            NewRollout(
                module=module.name,
                version=module.version,
                target=target,
                groups=tuple(group),
                success_threshold=success,
                error_threshold=max_errors,
                min_count=min_count,
                device_deadline_s=device_deadline,
                deadline_s=deadline,
                gate=_gate(baseline, margin, gate_deadline, undecided) if compare else None,
                start=start,
            )
        )

    _shown(context, work, output, watch and start)
    if watch and not start:
        note("a draft has nothing to watch; start it with `mooring rollout start`")


@app.command(epilog="Example:  mooring rollout start r7 --watch")
def start(context: typer.Context, rollout: RolloutId, watch: Watch = False, output: Output = Format.TABLE) -> None:
    """Start a draft."""
    _shown(context, lambda hub: hub.start_rollout(rollout), output, watch)


@app.command(epilog="Example:  mooring rollout pause r7")
def pause(context: typer.Context, rollout: RolloutId, output: Output = Format.TABLE) -> None:
    """Open no further group; devices that are at it go on."""
    _shown(context, lambda hub: hub.pause_rollout(rollout), output, watch=False)


@app.command(epilog="Example:  mooring rollout resume r7 --watch")
def resume(context: typer.Context, rollout: RolloutId, watch: Watch = False, output: Output = Format.TABLE) -> None:
    """Go on with a paused rollout."""
    _shown(context, lambda hub: hub.resume_rollout(rollout), output, watch)


@app.command(epilog="Example:  mooring rollout abort r7 --reason 'wrong labels'")
def abort(
    context: typer.Context,
    rollout: RolloutId,
    reason: Annotated[str, typer.Option(help="For the audit trail.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """End a rollout now. Devices that are at it get back what they had; verified ones keep the module."""
    _shown(context, lambda hub: hub.abort_rollout(rollout, reason), output, watch=False)


@app.command("status", epilog="Example:  mooring rollout status r7 --watch")
def show_status(
    context: typer.Context, rollout: RolloutId, watch: Watch = False, output: Output = Format.TABLE
) -> None:
    """Show a rollout: its groups, and the devices that are at work or did not succeed."""
    _shown(context, lambda hub: hub.rollout(rollout), output, watch)


@app.command("list", epilog="Example:  mooring rollout list --state running")
def list_rollouts(
    context: typer.Context,
    state: Annotated[str, typer.Option(help="draft, running, paused, finished, aborted or failed.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    output: Output = Format.TABLE,
) -> None:
    """List rollouts, newest first."""
    found = act(context, lambda hub: hub.rollouts(state, limit))
    from cloud_hub.operator import render_rollout

    show(found, output, render_rollout.rollouts)


def _gate(baseline: int, margins: Sequence[str], deadline_s: float, undecided: str) -> CompareGate:
    """Ends with an error for a margin that is none."""
    import msgspec

    from cloud_hub.arms.margins import Margins
    from cloud_hub.rollouts.gate import CompareGate

    pairs = [text.partition("=") for text in margins]
    values = {"deadline_s": deadline_s, "undecided": undecided, "baseline": baseline}
    known = Margins.__struct_fields__
    if wrong := [name for name, sign, _ in pairs if not sign or name not in known]:
        fail(f"--margin: expected NAME=NUMBER of {', '.join(known)}, got {wrong[0]!r}; nothing was created")
    try:
        given = msgspec.convert({name: value for name, _, value in pairs}, Margins, strict=False)
        return msgspec.convert(values | {"margins": msgspec.to_builtins(given)}, CompareGate)
    except ValueError as error:  # msgspec's own is one
        fail(str(error))


def _shown(
    context: typer.Context, work: Callable[[HubClient], Awaitable[RolloutStatus]], output: Format, watch: bool
) -> None:
    """Does it and shows the rollout; with `watch` until it has ended, with an exit status that says how."""

    async def all_of_it(hub: HubClient) -> RolloutStatus:
        status = await work(hub)
        return await _follow(hub, status, live=output is Format.TABLE) if watch else status

    status = act(context, all_of_it)
    from cloud_hub.operator import render_rollout
    from cloud_hub.rollouts.states import RolloutState

    show(status, output, render_rollout.rollout)
    if watch and status.rollout.state is not RolloutState.FINISHED:
        raise typer.Exit(1)


async def _follow(hub: HubClient, status: RolloutStatus, live: bool) -> RolloutStatus:
    """Asks until the rollout has ended, drawing it meanwhile on a terminal."""
    from cloud_hub.operator.render_rollout import rollout
    from cloud_hub.rollouts.states import ENDED, RolloutState

    console = stdout()
    console.quiet = not live or not console.is_terminal
    with Live(rollout(status), console=console, transient=True, auto_refresh=False) as view:
        while status.rollout.state not in ENDED and status.rollout.state is not RolloutState.DRAFT:
            await asyncio.sleep(POLL_S)
            status = await hub.rollout(status.rollout.id)
            view.update(rollout(status), refresh=True)
    return status
