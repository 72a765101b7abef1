"""Routes of patches: what has been built, what waits, and what it saves."""

from __future__ import annotations

import msgspec

from cloud_hub.api.pages import Cursor, Page, cut, make_cursor, read_cursor
from cloud_hub.api.route import Call, Route
from cloud_hub.bounds import Limit
from cloud_hub.patches.queue import Patch, place
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms


class PatchQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which patches to list: of one module, at most `limit`, newest versions first."""

    module: str = ""
    limit: Limit = 200
    after: Cursor = ""


async def list_patches(rooms: Rooms, call: Call) -> Page[Patch]:
    query: PatchQuery = call.query
    after = read_cursor(query.after, str, int, str, int, str, str) if query.after else None
    found = await rooms.patches.list(query.module, query.limit + 1, after)
    return cut(found, query.limit, lambda one: make_cursor(*place(one)))


ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/patches",
        list_patches,
        "List patches between files of modules: built, waiting, dropped and failed",
        returns=list[Patch],
        query=PatchQuery,
        role=Role.VIEWER,
        paged=True,
    ),
)
