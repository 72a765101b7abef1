"""`mooring context`: which hub, where somebody has several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator import contexts
from cloud_hub.operator.cli.session import Format, Output, note, show, told

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cloud_hub.operator.contexts import Known

app = typer.Typer(no_args_is_help=True, help="Hubs that `mooring login --name` has remembered.")


def complete(incomplete: str) -> list[str]:
    """Names for tab completion."""
    return [one.name for one in contexts.known() if one.name.startswith(incomplete)]


ContextName = Annotated[str, typer.Argument(metavar="NAME", help="The context's name.", autocompletion=complete)]


@app.command("list", epilog="Example:  mooring context list")
def list_contexts(output: Output = Format.TABLE) -> None:
    """List the hubs that have a name, and which one counts."""
    show(contexts.known(), output, _table)


@app.command("use", epilog="Example:  mooring context use lyon")
def use(name: ContextName) -> None:
    """Choose the hub for all commands without --context."""
    with told():
        chosen = contexts.use(name)
    note(f"commands go to {chosen.name} ({chosen.url})")


@app.command("remove", epilog="Example:  mooring context remove lyon")
def remove(name: ContextName) -> None:
    """Forget a hub and the token for it. The token itself stays good: `mooring logout` or `token revoke` end it."""
    with told():
        contexts.remove(name)
    note(f"{name} is forgotten")


def _table(found: list[Known]) -> RenderableType:
    from cloud_hub.operator.render import table

    rows = [("*" if one.current else "", one.name, one.url or "(not to be read)") for one in found]
    return table(("", "context", "hub"), rows, "no hub has a name yet: mooring login URL --name NAME ...")
