"""The route of offline installations: metadata that devices can verify without a hub. Files come from `api.blobs`."""

from __future__ import annotations

from cloud_hub.api.route import Call, Route
from cloud_hub.errors import Forbidden
from cloud_hub.offline import DEFAULT_DAYS, OfflineRequest, OfflineSet
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms


async def export_offline(rooms: Rooms, call: Call) -> OfflineSet:
    body: OfflineRequest = call.body
    # For as long as the hub's own signatures last an export shows a device no more than it could ask for. Longer
    # widens the time in which it can be held back at an old state, which is for whoever answers for trust.
    if body.longer and not call.principal.role.allows(Role.ADMIN):
        raise Forbidden(
            "role-missing",
            f"metadata that lasts longer than {DEFAULT_DAYS:g} days needs the role admin; nothing was signed",
        )
    for device in body.devices:
        await call.access.require_known_device(device)
    return await rooms.offline.sign(body, call.actor)


ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/offline",
        export_offline,
        "Sign metadata with which devices can install without the hub, and name the files; beyond 7 days for admins",
        returns=OfflineSet,
        body=OfflineRequest,
        status=201,
        role=Role.OPERATOR,
    ),
)
