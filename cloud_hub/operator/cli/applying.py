"""`mooring apply`: makes the hub as a file says, after showing what that changes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli.rollout_watch import follow
from cloud_hub.operator.cli.session import Format, Output, act, note, show, told
from cloud_hub.operator.errors import OperatorError
from cloud_hub.words import counted, spoken

if TYPE_CHECKING:
    from cloud_hub.operator.applying.fleet_file import FleetFile
    from cloud_hub.operator.applying.steps import Change, Made, Step
    from cloud_hub.operator.client import HubClient

DIFFERENT = 3  # exit status of --dry-run --exit-code where something differs
EPILOG = "Example:  mooring apply -f fleet.yaml --dry-run"


def apply(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Option(
            "--file", "-f", metavar="FILE", help="The fleet: YAML, JSON or TOML.", exists=True, dir_okay=False
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help=f"With --dry-run: status {DIFFERENT} where something would change.")
    ] = False,
    prune: Annotated[
        bool, typer.Option(help="Also remove queries and groups that the file does not name, of kinds that it names.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before changing anything.")] = False,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Wait for each rollout to end before the next change; stop unless it finished."),
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Make saved queries, groups, tags, configurations, sampling policies and rollouts as a file says.

    What the file does not name stays as it is. Applying the same file again changes nothing; after a failure the same
    command goes on. Keep the file in git: --dry-run --exit-code tells whether the fleet still is as the file says.
    """
    from cloud_hub.operator.applying.fleet_file import read_fleet_file
    from cloud_hub.operator.render_applying import changes

    with told():
        declared = read_fleet_file(file)
    found = act(context, lambda hub: _compared(hub, declared, prune))
    if dry_run or not found:
        show(found, output, changes)
        raise typer.Exit(DIFFERENT if found and exit_code else 0)
    if output is Format.TABLE:
        show(found, output, changes)
    if not yes and sys.stdin.isatty() and not typer.confirm("Make these changes?", err=True):
        note("nothing was changed")
        raise typer.Exit(1)
    made = act(context, lambda hub: _made(hub, declared, prune, wait, output is Format.TABLE))
    if output is not Format.TABLE:
        show(made, output, changes)


async def _compared(hub: HubClient, declared: FleetFile, prune: bool) -> list[Change]:
    from cloud_hub.operator.applying.comparing import compare

    return [step.change async for step in compare(hub, declared, prune)]


async def _made(hub: HubClient, declared: FleetFile, prune: bool, wait: bool, live: bool) -> list[Change]:
    """Each step as soon as it is known, so that what builds on it is compared with it in place."""
    from cloud_hub.operator.applying.comparing import compare

    changes: list[Change] = []
    async for step in compare(hub, declared, prune):
        try:
            made = await step.make(hub)
            changes.append(step.change)
            _tell(step, made)
            if wait and made.rollout:
                await _ended(hub, made.rollout, live)
        except OperatorError as error:
            before = f"{counted(len(changes), 'change')} made; the same command goes on from here"
            raise OperatorError(error.key, f"{_name(step)}: {error.message} ({before})") from error
    return changes


async def _ended(hub: HubClient, rollout: str, live: bool) -> None:
    """Raises OperatorError `rollout-not-finished`."""
    status = await follow(hub, await hub.rollout(rollout), live)
    if status.rollout.state != "finished":
        text = f"rollout {rollout} is {spoken(status.rollout.state)}; look at it with: mooring rollout status {rollout}"
        raise OperatorError("rollout-not-finished", text)
    note(f"rollout {rollout}: finished")


def _name(step: Step) -> str:
    return f"{step.change.kind} {step.change.subject}"


def _tell(step: Step, made: Made) -> None:
    done = {"create": "created", "change": "changed", "remove": "removed", "roll out": "started"}[step.change.act]
    note(f"{_name(step)}: {done}" + (f" ({made.words})" if made.words else ""))
