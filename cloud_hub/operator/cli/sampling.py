"""`mooring sampling`, `mooring samples request` and `requests`: what devices send, keep, and are asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from cloud_hub.asking import words
from cloud_hub.operator.cli import completing
from cloud_hub.operator.cli.monitoring import samples
from cloud_hub.operator.cli.session import Format, Output, act, fail, note, show

app = typer.Typer(no_args_is_help=True, help="Sampling: which predictions devices send, and what is taken out before.")
_T = TypeVar("_T")

ModuleName = Annotated[
    str, typer.Argument(metavar="MODULE", help="The module's name.", autocompletion=completing.module_names)
]
OneDevice = Annotated[str, typer.Option(help="Of this device only.", autocompletion=completing.devices)]
Target = Annotated[str, typer.Option(metavar="QUERY", help="Of these devices: 'site=lab,profile=pi*'.")]
Share = Annotated[float | None, typer.Option(min=0, max=1)]


@app.command("show", epilog="Example:  mooring sampling show digits --target site=lab")
def show_sampling(
    context: typer.Context,
    module: ModuleName,
    device: OneDevice = "",
    target: Target = "",
    output: Output = Format.TABLE,
) -> None:
    """Show the sampling policy that counts on each device: the module's own, or one set for the device."""
    found = act(context, lambda hub: hub.all_of(hub.sampling(module, _target(device, target))))
    from cloud_hub.operator import render_asking

    show(found, output, render_asking.policies)


@app.command(
    "set",
    epilog="Example:  mooring sampling set digits --target site=lab --rate 0.01 --stratum 'odd=1:out-of-range' "
    "--quota 5MB --redact name=hash --ring-rows 10000",
)
def set_sampling(
    context: typer.Context,
    module: ModuleName,
    device: OneDevice = "",
    target: Target = "",
    rate: Annotated[float | None, typer.Option(min=0, max=1, help="Share of predictions that is sent.")] = None,
    first: Annotated[int | None, typer.Option(min=0, help="So many after each start are all sent.")] = None,
    stratum: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=RATE:CONDITION", help="More of those that fit, such as hot=0.5:temperature>=30. Repeatable."
        ),
    ] = None,
    no_stratum: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Without this one. Repeatable.")] = None,
    quota: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Bytes of samples a day: 5MB; none lifts it.")
    ] = None,
    redact: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=ACTION", help="drop, hash, coarsen, coarsen:STEP, blur, blur:T,L,H,W or none. Repeatable."
        ),
    ] = None,
    ring_rows: Annotated[
        str | None, typer.Option(metavar="N", help="Predictions that the device keeps, to ask for; none keeps nothing.")
    ] = None,
    ring_size: Annotated[str | None, typer.Option(metavar="SIZE", help="What they may take on its disk.")] = None,
    ring_age: Annotated[str | None, typer.Option(metavar="TIME", help="How long it keeps them: 6h, 2d.")] = None,
    blobs_above: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Larger tensors come apart from their sample, and last.")
    ] = None,
    window: Annotated[float | None, typer.Option(min=0.05, help="Seconds of a window.")] = None,
    grace: Annotated[str | None, typer.Option(metavar="TIME", help="How long a window waits for late rows.")] = None,
    privacy: Annotated[
        str | None,
        typer.Option(metavar="EPSILON", help="Only windows leave, with noise: epsilon a day; none takes it back."),
    ] = None,
    delta: Annotated[float, typer.Option(help="Of that promise.")] = 1e-6,
    rows_per_person: Annotated[int, typer.Option(min=1, help="Rows of a window that it hides together.")] = 1,
    default: Annotated[bool, typer.Option("--default", help="Back to the policy of the module itself.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Change the sampling policy of devices in their signed desired state, now, without a restart.

    What is not named stays as it is on each device. Later versions of the module keep it, unless their rollout brings a
    policy of its own.
    """
    plain = {"rate": rate, "first": first, "window_s": window}
    change = _promise(privacy, delta, rows_per_person)
    change |= {name: value for name, value in plain.items() if value is not None}
    parsed: tuple[tuple[str, str | None, Callable[[str], object]], ...] = (
        ("quota_bytes_per_day", quota, words.size),
        ("ring_rows", ring_rows, words.count),
        ("ring_bytes", ring_size, words.size),
        ("ring_s", ring_age, words.seconds),
        ("blob_bytes", blobs_above, words.size),
        ("grace_s", grace, words.seconds),
    )
    change |= {name: _said(parse, text) for name, text, parse in parsed if text is not None}
    strata = dict([_said(words.stratum, text) for text in stratum or ()]) | dict.fromkeys(no_stratum or ())
    redacted = dict([_said(words.redaction, text) for text in redact or ()])
    change |= ({"strata": strata} if strata else {}) | ({"redact": redacted} if redacted else {})
    if not change and not default:
        fail("say what to change: see mooring sampling set --help")
    from cloud_hub.asking.policies import PolicyChange
    from cloud_hub.operator import render_asking

    wanted = PolicyChange(module, _target(device, target), change, default, dry_run)
    found = act(context, lambda hub: hub.change_sampling(wanted))
    show(found, output, lambda policies: render_asking.changes(policies, dry_run))


def _promise(privacy: str | None, delta: float, rows_per_person: int) -> dict[str, Any]:
    """A promise takes samples and the ring away; what else is said on the line comes on top, and may be refused."""
    if privacy is None:
        return {}
    if privacy == "none":
        return {"privacy": None}
    promise = {"epsilon_per_day": _said(float, privacy), "delta": delta, "rows_per_person": rows_per_person}
    without = {"rate": 0.0, "first": 0, "low_confidence_rate": 0.0, "strata": None, "ring_rows": None}
    return {"privacy": promise, **without}


@samples.command(
    "request", epilog="Example:  mooring samples request --device cam-17 --module digits --stratum odd --last 50"
)
def request_samples(
    context: typer.Context,
    device: Annotated[str, typer.Option(help="The device.")],
    module: Annotated[str, typer.Option(help="The module that runs on it.")],
    id_: Annotated[str, typer.Option("--id", metavar="ID", help="This prediction.")] = "",
    rows: Annotated[
        str, typer.Option("--range", metavar="A:B", help="Rows by their numbers in the ring, A to B.")
    ] = "",
    stratum: Annotated[str, typer.Option(help="Only rows that fit this stratum.")] = "",
    since: Annotated[str, typer.Option(metavar="TIME", help="Not before: 2026-11-21T08:00, or 2h ago.")] = "",
    until: Annotated[str, typer.Option(metavar="TIME", help="Before this time.")] = "",
    last: Annotated[int, typer.Option(min=1, max=500, help="At most so many, the newest.")] = 100,
    expires: Annotated[str, typer.Option(metavar="TIME", help="How long the device may take to answer.")] = "1d",
    output: Output = Format.TABLE,
) -> None:
    """Ask a device for predictions that it has kept; they come as samples of the stratum `asked`."""
    first, final = _said(_range, rows)
    begin, end = (_said(_moment, text) for text in (since, until))
    life = _said(words.seconds, expires) or 86_400.0
    from cloud_hub.asking.commands import NewSampleRequest
    from cloud_hub.operator import render_asking
    from modules.commands import AskSamples

    asked = _said(lambda _: AskSamples(module, id_, first, final, stratum, begin, end, last), "")
    new = _said(lambda _: NewSampleRequest(device, asked, life), "")
    show(act(context, lambda hub: hub.request_samples(new)), output, render_asking.command)
    if output is Format.TABLE:
        note("what became of it: mooring samples requests")


@samples.command("requests", epilog="Example:  mooring samples requests --device cam-17 --state pending")
def list_requests(
    context: typer.Context,
    device: OneDevice = "",
    module: Annotated[str, typer.Option(help="Of this module only.")] = "",
    state: Annotated[str, typer.Option(help="pending, done, refused, failed or expired; all without it.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    output: Output = Format.TABLE,
) -> None:
    """List what devices were asked for, newest first, and what became of it."""
    found = act(context, lambda hub: hub.commands(device, module, state, limit))
    from cloud_hub.operator import render_asking

    show(found, output, render_asking.commands)


@samples.command("blob", epilog="Example:  mooring samples blob 42 image.bin --sha256 3b7f...")
def download_blob(
    context: typer.Context,
    sample: Annotated[int, typer.Argument(min=1, help="The sample's number.")],
    file: Annotated[Path, typer.Argument(help="Where its bytes go.")],
    sha256: Annotated[str, typer.Option(help="The tensor's digest, as the sample says it.")],
) -> None:
    """Download a large tensor of a sample, as raw little-endian bytes."""
    count = act(context, lambda hub: hub.sample_blob(sample, sha256, file))
    note(f"{count} bytes in {file}")


def _target(device: str, target: str) -> str:
    return ",".join(part for part in (f"id={device}" if device else "", target) if part)


def _said(parse: Callable[[str], _T], text: str) -> _T:
    """What an option says. What is wrong ends the command."""
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _range(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if text and not (colon and first.isdigit() and last.isdigit()):
        raise ValueError(f"expected A:B, two numbers of rows, got {text!r}")
    return (int(first), int(last)) if text else (0, 0)


def _moment(text: str) -> float:
    """Seconds since the epoch; 0 for nothing said."""
    if not text:
        return 0.0
    if text.endswith(" ago"):
        return round(time.time() - (words.seconds(text.removesuffix(" ago").strip()) or 0.0), 3)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"expected a time such as 2026-11-21T08:00 or '2h ago', got {text!r}") from None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
