"""Names that the hub knows, for tab completion. Used as `autocompletion=`; `whole_words` by `root`.

Somebody is waiting at the keyboard and nothing can be said to them: where the hub is away, slow, or refuses, there are
no names, and neither an error nor output. Shells do more with a line than show it (Typer's script for zsh evaluates
it), so that plain names alone are given, and never text that somebody wrote. The client with all types of the API would
take a second to load, so that the standard library asks.
"""

from __future__ import annotations

import io
import json
import re
import sys
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, Final

import typer

from cloud_hub.operator.cli.session import Settings

PATIENCE_S: Final = 2.0  # for the whole question
MAX_NAMES: Final = 50
MAX_ROWS: Final = 500  # of a list that cannot be asked for a beginning; every list gives so many
MAX_BYTES: Final = 4 * 1024 * 1024
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,199}")


def devices(context: typer.Context, incomplete: str) -> list[str]:
    if re.fullmatch(r"[a-z0-9-]*", incomplete) is None:
        return []
    query = f"id={incomplete}*" if incomplete else "all"
    return _named(context, incomplete, "{id}", "/devices", query=query, brief="true", limit=MAX_NAMES)


def groups(context: typer.Context, incomplete: str) -> list[str]:
    return _named(context, incomplete, "{name}", "/groups", limit=MAX_ROWS)


def queries(context: typer.Context, incomplete: str) -> list[str]:
    return _named(context, incomplete, "{name}", "/queries", limit=MAX_ROWS)


def rollouts(context: typer.Context, incomplete: str) -> list[str]:
    """The newest."""
    return _named(context, incomplete, "{id}", "/rollouts", limit=MAX_ROWS)


def candidates(context: typer.Context, incomplete: str) -> list[str]:
    """Their ids, the newest."""
    return _named(context, incomplete, "{id}", "/candidates", limit=MAX_ROWS)


def module_names(context: typer.Context, incomplete: str) -> list[str]:
    return _named(context, incomplete, "{name}", "/modules", limit=MAX_ROWS)


def modules(context: typer.Context, incomplete: str) -> list[str]:
    """NAME:VERSION; NAME:VERSION/PROFILE from the slash on."""
    form = "{name}:{version}/{profile}" if "/" in incomplete else "{name}:{version}"
    return _named(context, incomplete, form, "/modules", limit=MAX_ROWS, **_of_name(incomplete))


def models(context: typer.Context, incomplete: str) -> list[str]:
    """NAME:VERSION."""
    return _named(context, incomplete, "{name}:{version}", "/models", limit=MAX_ROWS, **_of_name(incomplete))


@contextmanager
def whole_words(environment: MutableMapping[str, str], variable: str = "_MOORING_COMPLETE") -> Iterator[None]:
    """Bash ends words at a colon, and puts what it is given behind it: digits:2 comes as three words.

    Within, they are one word again, and of the names that are printed only what stands behind the colon is.
    """
    words, place = _joined(environment.get("COMP_WORDS", "").split("\n"), environment.get("COMP_CWORD", ""))
    if environment.get(variable) != "complete_bash" or ":" not in words[place]:
        yield
        return
    environment["COMP_WORDS"], environment["COMP_CWORD"] = "\n".join(words), str(place)
    there = words[place].rpartition(":")[0] + ":"
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        sys.stdout.writelines(f"{line.removeprefix(there)}\n" for line in printed.getvalue().splitlines())


def _joined(parts: list[str], number: str) -> tuple[list[str], int]:
    """Whole words, and the place of the one that holds part `number`."""
    words: list[str] = []
    places: list[int] = []
    for part in parts:
        if words and (part == ":" or (words[-1].endswith(":") and part)):
            words[-1] += part
        else:
            words.append(part)
        places.append(len(words) - 1)
    wanted = int(number) if number.isdecimal() else -1
    return words, places[wanted] if wanted < len(places) else len(words) - 1


def _of_name(incomplete: str) -> dict[str, str]:
    """A name is whole before its colon."""
    name, colon, _ = incomplete.partition(":")
    return {"name": name} if colon else {}


def _named(context: typer.Context, incomplete: str, form: str, path: str, **query: str | int) -> list[str]:
    """Of the rows at `path`, each written in the `form`, those that begin so; nothing where anything goes wrong.

    The root's callback has not run: its options stand in its parameters. A thread asks that nobody waits for, since
    the look-up of a host's name cannot be ended.
    """
    settings = Settings(str(context.find_root().params.get("context_name") or ""))
    found: list[str] = []

    def ask() -> None:
        with suppress(Exception):  # whatever it is: there is nobody to tell
            found.extend([form.format_map(row) for row in _answer(settings, path, query)])

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    wanted = (name for name in list(found) if name.startswith(incomplete) and _PLAIN.fullmatch(name))
    return list(dict.fromkeys(wanted))[:MAX_NAMES]


def _answer(settings: Settings, path: str, query: dict[str, str | int]) -> list[Any]:
    """Raises anything."""
    import ssl
    from http.client import HTTPSConnection
    from urllib.parse import urlencode, urlsplit

    hub = settings.load()
    tls = ssl.create_default_context(cafile=hub.ca)
    url = urlsplit(hub.url.rstrip("/"))
    connection = HTTPSConnection(url.netloc, timeout=PATIENCE_S, context=tls)
    headers = {"Authorization": f"Bearer {hub.token}"}
    connection.request("GET", f"{url.path}/api/v1{path}?{urlencode(query)}", headers=headers)
    answer = connection.getresponse()
    rows = json.loads(answer.read(MAX_BYTES)) if answer.status == 200 else []
    connection.close()
    return rows if isinstance(rows, list) else []
