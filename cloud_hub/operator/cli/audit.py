"""`mooring audit`: the audit trail, and whether its chain of hashes holds. Everything is computed on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli.session import Format, Output, act, note, show, told, transferring
from cloud_hub.operator.errors import FileError

if TYPE_CHECKING:
    from cloud_hub.chain import Event, Link
    from cloud_hub.operator.client import HubClient

app = typer.Typer(no_args_is_help=True, help="Audit: who changed what and why, and whether the record is whole.")


@app.command("list", epilog="Example:  mooring audit list --subject cam-17 --limit 20")
def list_events(
    context: typer.Context,
    kind: Annotated[str, typer.Option(help="Such as user.created or rollout.started.")] = "",
    subject: Annotated[str, typer.Option(help="Of this device, rollout, user or model (NAME:VERSION) only.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    output: Output = Format.TABLE,
) -> None:
    """List changes, newest first, with who made them, why, and what was before and after."""
    found = act(context, lambda hub: hub.events(kind, subject, limit))
    from cloud_hub.operator import render

    show(found, output, render.events)


@app.command(epilog="Example:  mooring audit export events.ndjson")
def export(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="One JSON object per line, oldest first.")],
) -> None:
    """Write the whole audit trail to a file that can be verified without the hub."""

    async def work(hub: HubClient) -> int:
        with transferring(str(file), None) as progress:
            return await hub.export_audit(file, progress)

    count = act(context, work)
    note(f"{count} bytes to {file}")


@app.command(epilog="Example:  mooring audit verify events.ndjson --head 812:9c1f0d...")
def verify(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="An export; without it everything is read from the hub.")
    ] = None,
    head: Annotated[
        list[str],
        typer.Option("--head", metavar="ID:HASH", help="A place that the chain must have: what verify printed before."),
    ] = [],  # noqa: B006
    output: Output = Format.TABLE,
) -> None:
    """Compute every hash of the audit trail: a row changed, taken out, put in or moved shows. Status 1 if so."""
    known = [_link(text) for text in head]
    from cloud_hub import chain
    from cloud_hub.operator import render_people

    if file is not None:
        with told():
            verdict = chain.verify(_events(file), known)
    else:
        with tempfile.TemporaryDirectory(prefix="mooring-audit-") as folder:
            whole = Path(folder) / "events.ndjson"
            act(context, lambda hub: hub.export_audit(whole))
            with told():
                verdict = chain.verify(_events(whole), known)
    show(verdict, output, render_people.verdict)
    if not verdict.holds:
        raise typer.Exit(1)


def _link(text: str) -> Link:
    from cloud_hub.chain import Link

    try:
        return Link.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _events(file: Path) -> Iterator[Event]:
    """Raises FileError for a file that cannot be read or is no export."""
    import msgspec

    from cloud_hub.chain import Event

    number = 0
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):  # noqa: B007 - said in the error
                yield msgspec.json.decode(line, type=Event)
    except OSError as error:
        raise FileError("not-readable", f"{file}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise FileError("export-invalid", f"{file}, line {number}: expected an event ({error})") from error
