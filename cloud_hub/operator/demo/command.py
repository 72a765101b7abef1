"""The `mooring demo` command: options, the folder it happens in, and what is left at the end."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from cloud_hub.operator.demo.acts import World
from cloud_hub.operator.demo.processes import ProcessFailed
from cloud_hub.operator.demo.scenes import FEW_DEVICES, MANY_DEVICES, fleet_in, play
from cloud_hub.operator.demo.story import ClaimError, DemoReport, Story, print_json
from cloud_hub.operator.demo.traffic import RequestFailed
from cloud_hub.operator.errors import OperatorError

EXPECTED = (ClaimError, ProcessFailed, RequestFailed, OperatorError)
INTERRUPTED = "interrupted; everything that the demo had started is stopped"
app = typer.Typer(add_completion=False, rich_markup_mode=None)


def main(arguments: list[str]) -> int:
    """Run the command with `arguments`. Returns the exit status. Raises ModuleNotFoundError without mooring[demo]."""
    for name in ("sklearn", "skl2onnx"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"no module {name}", name=name)
    status: int | None = typer.main.get_command(app).main(arguments, "mooring demo", standalone_mode=False)
    return status or 0


@app.command()
def demo(
    devices: Annotated[
        int, typer.Option(min=FEW_DEVICES, max=MANY_DEVICES, help="How many devices to run, as processes.")
    ] = FEW_DEVICES,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON report on standard output.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything up and print the addresses.")] = False,
) -> None:
    """Play the whole loop on this machine: train, release, serve, drift alert, retrain, canary.

    Starts a hub, a broker and real agents as processes, checks every claim it makes, and leaves nothing running.

    Examples:

      mooring demo

      mooring demo --devices 5 --json

      mooring demo --keep
    """
    story = Story()
    folder = Path(tempfile.mkdtemp(prefix="mooring-demo-"))
    report = asyncio.run(_run(story, folder, devices, keep, json))
    if report.ok:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        story.console.print(f"The logs are in {folder}")
    raise typer.Exit(0 if report.ok else 1)


async def _run(story: Story, folder: Path, devices: int, keep: bool, json: bool) -> DemoReport:
    """Play in `folder` and report. With `keep` the world then stays up until Ctrl-C."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        async with fleet_in(folder, devices, story) as world:
            report = await _interruptible(story, world, stopped)
            if keep and not stopped.is_set():
                _say_end(story, report, json)
                _say_addresses(story, world)
                await stopped.wait()
                return report
    except EXPECTED as error:  # after Ctrl-C a child that ended by it too is no failure of its own
        report = story.report(INTERRUPTED if stopped.is_set() else str(error))
    _say_end(story, report, json)
    return report


async def _interruptible(story: Story, world: World, stopped: asyncio.Event) -> DemoReport:
    """The report of the play, or of what was played before Ctrl-C."""
    acting, stopping = asyncio.create_task(play(world), name="play"), asyncio.create_task(stopped.wait(), name="stop")
    await asyncio.wait({acting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not acting.done():
        acting.cancel()
        await asyncio.wait({acting})
        return story.report(INTERRUPTED)
    error = acting.exception()
    if error is not None and not isinstance(error, EXPECTED):
        raise error
    return story.report("" if error is None else str(error))


def _say_addresses(story: Story, world: World) -> None:
    story.console.print(f"\nHub API   {world.client.context.url}")
    story.console.print(f"Context   export MOORING_CONTEXT={world.hub.context}")
    for device, endpoint in world.endpoints.items():
        story.console.print(f"{device:<9} {endpoint}")
    story.console.print("Press Ctrl-C to stop everything.")


def _say_end(story: Story, report: DemoReport, json: bool) -> None:
    if report.error:
        story.console.print(f"[bold red]{report.error}[/bold red]")
    held = sum(claim.ok for claim in report.claims)
    colour = "green" if report.ok else "red"
    story.console.print(f"[bold {colour}]{held} of {len(report.claims)} claims held[/], {report.seconds:.0f} s")
    if json:
        print_json(report)
