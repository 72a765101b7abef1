"""`mooring operation`: long operations, what became of them, and their results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli.session import Format, Output, act, fail, note, show, transferring, watching

if TYPE_CHECKING:
    from cloud_hub.operations.book import Operation
    from cloud_hub.operator.client import HubClient

app = typer.Typer(no_args_is_help=True, help="Long operations: builds and exports that the hub does by and by.")
Id = Annotated[str, typer.Argument(metavar="ID", help="Such as op-3f2a90c1b2d45e6f.")]
WAIT_S = 20.0


@app.command("list", epilog="Example:  mooring operation list --state running")
def list_operations(
    context: typer.Context,
    state: Annotated[
        str, typer.Option(help="waiting, running, done, failed, cancelled or interrupted; all without.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    output: Output = Format.TABLE,
) -> None:
    """List your long operations, newest first; admins see all."""
    found = act(context, lambda hub: hub.operations(state, limit))
    from cloud_hub.operator import render_operations

    show(found, output, render_operations.operations)


@app.command("show", epilog="Example:  mooring operation show op-3f2a90c1b2d45e6f")
def show_operation(context: typer.Context, operation: Id, output: Output = Format.TABLE) -> None:
    """Show how far one is."""
    found = act(context, lambda hub: hub.operation(operation))
    from cloud_hub.operator import render_operations

    show(found, output, render_operations.operation)


@app.command(epilog="Example:  mooring operation wait op-3f2a90c1b2d45e6f")
def wait(context: typer.Context, operation: Id, output: Output = Format.TABLE) -> None:
    """Wait until one has ended; status 1 unless it is done."""

    async def work(hub: HubClient) -> Operation:
        with watching(operation) as watch:
            found = await hub.operation(operation)
            while not found.state.ended:
                watch(found)
                found = await hub.operation(operation, WAIT_S)
            return found

    found = act(context, work)
    from cloud_hub.operator import render_operations

    show(found, output, render_operations.operation)
    if found.state != "done":
        fail(f"operation {operation} has ended as {found.state}")


@app.command(epilog="Example:  mooring operation result op-3f2a90c1b2d45e6f samples.parquet")
def result(
    context: typer.Context,
    operation: Id,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
) -> None:
    """Download what one has made."""

    async def work(hub: HubClient) -> int:
        with transferring(str(file), None) as progress:
            return await hub.operation_result(operation, file, progress)

    note(f"{act(context, work)} bytes to {file}")


@app.command(epilog="Example:  mooring operation cancel op-3f2a90c1b2d45e6f")
def cancel(context: typer.Context, operation: Id, output: Output = Format.TABLE) -> None:
    """End one without a result; what it has done up to now stays."""
    found = act(context, lambda hub: hub.cancel_operation(operation))
    from cloud_hub.operator import render_operations

    show(found, output, render_operations.operation)
