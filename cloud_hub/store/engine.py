"""The database: opened and migrated here, many readers, one writer at a time. No tables and no queries.

Readers and the writer have engines of their own, because SQLite should take its write lock at the start of a
writing transaction (BEGIN IMMEDIATE) and not in its middle, where it could only fail. Opened by `service`; every
room that keeps rows gets the `Store`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import ColumnElement, Connection, Engine, bindparam, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from cloud_hub.bell import Bell
from cloud_hub.errors import Unavailable

WRITE_WAIT_S: Final = 30.0
BUSY_TIMEOUT_MS: Final = 10_000
READERS: Final = 4
MIGRATIONS: Final = Path(__file__).with_name("migrations")
_RING: Final = "ring"  # in what SQLAlchemy keeps of a connection: whether its transaction tells news


class Store:
    """Transactions. `read` sees one consistent snapshot; `write` commits on a clean exit and else changes nothing.

    `bell` is rung after the commit of each transaction that was marked by `ring_after`.
    """

    def __init__(self, readers: AsyncEngine, writer: AsyncEngine) -> None:
        self._readers = readers
        self._writer = writer
        self._turn = asyncio.Lock()
        self.bell = Bell()

    @classmethod
    async def open(cls, url: str, migrate: bool = True) -> Store:
        """`url` as SQLAlchemy has it, such as sqlite+aiosqlite:////var/lib/mooring-hub/hub.sqlite3."""
        if migrate:
            await asyncio.to_thread(upgrade, url)
        return cls(_engine(url, READERS, "BEGIN"), _engine(url, 1, "BEGIN IMMEDIATE"))

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection on which nothing should be written: it is rolled back at the end."""
        async with self._readers.connect() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """The only writing transaction of this process. Raises Unavailable `store-busy` after WRITE_WAIT_S."""
        try:
            # Not wait_for: before Python 3.12 that swallows a cancellation that comes together with the turn.
            async with asyncio.timeout(WRITE_WAIT_S):
                await self._turn.acquire()
        except TimeoutError as error:
            raise Unavailable(
                "store-busy", f"the database was still writing after {WRITE_WAIT_S:.0f} s; nothing was changed"
            ) from error
        try:
            async with self._writer.begin() as connection:
                news = connection.info
                news[_RING] = False
                yield connection
            if news[_RING]:
                self.bell.ring()
        finally:
            self._turn.release()

    def ring_after(self, connection: AsyncConnection) -> None:
        """Whoever listens is told once this transaction has committed."""
        connection.info[_RING] = True

    async def close(self) -> None:
        await self._readers.dispose()
        await self._writer.dispose()


def among(column: ColumnElement[str], values: Collection[str]) -> ColumnElement[bool]:
    """Whether the column is one of the values, of which there may be more than a statement can have parameters."""
    return column.in_(bindparam(None, sorted(values), expanding=True, literal_execute=True))


def upgrade(url: str, revision: str = "head") -> None:
    """Brings the schema to `revision`. Blocks: call it in a thread."""
    # Alembic is needed for these few moments only.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    engine = create_engine(make_url(url).set(drivername=make_url(url).get_backend_name()))
    if engine.dialect.name == "sqlite":
        # Without foreign keys: a batch migration drops the old table, which must not take its children along.
        _tune_sqlite(engine, "BEGIN IMMEDIATE", foreign_keys=False)
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    finally:
        engine.dispose()


def _engine(url: str, size: int, begin: str) -> AsyncEngine:
    engine = create_async_engine(url, pool_size=size, max_overflow=0, pool_timeout=WRITE_WAIT_S)
    if engine.dialect.name == "sqlite":
        _tune_sqlite(engine.sync_engine, begin, foreign_keys=True)
    return engine


def _tune_sqlite(engine: Engine, begin: str, foreign_keys: bool) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(dbapi_connection: DBAPIConnection, _record: object) -> None:
        # The driver's own idea of when to begin a transaction is switched off; `on_begin` says it.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        for pragma in (
            f"busy_timeout = {BUSY_TIMEOUT_MS}",
            "journal_mode = WAL",
            "synchronous = FULL",
            f"foreign_keys = {'ON' if foreign_keys else 'OFF'}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)
