"""`mooring apply`: makes the hub as a file says, after showing what that changes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli.session import Format, Output, act, note, show, told

if TYPE_CHECKING:
    from cloud_hub.operator.applying.fleet_file import FleetFile
    from cloud_hub.operator.applying.steps import Change, Step
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
    made = act(context, lambda hub: _made(hub, declared, prune))
    if output is not Format.TABLE:
        show(made, output, changes)


async def _compared(hub: HubClient, declared: FleetFile, prune: bool) -> list[Change]:
    from cloud_hub.operator.applying.comparing import compare

    return [step.change async for step in compare(hub, declared, prune)]


async def _made(hub: HubClient, declared: FleetFile, prune: bool) -> list[Change]:
    """Each step as soon as it is known, so that what builds on it is compared with it in place."""
    from cloud_hub.operator.applying.comparing import compare

    made: list[Change] = []
    async for step in compare(hub, declared, prune):
        words = await step.make(hub)
        made.append(step.change)
        _tell(step, words)
    return made


def _tell(step: Step, words: str) -> None:
    done = {"create": "created", "change": "changed", "remove": "removed", "roll out": "started"}[step.change.act]
    note(f"{step.change.kind} {step.change.subject}: {done}" + (f" ({words})" if words else ""))
