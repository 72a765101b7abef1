"""`mooring candidate`: a version beside the one that serves: start, list, show, report, share, promote, drop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli import completing
from cloud_hub.operator.cli.references import versioned
from cloud_hub.operator.cli.session import Format, ModelRef, Output, act, fail, note, show

if TYPE_CHECKING:
    from cloud_hub.arms.candidate import Candidate, CandidateReport
    from cloud_hub.operator.client import HubClient

app = typer.Typer(no_args_is_help=True, help="Candidates: versions that run beside the one that serves.")
Which = Annotated[
    str,
    typer.Argument(
        metavar="ID|NAME:VERSION",
        help="Its id, such as r7, or digits:8: its newest.",
        autocompletion=completing.candidates,
    ),
]
Reference = Annotated[
    ModelRef,
    versioned("Such as digits:8."),
]
Share = Annotated[float, typer.Option(min=0, max=1, help="Of the predictions, or devices: from 0 to 1.")]
Groups = Annotated[
    list[str], typer.Option("--group", metavar="SIZE", help="In order: a number, a share such as 20%, or rest.")
]
NEWEST = 1000


@app.command(epilog="Example:  mooring candidate start digits:8 --as shadow --target site=lab --group 1 --group rest")
def start(
    context: typer.Context,
    module: Reference,
    way: Annotated[str, typer.Option("--as", metavar="shadow|arm", help="Answers nobody, or a share.")] = "shadow",
    by: Annotated[str, typer.Option(metavar="request|device", help="What an arm's share is of.")] = "request",
    share: Share = 1.0,
    salt: Annotated[str, typer.Option(help="That of an earlier candidate draws the same keys.")] = "",
    target: Annotated[str, typer.Option(help="`all`, or terms such as site=lab.")] = "all",
    group: Groups = ["rest"],  # noqa: B006
    max_errors: Annotated[float, typer.Option(metavar="PERCENT", help="Failing devices that stop it.")] = 0.0,
    device_deadline: Annotated[float, typer.Option(metavar="SECONDS", help="For each device.")] = 3600.0,
    output: Output = Format.TABLE,
) -> None:
    """Run a signed version beside the one that serves.

    A shadow is fed the same inputs and answers nobody. An arm answers a share of the requests on each device, or is the
    main version of a share of the devices. It comes by a rollout with the candidate's id.
    """
    if way not in ("shadow", "arm") or by not in ("request", "device"):
        fail(f"expected --as shadow or arm and --by request or device, got {way} and {by}")

    async def work(hub: HubClient) -> Candidate:
        import msgspec

        from cloud_hub.arms.candidate import NewCandidate

        said = {
            "module": module.name, "version": module.version, "way": way, "split": by, "share": share, "salt": salt,
            "target": target, "groups": group, "error_threshold": max_errors, "device_deadline_s": device_deadline,
        }  # fmt: skip
        return await hub.start_candidate(msgspec.convert(said, NewCandidate))

    _shown(act(context, work), output)


@app.command("list", epilog="Example:  mooring candidate list --state running")
def list_candidates(
    context: typer.Context,
    module: Annotated[str, typer.Option(help="Of this module only.")] = "",
    state: Annotated[str, typer.Option(help="running, promoted or dropped.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    output: Output = Format.TABLE,
) -> None:
    """List candidates, newest first."""
    found = act(context, lambda hub: hub.candidates(module, state, limit))
    from cloud_hub.operator import render_candidates

    show(found, output, render_candidates.candidates)


@app.command("show", epilog="Example:  mooring candidate show digits:8")
def show_one(context: typer.Context, candidate: Which, output: Output = Format.TABLE) -> None:
    """Show a candidate."""

    async def work(hub: HubClient) -> Candidate:
        return await hub.candidate(await _id(hub, candidate))

    _shown(act(context, work), output)


@app.command(epilog="Example:  mooring candidate report digits:8 --baseline 7")
def report(
    context: typer.Context,
    candidate: Which,
    baseline: Annotated[int, typer.Option(min=0, help="Against this version; 0: the newest one below.")] = 0,
    output: Output = Format.TABLE,
) -> None:
    """Say how a candidate does: what it was given, how often it agrees, and the versions against each other."""

    async def work(hub: HubClient) -> CandidateReport:
        return await hub.candidate_report(await _id(hub, candidate), baseline)

    found = act(context, work)
    from cloud_hub.operator import render_candidates

    show(found, output, render_candidates.report)


@app.command(epilog="Example:  mooring candidate share digits:8 0.25")
def share(
    context: typer.Context,
    candidate: Which,
    part: Annotated[float, typer.Argument(metavar="SHARE", min=0, max=1, help="From 0 to 1.")],
    output: Output = Format.TABLE,
) -> None:
    """Give a candidate another share of the predictions; nothing is installed again."""

    async def work(hub: HubClient) -> Candidate:
        return await hub.change_candidate_share(await _id(hub, candidate), part)

    _shown(act(context, work), output)


@app.command(epilog="Example:  mooring candidate promote digits:8 --group 10% --group rest")
def promote(
    context: typer.Context,
    candidate: Which,
    target: Annotated[str, typer.Option(help="Other devices than the candidate's own.")] = "",
    group: Groups = ["rest"],  # noqa: B006
    output: Output = Format.TABLE,
) -> None:
    """Make a candidate the main version of its devices, by a rollout that starts now."""

    async def work(hub: HubClient) -> tuple[Candidate, bool]:
        from cloud_hub.arms.candidate import Promotion

        known = await _id(hub, candidate)
        report = await hub.candidate_report(known)
        compared = report.comparison is not None or report.outcomes.compared > 0
        return await hub.promote_candidate(known, Promotion(target, tuple(group))), compared

    found, compared = act(context, work)
    if not compared:
        name = f"{found.module}:{found.version}"
        note(f"note: nothing was compared: no prediction of {name} beside another version was counted")
    _shown(found, output)


@app.command(epilog="Example:  mooring candidate drop digits:8 --reason 'says less than the one before'")
def drop(
    context: typer.Context,
    candidate: Which,
    reason: Annotated[str, typer.Option(help="For the audit trail.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Take a candidate from its devices; they go on with what they had."""

    async def work(hub: HubClient) -> Candidate:
        return await hub.drop_candidate(await _id(hub, candidate), reason)

    _shown(act(context, work), output)


async def _id(hub: HubClient, text: str) -> str:
    """Of the newest candidate of a version, or the text itself."""
    if ":" not in text:
        return text
    wanted = ModelRef.parse(text)
    found = [one for one in await hub.candidates(wanted.name, limit=NEWEST) if one.version == wanted.version]
    if not found:
        fail(f"no candidate {text}: start one with `mooring candidate start {text}`")
    return next((one for one in found if one.state == "running"), found[0]).id


def _shown(found: Candidate, output: Format) -> None:
    from cloud_hub.operator import render_candidates

    show(found, output, render_candidates.candidate)
