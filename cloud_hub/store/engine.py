"""The database: opened and migrated here, many readers, one writer at a time. No tables and no queries.

Readers and the writer have engines of their own. A writing transaction takes a lock at its start, so that what it read
still holds when it writes: SQLite's own (BEGIN IMMEDIATE), in PostgreSQL an advisory lock that all processes of a hub
share. A reading one sees one moment. Opened by `service`; every room that keeps rows gets the `Store`.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from cloud_hub.bell import Bell
from cloud_hub.errors import Unavailable
from cloud_hub.store.among import among as among
from cloud_hub.store.guards import connection_here, guards_here, reading_through

WRITE_WAIT_S: Final = 30.0
CONNECT_S: Final = 10
STATEMENT_S: Final = 60.0  # the longest that one statement may take in PostgreSQL
MIGRATE_S: Final = 1800.0  # that one step of a migration may take there, or the wait for who migrates
IDLE_S: Final = 120.0  # and that a transaction may wait for its client
WRITER_LOCK: Final = 0x6D6F6F72  # the advisory lock of whoever writes
BUSY_TIMEOUT_MS: Final = 10_000
READERS: Final = 4
MIGRATIONS: Final = Path(__file__).with_name("migrations")
Fence = Callable[[AsyncConnection], Awaitable[None]]
# What writing transactions of work that only one process may do check first (`replicas.lease`). It travels beside the
# call, because such work writes through every room.
_fence: ContextVar[Fence | None] = ContextVar("fence", default=None)
FRESH_S: Final = 5.0
_USED: Final = "used"  # in what the pool keeps of a connection: when it was given back
_RING: Final = "ring"  # in what SQLAlchemy keeps of a connection: whether its transaction tells news


class Store:
    """Transactions. `read` sees one consistent snapshot; `write` commits on a clean exit and else changes nothing.

    `bell` is rung after the commit of each transaction that was marked by `ring_after`.
    """

    def __init__(self, readers: AsyncEngine, writer: AsyncEngine, aside: AsyncEngine | None = None) -> None:
        self._readers = readers
        self._writer = writer
        self._aside = aside
        self._turn = asyncio.Lock()
        self.bell = Bell()

    @classmethod
    async def open(cls, url: str | URL, migrate: bool = True) -> Store:
        """`url` as SQLAlchemy has it, such as sqlite+aiosqlite:////var/lib/mooring-hub/hub.sqlite3.

        Raises Unavailable `database-unreachable` when it has to migrate and cannot connect.
        """
        url = make_url(url)
        if migrate:
            with _reaching(url):
                await asyncio.to_thread(upgrade, url)
        aside = None if url.get_backend_name() == "sqlite" else _aside(url)
        return cls(_engine(url, READERS, writes=False), _engine(url, 1, writes=True), aside)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection on which nothing should be written: it is rolled back at the end.

        Raises Unavailable `database-unreachable`, as `write` does.
        """
        if (around := connection_here()) is not None:
            yield around
            return
        with _reaching(self._readers.url):
            async with self._readers.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """The only writing transaction of this process. Raises Unavailable `store-busy` after WRITE_WAIT_S.

        The first one of a request also does what `guards` ask for.
        """
        if (around := connection_here()) is not None:
            async with around.begin_nested():
                yield around
            return
        try:
            # Not wait_for: before Python 3.12 that swallows a cancellation that comes together with the turn.
            async with asyncio.timeout(WRITE_WAIT_S):
                await self._turn.acquire()
        except TimeoutError as error:
            raise Unavailable(
                "store-busy", f"the database was still writing after {WRITE_WAIT_S:.0f} s; nothing was changed"
            ) from error
        guards = guards_here()
        try:
            with _reaching(self._writer.url):
                async with self._writer.begin() as connection:
                    news = connection.info
                    news[_RING] = False
                    if (fence := _fence.get()) is not None:
                        await fence(connection)
                    if guards is not None:
                        await guards.run(connection)
                    yield connection
            if guards is not None:
                guards.passed = True
            if news[_RING]:
                self.bell.ring()
        finally:
            self._turn.release()

    @asynccontextmanager
    async def whole(self) -> AsyncIterator[AsyncConnection]:
        """Everything that is read and written inside, by this task, is one writing transaction.

        For what is short: nobody else writes meanwhile. Nothing inside may tell others what it has written.
        """
        async with self.write() as connection:
            with reading_through(connection):
                yield connection

    @asynccontextmanager
    async def aside(self) -> AsyncIterator[AsyncConnection]:
        """A writing transaction that does not wait for the others: for rows that nothing else writes or rests on.

        In SQLite, which has one writer, it waits all the same. Raises as `write`.
        """
        if self._aside is None:
            async with self.write() as connection:
                yield connection
            return
        with _reaching(self._aside.url):
            async with self._aside.begin() as connection:
                yield connection

    def ring_after(self, connection: AsyncConnection) -> None:
        """Whoever listens is told once this transaction has committed."""
        connection.info[_RING] = True

    async def close(self) -> None:
        await self._readers.dispose()
        await self._writer.dispose()
        if self._aside is not None:
            await self._aside.dispose()


@contextmanager
def fenced_by(fence: Fence) -> Iterator[None]:
    """Every writing transaction of what is begun inside first awaits `fence`, which raises to forbid it."""
    before = _fence.set(fence)
    try:
        yield
    finally:
        _fence.reset(before)


def upgrade(url: str | URL, revision: str = "head") -> None:
    """Brings the schema to `revision`. Blocks: call it in a thread.

    Of several processes that begin at once, one does the work; the others wait for it and find it done.
    """
    # Alembic is needed for these few moments only.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    engine = create_engine(blocking(make_url(url)), connect_args=_arguments(make_url(url), True, MIGRATE_S))
    if engine.dialect.name == "sqlite":
        # Without foreign keys: a batch migration drops the old table, which must not take its children along.
        _tune_sqlite(engine, "BEGIN IMMEDIATE", foreign_keys=False)
    else:
        _lock_postgres(engine)
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    finally:
        engine.dispose()


def blocking(url: URL) -> URL:
    """The same database, for an engine that is not asynchronous."""
    return url.set(drivername="sqlite") if url.get_backend_name() == "sqlite" else url


def _engine(url: URL, size: int, writes: bool) -> AsyncEngine:
    pool = {"pool_size": size, "max_overflow": 0, "pool_timeout": WRITE_WAIT_S, "connect_args": _arguments(url, writes)}
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(url, **pool)
        _tune_sqlite(engine.sync_engine, "BEGIN IMMEDIATE" if writes else "BEGIN", foreign_keys=True)
    elif writes:
        # READ COMMITTED: behind the lock each statement sees what the writer before has committed.
        engine = create_async_engine(url, **pool)
        _ping_after_a_pause(engine.sync_engine)
        _lock_postgres(engine.sync_engine)
        _send_arrays_as_they_are(engine.sync_engine)
    else:
        engine = create_async_engine(url, **pool)
        _ping_after_a_pause(engine.sync_engine)
    return engine


def _aside(url: URL) -> AsyncEngine:
    pool = {"pool_size": 1, "max_overflow": 0, "pool_timeout": WRITE_WAIT_S, "connect_args": _arguments(url, True)}
    engine = create_async_engine(url, **pool)
    _ping_after_a_pause(engine.sync_engine)
    return engine


def _arguments(url: URL, writes: bool, patience_s: float = 0.0) -> dict[str, Any]:
    """What a connection to PostgreSQL is told: nothing waits for ever. A statement may take `patience_s` and more."""
    if url.get_backend_name() == "sqlite":
        return {}
    limits = {
        "statement_timeout": max(STATEMENT_S, patience_s),
        "lock_timeout": max(WRITE_WAIT_S, patience_s),
        "idle_in_transaction_session_timeout": IDLE_S,
    }
    # Said once to the server, and not by the driver for each transaction.
    kind = {"default_transaction_isolation": "read\\ committed" if writes else "repeatable\\ read"}
    kind |= {"default_transaction_read_only": "off" if writes else "on"}
    options = " ".join(f"-c {name}={seconds * 1000:.0f}" for name, seconds in limits.items())
    options += "".join(f" -c {name}={value}" for name, value in kind.items())
    return {
        "options": options,
        "connect_timeout": CONNECT_S,
        "application_name": "mooring-hub" if writes else "mooring-hub reader",
        "keepalives_idle": 30,
        "tcp_user_timeout": 30_000,  # milliseconds
    }


def _ping_after_a_pause(engine: Engine) -> None:
    """A connection that was used a moment ago is not asked whether it stands: that would double what a read costs.

    Unless there is something to read from it: a server that ends a connection says so.
    """

    @event.listens_for(engine, "checkin")
    def on_checkin(_dbapi_connection: object, record: ConnectionPoolEntry) -> None:
        record.info[_USED] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def on_checkout(dbapi_connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
        used_s = time.monotonic() - record.info.get(_USED, 0.0)
        if used_s < FRESH_S and not _says_something(dbapi_connection):
            return
        try:
            engine.dialect.do_ping(dbapi_connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise DisconnectionError("the server is gone, or was started again") from error


def _says_something(dbapi_connection: Any) -> bool:  # noqa: ANN401 - SQLAlchemy's wrapper has no type
    found = select.poll()
    found.register(dbapi_connection.driver_connection.fileno(), select.POLLIN)
    return bool(found.poll(0))


def _lock_postgres(engine: Engine) -> None:
    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")


def _send_arrays_as_they_are(engine: Engine) -> None:
    """In binary: as text, arrays of bytes are twice as long and take both sides three times as long (`bulk`)."""
    from psycopg.types.array import ListBinaryDumper  # there only with PostgreSQL

    @event.listens_for(engine, "connect")
    def on_connect(dbapi_connection: Any, _record: object) -> None:  # noqa: ANN401 - SQLAlchemy's wrapper has no type
        dbapi_connection.driver_connection.adapters.register_dumper(list, ListBinaryDumper)


@contextmanager
def _reaching(url: URL) -> Iterator[None]:
    """A server that is away, or that gave up waiting, is no fault of the statement."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        if url.get_backend_name() == "sqlite":
            raise
        text = str(error.orig).strip().partition("\n")[0]
        raise Unavailable("database-unreachable", f"the database at {url.host or 'its socket'}: {text}") from error


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
