"""GET /metrics, where Prometheus looks for it: not below /api/v1, and not JSON. Called by `app`."""

from __future__ import annotations

from aiohttp import web

from cloud_hub.api.route import Call, Route
from cloud_hub.metrics.room import CONTENT_TYPE
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms


async def metrics(rooms: Rooms, call: Call) -> web.Response:
    if not rooms.config.metrics.open:
        call.access.require_everything("the whole fleet's numbers")
    return web.Response(body=await rooms.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def route(rooms: Rooms) -> Route:
    """Open or for viewers, as the settings say."""
    public = rooms.config.metrics.open
    return Route(
        "GET", "/metrics", metrics, "Metrics for Prometheus", role=Role.VIEWER, public=public, media="text/plain"
    )
