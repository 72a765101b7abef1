"""What a route is: one row that says how a request is parsed, who answers it, and what comes back.

`app` serves the table, `openapi` describes it; both read the same rows, so the description cannot drift from what
is served. One file per room exports its rows as `ROUTES`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from cloud_hub.access import Access
from cloud_hub.errors import BadRequest
from cloud_hub.roles import Principal, Role
from cloud_hub.rooms import Rooms

PREFIX = "/api/v1"
# Grows with every addition to the API within v1 (docs/extend/api.md). Hubs that do not say it are of revision 1.
REVISION = 2
REVISION_HEADER = "X-Mooring-Api-Revision"
# The OpenAPI document of the table that is being served, as JSON.
DOCUMENT = web.AppKey("document", bytes)


@dataclass(frozen=True)
class Call:
    """One request, parsed. `body` and `query` are of the types that the route names; `access` is who asks.

    Whatever a handler shows of devices, and whatever it changes about them, goes through `access`. One whose answer
    never ends calls `again` from time to time: it raises as soon as whoever asks may not any more.
    """

    request: web.Request
    path: Mapping[str, str]
    # Any: the route's `body` and `query` types are values, so the handler says the type once more on use.
    body: Any
    query: Any
    access: Access
    again: Callable[[], Awaitable[Access]] | None = None

    @property
    def principal(self) -> Principal:
        return self.access.principal

    @property
    def actor(self) -> str:
        """Who asks, as the audit trail names them."""
        return self.access.principal.actor

    def int(self, name: str) -> int:
        """A whole number of at least 1 from the path. Raises BadRequest `path-invalid`."""
        text = self.path[name]
        if not (text.isascii() and text.isdigit() and 0 < len(text) < 10) or int(text) < 1:
            raise BadRequest(
                "path-invalid", f"{name}: expected a whole number of at least 1, got {text[:40]!r}", field=name
            )
        return int(text)


@dataclass(frozen=True)
class Route:
    """One operation below /api/v1.

    `returns` is a Struct or a list of them, sent as JSON; with None the handler returns a response itself, of the media
    type `media`, or nothing (204). `body` is parsed from JSON, `query` from the query string (text becomes numbers and
    truth values). With `upload` the handler reads the raw body in a stream. `role` is who may; `public` routes ask for
    no token, and a route with neither is for admins. With `by_right` whoever shows a right to the file (`right` in the
    query) needs no token either. With `paged` the handler gives a `pages.Page` of the rows of `returns`.
    With `whole` everything that it does is one short transaction of the database, in which its answer is kept too.
    With `slow` whoever asks may have it done as a long operation (`Prefer: respond-async`).
    """

    method: str
    path: str
    handler: Callable[[Rooms, Call], Awaitable[object]]
    summary: str
    returns: Any = None
    body: type | None = None
    query: type | None = None
    status: int = 200
    role: Role | None = None
    public: bool = False
    upload: bool = False
    by_right: bool = False
    media: str = ""
    paged: bool = False
    whole: bool = False
    slow: bool = False

    @property
    def room(self) -> str:
        """The file that the handler stands in."""
        return self.handler.__module__.rpartition(".")[2]

    @property
    def keyed(self) -> bool:
        """Whether an `Idempotency-Key` counts: others do the same when they come again, or are not to be kept."""
        return self.method == "POST" and not self.public and not self.upload

    @property
    def tagged(self) -> bool:
        """Whether this shows one resource, whose state has an entity tag."""
        return self.method == "GET" and self.returns is not None and not self.paged

    @property
    def name(self) -> str:
        """A stable and unique name for the operation."""
        return f"{self.room}_{self.handler.__name__.strip('_')}"
