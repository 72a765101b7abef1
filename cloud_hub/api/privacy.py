"""The route of what private windows have spent."""

from __future__ import annotations

from cloud_hub.api.route import Call, Route
from cloud_hub.privacy import PrivacyAccounts, PrivacyQuery, PrivacySpent
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms


async def list_spent(rooms: Rooms, call: Call) -> list[PrivacySpent]:
    return await PrivacyAccounts(rooms.store).list(call.query, await call.access.devices())


ROUTES = (
    Route(
        "GET",
        "/privacy",
        list_spent,
        "What private windows have spent, by device, module and day",
        returns=list[PrivacySpent],
        query=PrivacyQuery,
        role=Role.VIEWER,
    ),
)
