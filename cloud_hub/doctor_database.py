"""What `doctor` looks at in the database, without changing anything: SQLite or PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import URL, Connection, create_engine, func, inspect, select, text
from sqlalchemy.exc import DBAPIError

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.findings import Finding
from cloud_hub.store.address import database_url
from cloud_hub.store.engine import blocking
from cloud_hub.store.tables import patches

LOOPBACK: Final = ("", "localhost", "127.0.0.1", "::1")
OLDEST_SERVER: Final = (13,)  # what the statements were tried on stands in docs/operate/database.md
SAFETY: Final = ("fsync", "full_page_writes", "synchronous_commit")
CONNECT_S: Final = 10


def database(config: HubConfig, paths: HubPaths) -> Finding:
    """Whether it can be reached, is sound, and has a schema."""
    try:
        with _connected(config, paths) as (connection, url):
            if config.uses_postgres:
                return _postgres(connection, url)
            answer = connection.execute(text("PRAGMA quick_check(1)")).scalar_one()
            if answer != "ok":
                return Finding("database", "problem", f"{paths.database} is damaged ({answer}): restore a backup")
            return Finding("database", "ok", f"sound, schema {_revision(connection)}")
    except DBAPIError as error:
        return Finding("database", "problem", f"{str(error.orig).strip().partition(chr(10))[0]}")


def patches_built(config: HubConfig, paths: HubPaths) -> Finding:
    """How many were built, and why some were not: a file without one comes whole, so nothing here is a problem."""
    if not config.patches.enabled:
        return Finding("patches", "ok", "switched off (patches.enabled)")
    with _connected(config, paths) as (connection, _):
        if not inspect(connection).has_table("patches"):
            return Finding("patches", "ok", "none yet")
        columns = (patches.c.state, func.count(), func.coalesce(func.sum(patches.c.size), 0))
        rows = connection.execute(select(*columns).group_by(patches.c.state))
        found = {state: (count, int(size)) for state, count, size in rows}
        failed = select(patches.c.module, patches.c.version, patches.c.reason).where(patches.c.state == "failed")
        why = connection.execute(failed.limit(1)).one_or_none()
    built, stored = found.get("built", (0, 0))
    waiting = sum(found.get(state, (0, 0))[0] for state in ("queued", "building"))
    said = f"{built} built ({stored / 1024**2:.1f} MiB), {waiting} waiting"
    if why is not None:
        return Finding("patches", "note", f"{said}, {found['failed'][0]} failed, such as {why[0]}:{why[1]}: {why[2]}")
    if stored >= config.patches.total_mib * 1024**2:
        return Finding("patches", "note", f"{said}; no more are built (patches.total_mib)")
    return Finding("patches", "ok", said)


def _postgres(connection: Connection, url: URL) -> Finding:
    version = connection.dialect.server_version_info or (0,)
    number = ".".join(str(part) for part in version)
    if version < OLDEST_SERVER:
        return Finding("database", "problem", f"PostgreSQL {number}: expected {OLDEST_SERVER[0]} or newer")
    said = f"PostgreSQL {number}, schema {_revision(connection)}"
    # Without them a commit may be gone after a power cut, and devices were told to forget.
    off = [name for name in ("fsync", "full_page_writes") if _setting(connection, name) == "off"]
    off += ["synchronous_commit"] if _setting(connection, "synchronous_commit") == "off" else []
    if off:
        return Finding("database", "problem", f"{said}; {', '.join(off)} off: a power cut loses what was stored")
    if (url.host or "") not in LOOPBACK and url.query.get("sslmode") != "verify-full":
        return Finding("database", "note", f"{said}; without sslmode=verify-full anybody may stand between")
    return Finding("database", "ok", said)


def _setting(connection: Connection, name: str) -> str:
    return str(connection.execute(text(f"SHOW {name}")).scalar_one())


def _revision(connection: Connection) -> str:
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())


@contextmanager
def _connected(config: HubConfig, paths: HubPaths) -> Iterator[tuple[Connection, URL]]:
    url = blocking(database_url(config, paths))
    arguments: dict[str, object] = {"connect_timeout": CONNECT_S}
    if not config.uses_postgres:
        # Opened for reading only: a file that is not there is not made.
        url, arguments = url.set(database=f"file:{paths.database}", query={"mode": "ro", "uri": "true"}), {}
    engine = create_engine(url, connect_args=arguments)
    try:
        with engine.connect() as connection:
            yield connection, url
    finally:
        engine.dispose()
