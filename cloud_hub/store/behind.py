"""Rows behind a row in a list that is ordered by several columns, some of them downwards. Called by lists in pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, and_, false, or_


def behind(columns: Sequence[tuple[Column[Any], bool]], values: Sequence[Any]) -> ColumnElement[bool]:
    """Whether a row comes after the one with these `values`; each column with whether it goes downwards.

    As a comparison of tuples, which has no word for columns in different directions.
    """
    found: list[ColumnElement[bool]] = [false()]
    same: list[ColumnElement[bool]] = []
    for (column, down), value in zip(columns, values, strict=True):
        found.append(and_(*same, column < value if down else column > value))
        same.append(column == value)
    return or_(*found)
