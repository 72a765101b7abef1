"""A database for a new hub: it must be empty, and is emptied again when the hub could not be made.

Called by `initialise`. An SQLite file is new in any case and goes with its folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import URL, MetaData, create_engine, inspect
from sqlalchemy.exc import DBAPIError

from cloud_hub.errors import Conflict, Unavailable


@asynccontextmanager
async def emptied_on_failure(url: URL) -> AsyncIterator[None]:
    """Raises Conflict `database-not-empty`, Unavailable `database-unreachable`; then nothing was changed."""
    if url.get_backend_name() == "sqlite":
        yield
        return
    await asyncio.to_thread(_require_empty, url)
    try:
        yield
    except BaseException:
        await asyncio.to_thread(_empty, url)
        raise


def _require_empty(url: URL) -> None:
    engine = create_engine(url)
    try:
        tables = inspect(engine).get_table_names()
    except DBAPIError as error:
        text = str(error.orig).strip().partition("\n")[0]
        raise Unavailable("database-unreachable", f"{url.host or 'its socket'}: {text}; nothing was created") from error
    finally:
        engine.dispose()
    if tables:
        raise Conflict(
            "database-not-empty",
            f"the database {url.database} holds {len(tables)} tables, such as {sorted(tables)[0]}: a new hub needs an "
            "empty one; nothing was created",
        )


def _empty(url: URL) -> None:
    """Every table that is there: none was there before."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            found = MetaData()
            found.reflect(connection)
            found.drop_all(connection)
    finally:
        engine.dispose()
