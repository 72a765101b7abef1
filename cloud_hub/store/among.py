"""One of many values, as one parameter: a list of them in the text of a statement is parsed anew each time.

With 256 ids that took the driver of PostgreSQL 20 ms, on the loop; as an array it takes nothing, and the statement
stays the same. SQLite takes them as JSON. Called by every room that asks for rows of some devices, by way of `engine`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Self

from sqlalchemy import Boolean, ColumnElement, Text, TypeDecorator, bindparam
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.operators import OperatorType
from sqlalchemy.types import TypeEngine


class _Texts(TypeDecorator[list[str]]):
    """An array, or JSON."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(ARRAY(Text()) if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: list[str] | None, dialect: Dialect) -> Any:  # noqa: ANN401 - as the base has it
        return value if dialect.name == "postgresql" else json.dumps(value)


class _Among(FunctionElement[bool]):
    """Column and values."""

    type = Boolean()
    inherit_cache = True

    def self_group(self, against: OperatorType | None = None) -> Self:
        """As it is: what is not a comparison gets "= 1" in SQLite, and with that no index is used."""
        return self


@compiles(_Among)
def _as_json(element: _Among, compiler: SQLCompiler, **words: Any) -> str:  # noqa: ANN401 - what SQLAlchemy hands on
    column, values = (compiler.process(one, **words) for one in element.clauses)
    return f"({column} IN (SELECT value FROM json_each({values})))"  # noqa: S608 - both are rendered by SQLAlchemy


@compiles(_Among, "postgresql")
def _as_array(element: _Among, compiler: SQLCompiler, **words: Any) -> str:  # noqa: ANN401 - what SQLAlchemy hands on
    column, values = (compiler.process(one, **words) for one in element.clauses)
    return f"({column} = ANY ({values}))"


class _Pairs(TypeDecorator[list[tuple[str, str]]]):
    """JSON everywhere: drivers have no arrays of pairs."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: list[tuple[str, str]] | None, dialect: Dialect) -> str:
        return json.dumps(value)


class _AmongPairs(_Among):
    """Two columns and values."""

    inherit_cache = True


@compiles(_AmongPairs)
def _as_json_pairs(element: _AmongPairs, compiler: SQLCompiler, **words: Any) -> str:  # noqa: ANN401 - as above
    left, right, values = (compiler.process(one, **words) for one in element.clauses)
    # Not by the operator ->>, which came with SQLite 3.38.
    each = f"SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each({values})"  # noqa: S608
    return f"(({left}, {right}) IN ({each}))"


@compiles(_AmongPairs, "postgresql")
def _as_json_elements(element: _AmongPairs, compiler: SQLCompiler, **words: Any) -> str:  # noqa: ANN401 - as above
    left, right, values = (compiler.process(one, **words) for one in element.clauses)
    each = f"SELECT value ->> 0, value ->> 1 FROM json_array_elements(CAST({values} AS json))"  # noqa: S608 - as above
    return f"(({left}, {right}) IN ({each}))"


def among(column: ColumnElement[str], values: Collection[str]) -> ColumnElement[bool]:
    """Whether the column is one of the values, of which there may be more than a statement can have parameters."""
    return _Among(column, bindparam(None, sorted(values), type_=_Texts(), unique=True))


def pairs_among(
    left: ColumnElement[str], right: ColumnElement[str], values: Collection[tuple[str, str]]
) -> ColumnElement[bool]:
    """Whether the two columns are one of the pairs; for a list of them in the text SQLite reads the whole table."""
    return _AmongPairs(left, right, bindparam(None, sorted(values), type_=_Pairs(), unique=True))
