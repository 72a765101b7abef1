"""Makes and migrates the agent's database: `python -m agent.schema DATABASE`, in a process that then ends.

Each migration is small, ordered and never edited after release; its number is the file's `user_version` after it.
Called by `agent.store` when the file's version is older than what the code needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import sqlite_utils


def first(database: sqlite_utils.Database) -> None:
    """Values by key; release counters; ports; the outbox's rows and where each of its streams stands."""
    database.create_table("meta", {"key": str, "value": bytes}, pk="key", not_null={"value"})
    database.create_table("counters", {"module": str, "counter": int}, pk="module", not_null={"counter"})
    database.create_table("ports", {"module": str, "port": int}, pk="module", not_null={"port"})
    database.create_table(
        "outbox",
        {"stream": str, "seq": int, "payload": bytes, "size": int, "at": float},
        pk=("stream", "seq"),
        not_null={"payload", "size", "at"},
    )
    database.create_table(
        "streams",
        {"stream": str, "last_seq": int, "acked": int, "dropped": int},
        pk="stream",
        not_null={"last_seq", "acked", "dropped"},
    )


MIGRATIONS: tuple[Callable[[sqlite_utils.Database], None], ...] = (first,)


def migrate(path: Path) -> int:
    """Brings the file to the newest schema and returns its number. Each migration is one transaction."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    database = sqlite_utils.Database(path)
    try:
        database.execute("pragma auto_vacuum = incremental")  # counts only for a file that is new
        database.enable_wal()
        version: int = database.execute("pragma user_version").fetchone()[0]
        for number, step in enumerate(MIGRATIONS[version:], version + 1):
            with database.conn:
                database.execute("begin immediate")
                step(database)
                database.execute(f"pragma user_version = {number}")
    finally:
        database.close()
    return len(MIGRATIONS)


if __name__ == "__main__":
    migrate(Path(sys.argv[1]))
