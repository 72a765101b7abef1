"""Whole numbers as the database can hold them: what a request names beyond them is refused with the field's name."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

MAX_VERSION: Final = 999_999_999
# Of a row; 0 is before the first. JSON in browsers knows no larger whole numbers, and SQLite only few more.
RowId = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Version = Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)]
AnyVersion = Annotated[int, msgspec.Meta(ge=0, le=MAX_VERSION)]  # 0: any, or the newest
Limit = Annotated[int, msgspec.Meta(ge=1, le=1000)]  # rows of one answer; some lists give fewer
