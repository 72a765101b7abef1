"""Names that the hub knows, for tab completion. Used as `autocompletion=`; `whole_words` by `root`.

Somebody is waiting at the keyboard and nothing can be said to them: where the hub is away, slow, or refuses, there are
no names, and neither an error nor output. The client with all types of the API would take a second to load, so that the
standard library asks.
"""

from __future__ import annotations

import io
import json
import re
import sys
import threading
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, Final

import typer

from cloud_hub.operator.cli.session import Settings

PATIENCE_S: Final = 2.0  # for the whole question
MAX_NAMES: Final = 50
MAX_SAID: Final = 60
MAX_ROWS: Final = 500  # of a list that cannot be asked for a beginning; every list gives so many
MAX_BYTES: Final = 4 * 1024 * 1024
_Names = list[tuple[str, str]]  # with what a shell shows beside it


def devices(context: typer.Context, incomplete: str) -> _Names:
    if re.fullmatch(r"[a-z0-9-]*", incomplete) is None:
        return []
    query = f"id={incomplete}*" if incomplete else "all"
    found = _rows(context, "/devices", query=query, brief="true", limit=MAX_NAMES)
    return _beginning(incomplete, ((one["id"], one["profile"]) for one in found))


def groups(context: typer.Context, incomplete: str) -> _Names:
    found = _rows(context, "/groups", limit=MAX_ROWS)
    return _beginning(incomplete, ((one["name"], one["description"]) for one in found))


def queries(context: typer.Context, incomplete: str) -> _Names:
    found = _rows(context, "/queries", limit=MAX_ROWS)
    return _beginning(incomplete, ((one["name"], one["query"]) for one in found))


def rollouts(context: typer.Context, incomplete: str) -> _Names:
    """The newest."""
    found = _rows(context, "/rollouts", limit=MAX_ROWS)
    return _beginning(incomplete, ((one["id"], f"{one['module']} to {one['target']}") for one in found))


def candidates(context: typer.Context, incomplete: str) -> _Names:
    """Ids."""
    found = _rows(context, "/candidates", limit=MAX_ROWS)
    return _beginning(incomplete, ((one["id"], f"{one['module']}:{one['version']}") for one in found))


def module_names(context: typer.Context, incomplete: str) -> _Names:
    found = _rows(context, "/modules", limit=MAX_ROWS)
    return _beginning(incomplete, ((one["name"], "") for one in found))


def modules(context: typer.Context, incomplete: str) -> _Names:
    """NAME:VERSION; NAME:VERSION/PROFILE from the slash on."""
    found = _rows(context, "/modules", limit=MAX_ROWS, **_of_name(incomplete))
    ending = "/{profile}" if "/" in incomplete else ""
    return _beginning(incomplete, ((f"{{name}}:{{version}}{ending}".format_map(one), "") for one in found))


def models(context: typer.Context, incomplete: str) -> _Names:
    """NAME:VERSION."""
    found = _rows(context, "/models", limit=MAX_ROWS, **_of_name(incomplete))
    return _beginning(incomplete, ((f"{one['name']}:{one['version']}", one["description"]) for one in found))


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


def _beginning(incomplete: str, found: Iterable[tuple[str, str]]) -> _Names:
    """Each once, in the order of the hub; a line beside it, whatever people wrote."""
    wanted = {name: " ".join(said.split())[:MAX_SAID] for name, said in found if name.startswith(incomplete)}
    return list(wanted.items())[:MAX_NAMES]


def _rows(context: typer.Context, path: str, **query: str | int) -> list[Any]:
    """What the hub answers in time; nothing where anything goes wrong.

    The root's callback has not run: its options stand in its parameters. A thread asks that nobody waits for, since
    the look-up of a host's name cannot be ended.
    """
    settings = Settings(str(context.find_root().params.get("context_name") or ""))
    found: list[Any] = []

    def ask() -> None:
        with suppress(Exception):  # whatever it is: there is nobody to tell
            found.extend(_answer(settings, path, query))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return list(found)


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
