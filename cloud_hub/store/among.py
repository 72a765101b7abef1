"""One of many values, as one parameter: a list of them in the text of a statement is parsed anew each time.

With 256 ids that took the driver of PostgreSQL 20 ms, on the loop; as an array it takes nothing, and the statement
stays the same. SQLite takes them as JSON. Called by every room that asks for rows of some devices, by way of `engine`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import Boolean, ColumnElement, Text, TypeDecorator, bindparam
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
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


@compiles(_Among)
def _as_json(element: _Among, compiler: SQLCompiler, **words: Any) -> str:  # noqa: ANN401 - what SQLAlchemy hands on
    column, values = (compiler.process(one, **words) for one in element.clauses)
    return f"({column} IN (SELECT value FROM json_each({values})))"  # noqa: S608 - both are rendered by SQLAlchemy


@compiles(_Among, "postgresql")
def _as_array(element: _Among, compiler: SQLCompiler, **words: Any) -> str:  # noqa: ANN401 - what SQLAlchemy hands on
    column, values = (compiler.process(one, **words) for one in element.clauses)
    return f"({column} = ANY ({values}))"


def among(column: ColumnElement[str], values: Collection[str]) -> ColumnElement[bool]:
    """Whether the column is one of the values, of which there may be more than a statement can have parameters."""
    return _Among(column, bindparam(None, sorted(values), type_=_Texts(), unique=True))
