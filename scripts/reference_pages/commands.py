"""The command trees of `mooring`, `mooring-hub` (Typer) and `mooring-agent` (argparse) as values, and as a page.

The libraries' objects are only looked at here; `page` and the test see `Command` values.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_PROGRAMS = ("mooring", "mooring-hub", "mooring-agent")


@dataclass(frozen=True)
class Parameter:
    """An option or argument, as a person writes it."""

    names: str
    required: bool
    default: str
    environment: str
    help: str


@dataclass(frozen=True)
class Command:
    """One command that does something. `name` is the whole of it: "mooring model register"."""

    name: str
    help: str
    examples: tuple[str, ...]
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class Program:
    """A program with its commands, in the order in which it shows them."""

    name: str
    help: str
    parameters: tuple[Parameter, ...]
    commands: tuple[Command, ...]


def operator() -> Program:
    """`mooring`."""
    from typer.main import get_command

    from cloud_hub.operator import cli
    from cloud_hub.operator.demo import command as demo

    program = _click_program("mooring", cli.app)
    # The demo parses its own options, so that what it needs is imported only when it runs.
    inner = next(_click_commands("mooring demo", get_command(demo.app)))
    commands = tuple(inner if one.name == inner.name else one for one in program.commands)
    return dataclasses.replace(program, commands=commands)


def hub() -> Program:
    """`mooring-hub`."""
    from cloud_hub import cli

    return _click_program("mooring-hub", cli.app)


def agent() -> Program:
    """`mooring-agent`."""
    from agent import cli

    with _without(cli.STATE_VARIABLE):
        parser = cli.build_parser()
    commands = tuple(_argparse_commands("mooring-agent", parser))
    return Program("mooring-agent", _prose(parser.description or ""), tuple(_argparse_parameters(parser)), commands)


@contextmanager
def _without(variable: str) -> Iterator[None]:
    """Defaults as they are where the environment says nothing."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


def page(program: Program) -> str:
    """The program's page."""
    parts = [f"# `{program.name}`\n", program.help, ""]
    parts += _parameter_table(program.parameters)
    parts += [*(f"- [`{c.name}`](#{_anchor(c.name)})" for c in program.commands), ""]
    for command in program.commands:
        parts += [f"## {command.name}\n", command.help, ""]
        if command.examples:
            parts += ["```", *command.examples, "```", ""]
        parts += _parameter_table(command.parameters)
    return "\n".join(parts).rstrip() + "\n"


def _parameter_table(parameters: tuple[Parameter, ...]) -> Iterator[str]:
    if parameters:
        yield "| Option or argument | | Default |"
        yield "|---|---|---|"
        for one in parameters:
            twin = f" Environment: `{one.environment}`." if one.environment else ""
            default = "required" if one.required else f"`{one.default}`" if one.default else ""
            yield f"| `{one.names}` | {_cell(one.help + twin)} | {_cell(default)} |"
        yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


# --- Typer ----------------------------------------------------------------------------------------------------


def _click_program(name: str, app: Any) -> Program:  # noqa: ANN401 - a Typer app
    from typer.main import get_command

    root = get_command(app)
    context = root.make_context(name, [], resilient_parsing=True)
    commands = tuple(_click_commands(name, root))
    return Program(name, _prose(root.help or ""), tuple(_click_parameters(root, context)), commands)


def _click_commands(name: str, command: Any) -> Iterator[Command]:  # noqa: ANN401 - a click command, vendored or not
    children = getattr(command, "commands", None)
    if children is None:
        context = command.make_context(name, [], resilient_parsing=True)
        text = f"{command.help or ''}\n\n{command.epilog or ''}"
        yield Command(name, _prose(text), _examples(text), tuple(_click_parameters(command, context)))
        return
    for child, inner in children.items():
        if not inner.hidden:
            yield from _click_commands(f"{name} {child}", inner)


def _click_parameters(command: Any, context: Any) -> Iterator[Parameter]:  # noqa: ANN401 - as above
    for one in command.params:
        if one.hidden or set(one.opts) & {"--help", "--install-completion", "--show-completion", "--version"}:
            continue
        names, _ = one.get_help_record(context) or (one.metavar or one.name.upper(), "")
        flag = bool(getattr(one, "is_flag", False))
        names = _with_value(names)
        yield Parameter(names, one.required, _click_default(one, flag), _environment(one.envvar), one.help or "")


def _with_value(names: str) -> str:
    """Typer's <type> in our words for an option; an argument's name says enough."""
    kinds = {"int": " NUMBER", "float": " NUMBER", "path": " PATH"} if names.startswith("-") else {}
    other = " TEXT" if names.startswith("-") else ""
    return re.sub(r" ?<(\w*)[^>]*>", lambda shown: kinds.get(shown[1], other), names)


def _click_default(one: Any, flag: bool) -> str:  # noqa: ANN401 - a click parameter
    default = one.default
    if default is None or callable(default) or (flag and default is False) or type(default).__name__ == "Sentinel":
        return ""
    if isinstance(default, list | tuple):
        return ", ".join(str(value) for value in default)
    return str(getattr(default, "value", default))


def _environment(names: object) -> str:
    return names if isinstance(names, str) else ", ".join(names) if isinstance(names, list | tuple) else ""


# --- argparse -------------------------------------------------------------------------------------------------


def _argparse_commands(name: str, parser: argparse.ArgumentParser) -> Iterator[Command]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        text = f"{parser.description or ''}\n\n{parser.epilog or ''}"
        yield Command(name, _prose(text), _examples(text), tuple(_argparse_parameters(parser)))
    for group in groups:
        for child, inner in group.choices.items():
            yield from _argparse_commands(f"{name} {child}", inner)


def _argparse_parameters(parser: argparse.ArgumentParser) -> Iterator[Parameter]:
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction | argparse._VersionAction):
            continue
        takes = action.nargs != 0
        metavar = str(action.metavar or action.dest.upper())
        names = ", ".join(action.option_strings)
        default = "" if action.default in (None, False, argparse.SUPPRESS) else str(action.default)
        text = (action.help or "").replace("%(default)s", default).replace("%%", "%")
        required = action.required if action.option_strings else action.nargs not in ("?", "*")
        yield Parameter(f"{names} {metavar}".strip() if takes else names, required, default, "", text)


# --- text -----------------------------------------------------------------------------------------------------


def _examples(text: str) -> tuple[str, ...]:
    """The lines that are commands: the program's name first, perhaps behind "Example:" or "$"."""
    found = []
    for line in _clean(text).splitlines():
        words = re.sub(r"^\s*(?:Examples?:)?\s*\$?\s*", "", line).strip().strip("`").strip()
        if words.split(" ")[0] in _PROGRAMS and " " in words:
            found.append(words)
    return tuple(found)


def _prose(text: str) -> str:
    """The help without its examples."""
    lines = [line for line in _clean(text).splitlines() if not _examples(line)]
    kept = [line for line in lines if line.strip() not in ("Example:", "Examples:", "Example", "Examples")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.strip() for line in kept)).strip()


def _clean(text: str) -> str:
    return inspect.cleandoc(text).replace("\b\n", "").replace("\b", "").split("\f")[0]
