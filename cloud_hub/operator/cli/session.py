"""What every command shares: options, names on the command line, one connection, one way to print and to fail.

The heavy imports (the client and all types of the API) happen when a command talks, so that help and tab completion
stay quick.
"""

from __future__ import annotations

import asyncio
import enum
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import msgspec
import typer
from rich.console import Console, RenderableType
from rich.markup import escape

from cloud_hub.operator.context import HubContext
from cloud_hub.operator.contexts import default_path, path_of
from cloud_hub.operator.errors import OperatorError

if TYPE_CHECKING:
    from cloud_hub.operations.book import Operation
    from cloud_hub.operator.client import HubClient

INTERRUPTED = 130
WIDE = 160  # columns for output that does not go to a terminal
_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
_T = TypeVar("_T")


class Format(enum.StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Output = Annotated[Format, typer.Option("--output", "-o", help="A table to read, JSON or YAML to process.")]


@dataclass(frozen=True)
class Settings:
    """Options that stand before the command."""

    context: str = ""  # a name, or a file
    reason: str = ""

    @property
    def path(self) -> Path:
        """Raises ContextError."""
        return path_of(self.context) if self.context else default_path()

    def load(self) -> HubContext:
        return HubContext.load(self.path)


@dataclass(frozen=True)
class ModelRef:
    """NAME:VERSION."""

    name: str
    version: int

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        match = re.fullmatch(rf"({_NAME}):([1-9][0-9]{{0,8}})", text)
        if match is None:
            raise typer.BadParameter(f"expected NAME:VERSION such as digits:2, got {text!r}")
        return cls(match[1], int(match[2]))


@dataclass(frozen=True)
class ModuleRef:
    """NAME:VERSION/PROFILE; without a profile every build of the version."""

    name: str
    version: int
    profile: str = ""

    @classmethod
    def parse(cls, text: str) -> ModuleRef:
        match = re.fullmatch(rf"({_NAME}):([1-9][0-9]{{0,8}})(?:/({_NAME}))?", text)
        if match is None:
            raise typer.BadParameter(f"expected NAME:VERSION/PROFILE such as digits:2/raspberry-pi-5, got {text!r}")
        return cls(match[1], int(match[2]), match[3] or "")


@dataclass(frozen=True)
class WatchedRef:
    """NAME or NAME:VERSION; version 0 is the newest that runs."""

    name: str
    version: int = 0

    @classmethod
    def parse(cls, text: str) -> WatchedRef:
        match = re.fullmatch(rf"({_NAME})(?::([1-9][0-9]{{0,8}}))?", text)
        if match is None:
            raise typer.BadParameter(f"expected NAME or NAME:VERSION such as digits:2, got {text!r}")
        return cls(match[1], int(match[2] or 0))


def parse_pairs(texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE texts. Raises BadParameter."""
    found: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}")
        found[name] = value
    return found


def act(context: typer.Context, work: Callable[[HubClient], Awaitable[_T]]) -> _T:
    """Does the work with a connection to the context's hub. What goes wrong ends the command with one paragraph."""
    settings = context.find_object(Settings) or Settings()
    with told():
        return asyncio.run(_with_client(settings, work))


@contextmanager
def told() -> Iterator[None]:
    """Errors of the operator's side end the command with status 1, an interrupt with 130."""
    try:
        yield
    except OperatorError as error:
        fail(error.message)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(INTERRUPTED) from None


def fail(message: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {escape(message)}")
    raise typer.Exit(1)


def note(message: str) -> None:
    """A line for people, beside what the command prints."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(escape(message))


def show(value: _T, output: Format, render: Callable[[_T], RenderableType]) -> None:
    """The value on standard output."""
    if output is Format.JSON:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
        return
    if output is Format.YAML:
        import yaml

        # Through JSON: what is shown has the API's names and values in either form.
        plain = msgspec.json.decode(msgspec.json.encode(value))
        sys.stdout.write(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=False))
        return
    console = stdout()
    console.print(render(value))


def stdout() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDE)


@contextmanager
def transferring(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, where that is a terminal; takes how many more bytes have gone."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda more: progress.advance(task, more)


@contextmanager
def watching(what: str) -> Iterator[Callable[[Operation], None]]:
    """A line on standard error, where that is a terminal, with what a long operation is at."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda _operation: None
        return
    with console.status(escape(what)) as status:
        yield lambda operation: status.update(escape(f"{what}: {_at(operation)}"))


def _at(operation: Operation) -> str:
    far = f" ({operation.done:,} of {operation.total:,})" if operation.total else ""
    return (operation.doing or str(operation.state)) + far


async def _with_client(settings: Settings, work: Callable[[HubClient], Awaitable[_T]]) -> _T:
    from cloud_hub.operator.client import HubClient

    async with HubClient(settings.load(), settings.reason) as hub:
        return await work(hub)
