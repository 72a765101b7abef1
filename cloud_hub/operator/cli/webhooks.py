"""`mooring webhooks`: where events are sent, and what became of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cloud_hub.operator.cli.session import Format, Output, act, note, show, told
from cloud_hub.operator.errors import FileError

app = typer.Typer(no_args_is_help=True, help="Webhooks: URLs that events are sent to, signed, as CloudEvents.")

Number = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Its id, as `mooring webhooks list` shows it.")]
SecretFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The secret (whsec_...) is its first line; - reads standard input."),
]


@app.command(
    epilog="Example:  mooring webhooks create https://ops.example.com/mooring --kind 'alert.*' --module digits"
)
def create(
    context: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="An https address that takes POST requests.")],
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Kinds of events, such as 'alert.*'; all without it. Repeatable.")
    ] = None,
    module: Annotated[str, typer.Option(metavar="NAME", help="Only events about this module or model.")] = "",
    severity: Annotated[str, typer.Option(metavar="LEVEL", help="Only alerts of at least this severity.")] = "",
    scope: Annotated[
        str, typer.Option("--scope", metavar="QUERY", help="Only what these devices are about: 'site=lab'.")
    ] = "",
    secret_file: SecretFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Send events to a URL from now on, and print the secret that signs them, once."""
    from cloud_hub.operator import render_webhooks
    from cloud_hub.outward.webhooks import NewWebhook

    with told():
        secret = _first_line(secret_file)
    new = NewWebhook(url, tuple(kind or ("*",)), module, severity, scope, secret)
    show(act(context, lambda hub: hub.create_webhook(new)), output, render_webhooks.with_secret)


@app.command("list", epilog="Example:  mooring webhooks list")
def list_webhooks(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List webhooks, how far behind they are, and how many deliveries are dead."""
    found = act(context, lambda hub: hub.all_of(hub.webhooks()))
    from cloud_hub.operator import render_webhooks

    show(found, output, render_webhooks.webhooks)


@app.command("show", epilog="Example:  mooring webhooks show wh-3f2a90c1b2d4")
def show_webhook(context: typer.Context, webhook: Number, output: Output = Format.TABLE) -> None:
    """Show a webhook and its last deliveries."""
    found = act(context, lambda hub: hub.webhook(webhook))
    from cloud_hub.operator import render_webhooks

    show(found, output, render_webhooks.detail)


@app.command("test", epilog="Example:  mooring webhooks test wh-3f2a90c1b2d4")
def send_ping(context: typer.Context, webhook: Number, output: Output = Format.TABLE) -> None:
    """Send a ping now and show what the endpoint answered; status 1 when it was not taken."""
    found = act(context, lambda hub: hub.ping_webhook(webhook))
    from cloud_hub.operator import render_webhooks

    show(found, output, render_webhooks.tried)
    if not found.delivered:
        raise typer.Exit(1)


@app.command(epilog="Example:  mooring webhooks pause wh-3f2a90c1b2d4")
def pause(context: typer.Context, webhook: Number) -> None:
    """Let events wait from now on; none is lost."""
    act(context, lambda hub: hub.pause_webhook(webhook))
    note(f"paused {webhook}")


@app.command(epilog="Example:  mooring webhooks resume wh-3f2a90c1b2d4")
def resume(
    context: typer.Context,
    webhook: Number,
    skip: Annotated[bool, typer.Option("--skip", help="Leave out what waited.")] = False,
) -> None:
    """Send again, after a pause or after the hub has disabled it."""
    act(context, lambda hub: hub.resume_webhook(webhook, skip))
    note(f"resumed {webhook}")


@app.command(epilog="Example:  mooring webhooks rotate wh-3f2a90c1b2d4 --grace-hours 48")
def rotate(
    context: typer.Context,
    webhook: Number,
    secret_file: SecretFile = None,
    grace_hours: Annotated[float, typer.Option(min=0, max=720, help="How long the old secret signs, too.")] = 24.0,
    output: Output = Format.TABLE,
) -> None:
    """Give a webhook a new secret and print it, once."""
    with told():
        secret = _first_line(secret_file)
    found = act(context, lambda hub: hub.rotate_webhook(webhook, secret, grace_hours * 3600))
    from cloud_hub.operator import render_webhooks

    show(found, output, render_webhooks.with_secret)


@app.command(epilog="Example:  mooring webhooks delete wh-3f2a90c1b2d4")
def delete(context: typer.Context, webhook: Number) -> None:
    """Remove a webhook, with its dead deliveries."""
    act(context, lambda hub: hub.delete_webhook(webhook))
    note(f"deleted {webhook}")


@app.command(epilog="Example:  mooring webhooks dead wh-3f2a90c1b2d4")
def dead(
    context: typer.Context,
    webhook: Number,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    output: Output = Format.TABLE,
) -> None:
    """List deliveries that are not tried any more, newest first."""
    found = act(context, lambda hub: hub.dead_deliveries(webhook, limit))
    from cloud_hub.operator import render_webhooks

    show(found, output, render_webhooks.deliveries)


@app.command(epilog="Example:  mooring webhooks redeliver wh-3f2a90c1b2d4 --all")
def redeliver(
    context: typer.Context,
    webhook: Number,
    delivery: Annotated[int, typer.Argument(metavar="[DELIVERY]", min=0, help="Its number; or use --all.")] = 0,
    every: Annotated[bool, typer.Option("--all", help="All dead deliveries of this webhook.")] = False,
) -> None:
    """Send dead deliveries once more."""
    if bool(delivery) == every:
        raise typer.BadParameter("expected either a delivery's number or --all")
    count = act(context, lambda hub: hub.redeliver(webhook, delivery))
    note(f"{count} deliveries are sent once more")


def _first_line(file: Path | None) -> str:
    """Empty without a file. Raises FileError."""
    if file is None:
        return ""
    try:
        text = sys.stdin.readline() if str(file) == "-" else file.read_text().partition("\n")[0]
    except (OSError, UnicodeDecodeError) as error:
        raise FileError("file-unreadable", f"{file}: {error}") from error
    return text.strip()
