"""Lists in pages: a handler returns a `Page`, `app` sends its rows and says in a `Link` header where the next ones are.

A cursor names the last row that was read, never a position, so that rows which come meanwhile move nothing: what was
there when the first page was read comes exactly once. Used by every room that lists something:

    async def list_devices(rooms: Rooms, call: Call) -> Page[Device]:
        query: DeviceQuery = call.query  # a PageQuery
        rows = await rooms.devices.page(..., after=query.after, limit=query.limit + 1)
        return cut(rows, query.limit, lambda device: device.id)
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec
from yarl import URL

from cloud_hub.bounds import Limit
from cloud_hub.errors import BadRequest

MAX_CURSOR_CHARS: Final = 512
MAX_NUMBER: Final = 2**53
TOTAL_HEADER: Final = "X-Total-Count"
Cursor = Annotated[str, msgspec.Meta(max_length=MAX_CURSOR_CHARS)]
_Row = TypeVar("_Row")
_Other = TypeVar("_Other")
Key = str | int | float


class PageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """At most `limit` rows, behind `after`: the cursor in the `Link` of the page before."""

    limit: Limit = 100
    after: Cursor = ""


class WholeQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As for other lists. There are few of these, so that one page has all of them nearly always."""

    limit: Limit = 1000
    after: Cursor = ""


@dataclass(frozen=True)
class Page(Generic[_Row]):
    """Rows, and what to change in the query to get the next ones: nothing on the last page.

    `total` is how many there are in all pages, where that is cheap to know.
    """

    rows: Sequence[_Row]
    next: Mapping[str, str] = field(default_factory=dict)
    total: int | None = None

    def showing(self, rows: Sequence[_Other]) -> Page[_Other]:
        """The same place in the list with other rows: fewer, or shown otherwise. It may be none at all."""
        return Page(rows, self.next, self.total)


def cut(
    rows: Sequence[_Row], limit: int, cursor: Callable[[_Row], Key], parameter: str = "after", total: int | None = None
) -> Page[_Row]:
    """The page from rows that were read with a limit of `limit + 1`: whether there is one more says if there is a next.

    Cut first and hide rows from whoever may not see them afterwards (`Page.showing`), else the list ends early.
    """
    if len(rows) <= limit:
        return Page(rows, {}, total)
    shown = rows[:limit]
    return Page(shown, {parameter: str(cursor(shown[-1]))}, total)


def page_of_all(
    rows: Iterable[_Row], query: PageQuery | WholeQuery, key: Callable[[_Row], tuple[Key, ...]]
) -> Page[_Row]:
    """The page of a list that is small enough to be read whole; it is sorted by `key`, which no two rows share.

    Raises BadRequest `cursor-invalid`.
    """
    ordered = sorted(rows, key=key)
    total = len(ordered)
    if query.after:
        kinds = tuple(type(part) for part in key(ordered[0])) if ordered else ()
        after = read_cursor(query.after, *kinds) if kinds else ()
        ordered = [row for row in ordered if key(row) > after]
    return cut(ordered[: query.limit + 1], query.limit, lambda row: make_cursor(*key(row)), total=total)


def make_cursor(*parts: Key) -> str:
    """One word for a place in a list that is ordered by several columns."""
    return base64.urlsafe_b64encode(msgspec.json.encode(parts)).decode().rstrip("=")


def read_cursor(text: str, *kinds: type) -> tuple[Any, ...]:
    """What `make_cursor` was given, each part of its kind (str, int or float). Raises BadRequest `cursor-invalid`."""
    try:
        raw = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        parts: tuple[Any, ...] = msgspec.json.decode(raw, type=tuple[kinds])  # type: ignore[valid-type]
    except (binascii.Error, UnicodeError, ValueError, msgspec.DecodeError) as error:
        raise invalid_cursor(text) from error
    if not all(_is_storable(part) for part in parts):
        raise invalid_cursor(text)
    return parts


def _is_storable(part: Key) -> bool:
    """Whether a database can compare a column with it."""
    return "\0" not in part if isinstance(part, str) else abs(part) <= MAX_NUMBER


def row_cursor(text: str) -> int:
    """The cursor of a list that is ordered by row ids; 0 before the first page. Raises BadRequest `cursor-invalid`."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= MAX_NUMBER):
        raise invalid_cursor(text)
    return int(text)


def invalid_cursor(text: str) -> BadRequest:
    return BadRequest(
        "cursor-invalid", f"after: expected the cursor of a page before, got {text[:80]!r}", field="after"
    )


def link(url: URL, page: Page[Any]) -> str:
    """The `Link` header (RFC 8288) to the page behind this one; empty on the last."""
    return f'<{url.update_query(page.next)}>; rel="next"' if page.next else ""
