"""Many rows in few statements, the same for SQLite and PostgreSQL. Called by rooms that take in much at a time.

PostgreSQL gets a whole column as one array, which costs it a tenth of a statement per row. SQLite, which has no
round trips, gets a statement per row to write, and its keys as a table of values to read: it would not use an index
for a list of them that holds numbers. JSON goes into arrays as text: a list of lists would be an array of two
dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import (
    JSON,
    Column,
    ColumnCollection,
    ColumnElement,
    Row,
    Select,
    Table,
    Text,
    and_,
    cast,
    func,
    insert,
    select,
    update,
)
from sqlalchemy import bindparam as bound
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

MAX_VALUES: Final = 500  # of one statement: SQLite takes 32,766 parameters, and a key has several
_Item = TypeVar("_Item")
Changes = Callable[[ColumnCollection[str, Any]], Mapping[str, Any]]


async def insert_many(connection: AsyncConnection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that all have the same columns."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        names = list(rows[0])
        statement = postgresql.insert(table).from_select(names, _arrays(table, names), include_defaults=False)
        await connection.execute(statement, _columns(table, rows, names))
    else:
        await connection.execute(insert(table), list(rows))


async def upsert(
    connection: AsyncConnection, table: Table, rows: Sequence[Mapping[str, Any]], changes: Changes | None = None
) -> None:
    """Insert the rows; where the primary key is there, change it: to `changes` of the new row, or to all of it.

    No two rows may have the same key.
    """
    if not rows:
        return
    names = list(rows[0])
    if connection.dialect.name == "postgresql":
        made = postgresql.insert(table)
        values = _set(table, names, made.excluded, changes)
        statement = made.from_select(names, _arrays(table, names), include_defaults=False)
        conflict = statement.on_conflict_do_update(index_elements=_keys(table), set_=values)
        await connection.execute(conflict, _columns(table, rows, names))
    else:
        plain = sqlite.insert(table)
        values = _set(table, names, plain.excluded, changes)
        await connection.execute(plain.on_conflict_do_update(index_elements=_keys(table), set_=values), list(rows))


async def update_many(connection: AsyncConnection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Change rows that are there: each of `rows` has the primary key and the same other columns, which it sets.

    No two may have the same key. A key that is not there changes nothing.
    """
    if not rows:
        return
    keys = _keys(table)
    names = [name for name in rows[0] if name not in keys]
    if connection.dialect.name == "postgresql":
        # Named otherwise than the columns, which an update takes for its own.
        arrays = [_array(table.c[name], f"all_{name}") for name in rows[0]]
        given = func.unnest(*arrays).table_valued(*rows[0], name="given").render_derived()
        same = and_(*(table.c[key] == given.c[key] for key in keys))
        change = update(table).where(same).values({name: _typed(table.c[name], given.c[name]) for name in names})
        columns = _columns(table, rows, list(rows[0]))
        await connection.execute(change, {f"all_{name}": values for name, values in columns.items()})
    else:
        same = and_(*(table.c[key] == bound(f"of_{key}") for key in keys))
        change = (
            update(table).where(same).values({name: bound(f"to_{name}", type_=table.c[name].type) for name in names})
        )
        await connection.execute(
            change, [{f"of_{k}" if k in keys else f"to_{k}": value for k, value in row.items()} for row in rows]
        )


async def find(
    connection: AsyncConnection, table: Table, names: Sequence[str], keys: Sequence[tuple[Any, ...]]
) -> list[Row[Any]]:
    """Rows of which the columns `names` (text or numbers) are one of the keys, in no order."""
    if not keys:
        return []
    if connection.dialect.name == "postgresql":
        arrays = [_array(table.c[name], name) for name in names]
        given = func.unnest(*arrays).table_valued(*names, name="given").render_derived()
        query: Select[Any] = select(table).join(given, and_(*(table.c[name] == given.c[name] for name in names)))
        return list(await connection.execute(query, dict(zip(names, map(list, zip(*keys, strict=True)), strict=True))))
    found: list[Row[Any]] = []
    for some in in_slices(keys):
        row = f"({', '.join('?' for _ in names)})"
        on = " AND ".join(f'"{table.name}"."{name}" = "given"."column{i}"' for i, name in enumerate(names, 1))
        given_rows = f"(VALUES {', '.join([row] * len(some))}) AS given"  # its columns are column1, column2, ...
        statement = f'SELECT "{table.name}".* FROM {given_rows} CROSS JOIN "{table.name}" ON {on}'  # noqa: S608 - names
        found += await connection.exec_driver_sql(statement, tuple(value for key in some for value in key))
    return found


def in_slices(items: Sequence[_Item], size: int = MAX_VALUES) -> Iterator[Sequence[_Item]]:
    """All items in order, at most `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _keys(table: Table) -> list[str]:
    return [column.name for column in table.primary_key]


def _set(
    table: Table, names: Sequence[str], new: ColumnCollection[str, Any], changes: Changes | None
) -> dict[str, Any]:
    return dict(changes(new)) if changes else {name: new[name] for name in names if name not in _keys(table)}


def _arrays(table: Table, names: Sequence[str]) -> Select[Any]:
    """A row per element of the arrays, which stand beside each other."""
    return select(*(_typed(table.c[name], func.unnest(_array(table.c[name], name))) for name in names))


def _array(column: Column[Any], name: str) -> ColumnElement[Any]:
    kind = Text() if isinstance(column.type, JSON) else column.type
    return bound(name, type_=postgresql.ARRAY(kind))


def _typed(column: Column[Any], element: ColumnElement[Any]) -> ColumnElement[Any]:
    return cast(element, column.type) if isinstance(column.type, JSON) else element


def _columns(table: Table, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    found = {name: [row[name] for row in rows] for name in names}
    for name in names:
        if isinstance(table.c[name].type, JSON):
            found[name] = [json.dumps(value) for value in found[name]]
    return found
