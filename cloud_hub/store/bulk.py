"""Many rows in few statements, the same for SQLite and PostgreSQL. Called by rooms that take in much at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import ColumnCollection, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

MAX_VALUES: Final = 500  # of one `IN (...)`: SQLite takes 32,766 parameters, and a tuple has several
_Item = TypeVar("_Item")
Changes = Callable[[ColumnCollection[str, Any]], Mapping[str, Any]]


async def upsert(
    connection: AsyncConnection, table: Table, rows: Sequence[Mapping[str, Any]], changes: Changes | None = None
) -> None:
    """Insert the rows; where the primary key is there, change it: to `changes` of the new row, or to all of it."""
    if not rows:
        return
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = make(table)
    keys = [column.name for column in table.primary_key]
    new = statement.excluded
    values = changes(new) if changes else {name: new[name] for name in rows[0] if name not in keys}
    await connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=dict(values)), list(rows))


def in_slices(items: Sequence[_Item], size: int = MAX_VALUES) -> Iterator[Sequence[_Item]]:
    """All items in order, at most `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
