"""Would this release run here? `python -m agent.release.check STATE SCHEMA`, with the release's own interpreter.

Imports what the agent needs, reads the configuration and migrates a copy of the database. Prints the release's version;
says why not and ends with status 1 otherwise. `SCHEMA` is the newest database that the agent
that runs now can read: a release that would leave it a newer one could not be reverted, so it is refused. Started by
`agent.release.environment`.
"""

from __future__ import annotations

import importlib
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from agent import __version__
from agent.config import AgentConfig, StatePaths
from agent.errors import AgentError

MAX_COPY_BYTES = 64 * 1024 * 1024
NEEDED = ("agent.service", "agent.sandbox.worker", "agent.endpoint.connection", "agent.backends", "tuf.ngclient")


class Unfit(Exception):
    """This release cannot take over, and why."""


def check(state: Path, schema: int) -> str:
    """The version of this release. Raises Unfit, AgentError."""
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except Exception as error:  # a foreign library may raise anything when it is loaded
            raise Unfit(f"{name} cannot be loaded: {type(error).__name__}: {error}") from error
    paths = StatePaths(state)
    AgentConfig.load(paths)
    if paths.database.exists():
        _check_database(paths.database, schema)
    return __version__


def _check_database(database: Path, schema: int) -> None:
    from agent.schema import migrate

    with tempfile.TemporaryDirectory(dir=database.parent, prefix=".check-") as folder:
        copy = Path(folder) / database.name
        _copy(database, copy)
        try:
            reached = migrate(copy)
        except Exception as error:
            raise Unfit(f"{database.name} cannot be migrated: {type(error).__name__}: {error}") from error
    if reached > schema:
        text = f"it would migrate {database.name} to version {reached}, and the agent that runs reads up to {schema}"
        raise Unfit(f"{text}: it could not be reverted; install a release between the two first")


def _copy(database: Path, copy: Path) -> None:
    """The whole database where it is small, else its empty tables: what waits in the outbox may be large."""
    try:
        origin = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10.0)
        with closing(origin) as source, closing(sqlite3.connect(copy)) as target:
            if database.stat().st_size <= MAX_COPY_BYTES:
                source.backup(target)
            else:
                _copy_schema(source, target)
    except sqlite3.Error as error:
        raise Unfit(f"{database}: {error}") from error


def _copy_schema(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    query = "select sql from sqlite_schema where sql is not null and name not like 'sqlite_%'"
    for (statement,) in source.execute(query):
        target.execute(statement)
    target.execute(f"pragma user_version = {source.execute('pragma user_version').fetchone()[0]}")
    target.commit()


if __name__ == "__main__":
    try:
        sys.stdout.write(check(Path(sys.argv[1]), int(sys.argv[2])))
    except (Unfit, AgentError, OSError) as error:
        sys.exit(str(error))
