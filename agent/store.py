"""The agent's one SQLite file: small values by key, release counters, ports, and the outbox's rows.

One connection, used only by one thread; every write is one transaction that is on the disk (WAL, synchronous=FULL)
when the call returns. Tables are made and migrated by `agent.schema`, in a process of its own because its library
would cost the agent 20 MB; this file only asks for the version. What stands under a key is its owner's affair.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from agent.errors import StoreError

SCHEMA_VERSION = 1
MIGRATION_DEADLINE_S = 60.0
MAX_WAL_BYTES = 4 * 1024 * 1024  # what stays of the log after a checkpoint
# Less than this is not worth the writes that giving it back costs; more than that not the wait.
LEAST_FREED_BYTES = 1024 * 1024
MAX_FREED_BYTES = 64 * 1024 * 1024
MAX_REWRITTEN_BYTES = 8 * 1024 * 1024
_INCREMENTAL = 2  # of pragma auto_vacuum: free pages are given back when asked for
_T = TypeVar("_T")

_GET = "select value from meta where key = ?"
_PUT = "insert into meta(key, value) values(?, ?) on conflict(key) do update set value = excluded.value"
_DELETE = "delete from meta where key = ?"
# Trust moves only forward: a counter is raised, never lowered.
_RAISE = """insert into counters(module, counter) values(?, ?)
    on conflict(module) do update set counter = max(counter, excluded.counter)"""
_PORT = "insert into ports(module, port) values(?, ?) on conflict(module) do update set port = excluded.port"


class AgentStore:
    """An async context manager around the database file.

    `async with AgentStore(path) as store`: makes or migrates the file on entry. Raises StoreError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._connection: sqlite3.Connection | None = None

    async def __aenter__(self) -> Self:
        version = await self._on_thread(lambda: _version(self._path))
        if version > SCHEMA_VERSION:
            raise StoreError(f"{self._path}: expected schema {SCHEMA_VERSION} at most, got {version}", "store-newer")
        if version < SCHEMA_VERSION:
            await _migrate(self._path)
        self._connection = await self._on_thread(lambda: _connect(self._path))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Idempotent. Waits for what is under way."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await self._on_thread(connection.close)
        self._thread.shutdown(wait=False)

    async def run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Runs `work(connection)` on the store's thread in one transaction; committed and durable when this returns.

        An exception from `work` rolls back and comes out here. Raises StoreError for what SQLite says.
        """
        connection = self._connection
        if connection is None:
            raise StoreError(f"{self._path}: the store is not open")
        return await self._on_thread(lambda: _transaction(connection, work))

    async def get(self, key: str, kind: type[_T]) -> _T | None:
        """The value under `key` as a `kind`, or None when there is none. Raises StoreError when it is another type."""
        row = await self.run(lambda connection: connection.execute(_GET, (key,)).fetchone())
        if row is None:
            return None
        try:
            return msgspec.json.decode(row[0], type=kind)
        except (msgspec.DecodeError, ValueError) as error:
            raise StoreError(f"{self._path}: the value of {key} is not a {kind.__name__}: {error}") from error

    async def put(self, key: str, value: object) -> None:
        """Any msgspec-encodable value, as JSON. Durable when this returns."""
        await self.put_all({key: value})

    async def put_all(self, values: Mapping[str, object], counters: Mapping[str, int] | None = None) -> None:
        """Several values in one transaction, all or none; None as a value deletes its key.

        `counters` (by module name) are raised in the same transaction, never lowered.
        """
        raised = list((counters or {}).items())

        def write(connection: sqlite3.Connection) -> None:
            put_values(connection, values)
            connection.executemany(_RAISE, raised)

        await self.run(write)

    async def counters(self) -> dict[str, int]:
        """The highest release counter ever installed and verified, by module name."""
        return dict(
            await self.run(lambda connection: connection.execute("select module, counter from counters").fetchall())
        )

    async def ports(self) -> dict[str, int]:
        """The TCP ports that modules were given, by module name."""
        return dict(await self.run(lambda connection: connection.execute("select module, port from ports").fetchall()))

    async def put_port(self, module: str, port: int) -> None:
        await self.run(lambda connection: connection.execute(_PORT, (module, port)))

    async def tidy(self) -> None:
        """Gives unused space back to the file system, a bounded piece of work; for a quiet moment. Raises StoreError.

        A file of before 0.2 cannot shrink until it was written anew, which is done once, when it has shrunk inside.
        """
        connection = self._connection
        if connection is None:
            raise StoreError(f"{self._path}: the store is not open")
        await self._on_thread(lambda: _tidy(connection))

    async def _on_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def put_values(connection: sqlite3.Connection, values: Mapping[str, object]) -> None:
    """As `AgentStore.put_all`, inside a transaction of the caller's."""
    encoded = [(key, None if value is None else msgspec.json.encode(value)) for key, value in values.items()]
    connection.executemany(_DELETE, [(key,) for key, value in encoded if value is None])
    connection.executemany(_PUT, [(key, value) for key, value in encoded if value is not None])


def _version(path: Path) -> int:
    if not path.exists():
        return 0
    try:
        connection = sqlite3.connect(path)
        try:
            version: int = connection.execute("pragma user_version").fetchone()[0]
            return version
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=True, timeout=10.0)
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.execute("pragma foreign_keys = on")
        connection.execute(f"pragma journal_size_limit = {MAX_WAL_BYTES}")
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {error}") from error
    return connection


def _tidy(connection: sqlite3.Connection) -> None:
    """Outside of any transaction. A reader elsewhere may keep the file from shrinking now; then it does next time."""

    def number(name: str) -> int:
        return int(connection.execute(f"pragma {name}").fetchone()[0])

    try:
        free, pages, size = number("freelist_count"), number("page_count"), number("page_size")
        if free * size < LEAST_FREED_BYTES:
            return
        if number("auto_vacuum") == _INCREMENTAL:
            # As a script, because `execute` stops after the first page.
            connection.executescript(f"pragma incremental_vacuum({MAX_FREED_BYTES // size})")
        elif (pages - free) * size <= MAX_REWRITTEN_BYTES:
            connection.execute(f"pragma auto_vacuum = {_INCREMENTAL}")
            connection.execute("vacuum")
        connection.execute("pragma wal_checkpoint(truncate)").fetchall()
    except sqlite3.Error as error:
        raise StoreError(f"agent store: {error}") from error


def _transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], _T]) -> _T:
    try:
        connection.execute("begin immediate")
        try:
            result = work(connection)
            connection.execute("commit")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("rollback")
            raise
    except sqlite3.Error as error:
        raise StoreError(f"agent store: {error}") from error
    return result


async def _migrate(path: Path) -> None:
    """Runs `python -m agent.schema PATH`. Raises StoreError with what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agent.schema", str(path),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(MIGRATION_DEADLINE_S):
            _, said = await process.communicate()
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise StoreError(f"{path}: the migration took longer than {MIGRATION_DEADLINE_S} s") from error
    if process.returncode != 0:
        raise StoreError(f"{path}: the migration failed: {said.decode(errors='replace').strip()[-500:]}")
