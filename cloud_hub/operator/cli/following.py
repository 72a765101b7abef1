"""`mooring events follow`: what happens, line by line, until it is interrupted. Registered by `root`."""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from cloud_hub.operator.cli.session import Format, Output, act, stdout

if TYPE_CHECKING:
    from cloud_hub.chain import Event
    from cloud_hub.operator.client import HubClient

EPILOG = "Example:  mooring events follow --kind 'rollout.*' --subject r-3f2a90c1"


def follow(
    context: typer.Context,
    kind: Annotated[
        list[str], typer.Option(metavar="KIND", help="Such as alert.opened, or 'rollout.*'; may be repeated.")
    ] = [],  # noqa: B006 - typer copies it
    subject: Annotated[
        list[str], typer.Option(metavar="SUBJECT", help="Of this device, rollout or model only; may be repeated.")
    ] = [],  # noqa: B006
    after: Annotated[int, typer.Option(min=-1, help="From behind this event; from now on without.")] = -1,
    count: Annotated[int, typer.Option(min=0, help="End after so many; 0: go on until interrupted.")] = 0,
    output: Output = Format.TABLE,
) -> None:
    """Show what happens as it happens; goes on by itself when the connection is cut."""

    async def work(hub: HubClient) -> None:
        seen = 0
        async with aclosing(hub.stream(kind, subject, None if after < 0 else after)) as events:
            async for event in events:
                _line(event, output)
                seen += 1
                if seen == count:
                    return

    act(context, work)


def _line(event: Event, output: Format) -> None:
    if output is not Format.TABLE:
        sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
        sys.stdout.flush()
        return
    from cloud_hub.operator.render import pairs, when

    said = pairs({name: str(value) for name, value in event.details.items()})
    line = f"{when(event.at)}  {event.kind}  {event.subject}  {event.actor}  {said}"
    stdout().print(line, markup=False, soft_wrap=True)
