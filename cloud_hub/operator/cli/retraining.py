"""`mooring retrain`: plans and their runs, and this machine as a runner."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli.session import Format, Output, act, note, show, told, transferring
from cloud_hub.operator.errors import FileError

if TYPE_CHECKING:
    from cloud_hub.operator.client import HubClient
    from cloud_hub.retraining.plan import RetrainPlan
    from cloud_hub.retraining.records import KnownPlan, Run
    from cloud_hub.retraining.runner import Runner

app = typer.Typer(no_args_is_help=True, help="Retraining: on drift, on schedule or by hand, up to the canary.")
PlanName = Annotated[str, typer.Argument(metavar="PLAN", help="A plan's name.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Such as t-0123456789.")]
EngineAddress = Annotated[
    str, typer.Option("--engine", metavar="ADDRESS", help="The container engine for plans with an image.")
]
POLL_S = 1.0
WAIT_S = 5.0


@app.command(epilog="Example:  mooring retrain create plan.toml --file train.py")
def create(
    context: typer.Context,
    plan: Annotated[Path, typer.Argument(metavar="PLAN.toml", help="The plan; see docs/operate/retraining.md.")],
    file: Annotated[
        list[Path], typer.Option(metavar="FILE", help="Goes along, to where the command runs. Repeatable.")
    ] = [],  # noqa: B006
    append: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Training data from before: goes into each data set.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Make a plan, or put it in the place of the one of that name."""
    with told():
        values = _values(plan)

    async def work(hub: HubClient) -> KnownPlan:
        with transferring(plan.name, None) as progress:
            uploads = {path.name: (await hub.upload(path, progress)).sha256 for path in file}
            base = (await hub.upload(append, progress)).sha256 if append is not None else ""
        if uploads:
            values.setdefault("training", {})["files"] = uploads
        if append is not None:
            values.setdefault("data", {}).update(base=base, base_path=f"base{''.join(append.suffixes)}")
        return await hub.put_plan(_plan(plan, values))

    found = act(context, work)
    from cloud_hub.operator import render_retraining

    show(found, output, render_retraining.plan)


@app.command("list", epilog="Example:  mooring retrain list")
def list_plans(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List plans: what starts them, what they accept, when they ran."""
    found = act(context, lambda hub: hub.all_of(hub.plans()))
    from cloud_hub.operator import render_retraining

    show(found, output, render_retraining.plans)


@app.command("show", epilog="Example:  mooring retrain show nightly")
def show_plan(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="PLAN|RUN", help="A plan's name, or a run's id such as t-0123456789.")],
    output: Output = Format.TABLE,
) -> None:
    """Show a plan, or a run: where it stands, the verdict with its figures, what the command said."""
    from cloud_hub.operator import render_retraining

    if name.startswith("t-"):
        show(act(context, lambda hub: hub.retrain_run(name)), output, render_retraining.run)
    else:
        show(act(context, lambda hub: hub.plan(name)), output, render_retraining.plan)


@app.command(epilog="Example:  mooring retrain runs --plan nightly")
def runs(
    context: typer.Context,
    plan: Annotated[str, typer.Option(help="Of this plan only.")] = "",
    state: Annotated[str, typer.Option(help="In this state only, such as refused.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many.")] = 50,
    output: Output = Format.TABLE,
) -> None:
    """List runs, newest first."""
    found = act(context, lambda hub: hub.retrain_runs(plan, state, limit))
    from cloud_hub.operator import render_retraining

    show(found, output, render_retraining.runs)


@app.command(epilog="Example:  mooring retrain run nightly")
def run(
    context: typer.Context,
    plan: PlanName,
    why: Annotated[str, typer.Option(help="Why, for the run's history.")] = "by hand",
    elsewhere: Annotated[bool, typer.Option("--elsewhere", help="Only start it: a runner or the hub trains.")] = False,
    engine: EngineAddress = "",
    output: Output = Format.TABLE,
) -> None:
    """Run a plan now, training on this machine, where this command was started. What it says goes to standard error.

    Ends when the run has ended, waits for a signature, or has started its canary. Status 1 unless the candidate won.
    """

    async def work(hub: HubClient) -> Run:
        started = await hub.start_retraining(plan, why)
        if elsewhere:
            return started
        await _train_one(hub, _runner(hub, engine), started.id)
        return await _settled(hub, started.id)

    found = act(context, work)
    from cloud_hub.operator import render_retraining

    show(found, output, render_retraining.run)
    if found.state in ("failed", "refused", "skipped", "cancelled"):
        raise typer.Exit(1)


@app.command(epilog="Example:  mooring retrain work --plan nightly")
def work(
    context: typer.Context,
    plan: Annotated[list[str], typer.Option(help="Only runs of this plan; may be given more than once.")] = [],  # noqa: B006
    once: Annotated[bool, typer.Option("--once", help="End after one run, or when none waits.")] = False,
    engine: EngineAddress = "",
) -> None:
    """Be a runner: train every run that waits on this machine, one after the other, until interrupted."""

    async def keep(hub: HubClient) -> None:
        runner = _runner(hub, engine)
        while True:
            job = await hub.claim_retraining(runner.name, plan)
            if job is not None:
                note(f"run {job.run.id} of plan {job.plan.name}: {job.run.why}")
                done = await runner.do(job)
                note(f"run {done.id}: {done.state} {done.result.reason}")
            if once:
                return
            if job is None:
                await asyncio.sleep(WAIT_S)

    act(context, keep)


@app.command(epilog="Example:  mooring retrain cancel t-0123456789")
def cancel(
    context: typer.Context,
    run_id: RunId,
    reason: Annotated[str, typer.Option(help="Why, for the audit trail.")] = "",
) -> None:
    """End a run. A rollout that it has started goes on: `mooring rollout abort` ends that."""
    found = act(context, lambda hub: hub.cancel_retraining(run_id, reason))
    note(f"run {found.id} is {found.state}")


@app.command(epilog="Example:  mooring retrain stop nightly")
def stop(context: typer.Context, plan: PlanName) -> None:
    """Stop a plan: nothing starts it any more. Its history stays."""
    act(context, lambda hub: hub.stop_plan(plan))
    note(f"plan {plan} is stopped; create it again to go on")


def _values(plan: Path) -> dict[str, dict[str, object]]:
    import tomllib

    try:
        return tomllib.loads(plan.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FileError("plan-unreadable", f"{plan}: {error}; nothing was sent") from error


def _plan(path: Path, values: dict[str, dict[str, object]]) -> RetrainPlan:
    import msgspec

    from cloud_hub.retraining.plan import RetrainPlan

    try:
        return msgspec.convert(values, RetrainPlan)
    except msgspec.ValidationError as error:
        raise FileError("plan-invalid", f"{path}: {error}; nothing was changed") from error


def _runner(hub: HubClient, engine: str) -> Runner:
    """This machine, as whoever calls the command, with all of their environment."""
    import getpass
    import socket

    from cloud_hub.operator.retraining import HttpCounter
    from cloud_hub.retraining.runner import Runner

    name = f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}"[:80]
    return Runner(name, HttpCounter(hub, name), dict(os.environ), Path.cwd(), engine, _say)


def _say(piece: bytes) -> None:
    sys.stderr.buffer.write(piece)
    sys.stderr.buffer.flush()


async def _train_one(hub: HubClient, runner: Runner, run_id: str) -> None:
    """Waits for the data set, then trains; also where the hub or another runner was quicker."""
    while True:
        job = await hub.claim_retraining(runner.name, run=run_id)
        if job is not None:
            await runner.do(job)
            return
        if (await hub.retrain_run(run_id)).state not in ("queued", "collecting", "waiting"):
            return
        await asyncio.sleep(POLL_S)


async def _settled(hub: HubClient, run_id: str) -> Run:
    """Once there is nothing more to wait for."""
    while True:
        found = await hub.retrain_run(run_id)
        if found.finished_at is not None or found.state in ("unsigned", "canary"):
            return found
        await asyncio.sleep(POLL_S)
