"""The route of what private windows have spent."""

from __future__ import annotations

import msgspec

from cloud_hub.api.pages import Page, cut, make_cursor, read_cursor
from cloud_hub.api.route import Call, Route
from cloud_hub.privacy import PrivacyAccounts, PrivacyQuery, PrivacySpent
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms
from modules.privacy import DAY_S


async def list_spent(rooms: Rooms, call: Call) -> Page[PrivacySpent]:
    query: PrivacyQuery = call.query
    after = read_cursor(query.after, int, str, str) if query.after else None
    more = msgspec.structs.replace(query, limit=query.limit + 1)
    found = await PrivacyAccounts(rooms.store).list(more, await call.access.devices(), after)
    return cut(found, query.limit, lambda row: make_cursor(round(row.day / DAY_S), row.device, row.module))


ROUTES = (
    Route(
        "GET",
        "/privacy",
        list_spent,
        "What private windows have spent, by device, module and day",
        returns=list[PrivacySpent],
        query=PrivacyQuery,
        role=Role.VIEWER,
        paged=True,
    ),
)
