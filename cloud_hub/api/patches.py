"""Routes of patches: what has been built, what waits, and what it saves."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cloud_hub.api.route import Call, Route
from cloud_hub.patches.queue import Patch
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms


class PatchQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which patches to list: of one module, at most `limit`, newest versions first."""

    module: str = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 200


async def list_patches(rooms: Rooms, call: Call) -> list[Patch]:
    query: PatchQuery = call.query
    return await rooms.patches.list(query.module, query.limit)


ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/patches",
        list_patches,
        "List patches between files of modules: built, waiting, dropped and failed",
        returns=list[Patch],
        query=PatchQuery,
        role=Role.VIEWER,
    ),
)
