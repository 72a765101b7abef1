"""Arguments that name a version of something, with their completion. Used by every command that takes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from cloud_hub.operator.cli import completing
from cloud_hub.operator.cli.session import ModelRef, WatchedRef


def versioned(about: str, complete: Callable[[typer.Context, str], list[str]] = completing.modules) -> Any:  # noqa: ANN401 - as Typer has it
    """NAME:VERSION of a module, or of what `complete` knows."""
    return typer.Argument(parser=ModelRef.parse, metavar="NAME:VERSION", help=about, autocompletion=complete)


def watched(about: str) -> Any:  # noqa: ANN401 - as Typer has it
    """NAME[:VERSION] of a module."""
    return typer.Argument(
        parser=WatchedRef.parse, metavar="NAME[:VERSION]", help=about, autocompletion=completing.modules
    )


Model = Annotated[ModelRef, versioned("Such as digits:2.", completing.models)]
