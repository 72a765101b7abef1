"""Several hubs for one person: context files under names, and which of them counts where none is named.

`contexts/NAME.toml` and `current` lie in the user's configuration folder. A hub's own context, and `context.toml`,
which `mooring login` writes without a name, are files like any other. Used by `cli`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from cloud_hub.operator.context import VARIABLE, HubContext
from cloud_hub.operator.errors import ContextError

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


class Known(msgspec.Struct, frozen=True):
    """One context: its name, the hub's address, and whether it is the one that counts where none is named."""

    name: str
    url: str
    current: bool


def folder(environment: Mapping[str, str] = os.environ) -> Path:
    return Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "mooring"


def path_of(text: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The file that a name stands for, or that is named by its path (with a slash, or an ending)."""
    if "/" in text or "." in text:
        return Path(text)
    if NAME.fullmatch(text) is None:
        raise ContextError("context-invalid", f"{text[:80]!r}: expected a context's name, or the path of a file")
    return folder(environment) / "contexts" / f"{text}.toml"


def default_path(environment: Mapping[str, str] = os.environ) -> Path:
    """MOORING_CONTEXT (a name or a file), else the context that `mooring context use` chose, else `context.toml`."""
    if environment.get(VARIABLE):
        return path_of(environment[VARIABLE], environment)
    chosen = current(environment)
    return path_of(chosen, environment) if chosen else folder(environment) / "context.toml"


def current(environment: Mapping[str, str] = os.environ) -> str:
    """The name that was chosen; empty where none was."""
    try:
        return (folder(environment) / "current").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def use(name: str, environment: Mapping[str, str] = os.environ) -> Known:
    """From now on it counts where none is named. Raises ContextError where there is none of that name."""
    path = path_of(_checked(name), environment)
    if not path.exists():
        raise ContextError("context-missing", f"no context {name!r}; `mooring context list` shows them")
    context = HubContext.load(path)
    place = folder(environment) / "current"
    fresh = place.with_name(f"current.{os.getpid()}.new")
    fresh.write_text(name + "\n", encoding="utf-8")
    fresh.replace(place)
    return Known(name, context.url, current=True)


def known(environment: Mapping[str, str] = os.environ) -> list[Known]:
    """All that have a name, by it. One that cannot be read is listed without an address."""
    chosen = current(environment)
    return [
        Known(path.stem, _url(path), path.stem == chosen)
        for path in sorted((folder(environment) / "contexts").glob("*.toml"))
        if NAME.fullmatch(path.stem)
    ]


def remove(name: str, environment: Mapping[str, str] = os.environ) -> None:
    """Forgets it, with the token that it holds. Raises ContextError."""
    try:
        path_of(_checked(name), environment).unlink()
    except FileNotFoundError as error:
        raise ContextError("context-missing", f"no context {name!r}; `mooring context list` shows them") from error
    if current(environment) == name:
        (folder(environment) / "current").unlink(missing_ok=True)


def _checked(name: str) -> str:
    if NAME.fullmatch(name) is None:
        raise ContextError("context-invalid", f"{name[:80]!r}: expected a name of letters, digits, - and _")
    return name


def _url(path: Path) -> str:
    try:
        return HubContext.load(path).url
    except ContextError:
        return ""
