"""The HTTP application: takes a table of routes and serves it. One endpoint each, one form of error.

Handlers see parsed values only and never answer with an error themselves: they raise. Built by `service`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from cloud_hub.api import metrics
from cloud_hub.api.blobs import TRANSFERS, Transfers
from cloud_hub.api.endpoint import Endpoint, Served
from cloud_hub.api.gate import Gate
from cloud_hub.api.idempotency import Idempotency
from cloud_hub.api.kept import KeptRequests
from cloud_hub.api.openapi import document
from cloud_hub.api.problem import MAX_JSON_BYTES, REQUEST_ID, problems
from cloud_hub.api.route import DOCUMENT, PREFIX, REVISION, REVISION_HEADER, Route
from cloud_hub.api.stream import LIVE
from cloud_hub.events import Events
from cloud_hub.live import Live
from cloud_hub.metrics.meters import OTHER, Meters
from cloud_hub.rooms import Rooms

__all__ = ["MAX_JSON_BYTES", "application"]

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(
    rooms: Rooms, routes: Sequence[Route], gate: Gate | None = None, meters: Meters | None = None
) -> web.Application:
    """Serves `routes` below /api/v1. Without a `gate` one that knows tokens and users of this hub only.

    With `meters` requests are counted, and GET /metrics tells.
    """
    gate = gate or Gate(rooms.store, Events(rooms.store, rooms.clock), rooms.clock)
    app = web.Application(
        client_max_size=MAX_JSON_BYTES, middlewares=[problems] if meters is None else [_counted(meters), problems]
    )
    app[DOCUMENT] = msgspec.json.encode(document(routes))
    app[TRANSFERS] = Transfers()
    app.on_response_prepare.append(_add_headers)
    app[LIVE] = Live(rooms.store, rooms.config.api.listeners, rooms.config.api.listeners_each)
    app.on_shutdown.append(_end_streams)
    served = _served(rooms, routes, gate)
    for route in routes:
        app.router.add_route(route.method, PREFIX + route.path, Endpoint(served, route).respond)
    if meters is not None:
        app.router.add_get("/metrics", Endpoint(served, metrics.route(rooms)).respond)
    return app


def _served(rooms: Rooms, routes: Sequence[Route], gate: Gate) -> Served:
    settings = rooms.config.api
    kept = KeptRequests(rooms.store, rooms.clock, settings.kept_requests)
    shown = {route.path: route for route in routes if route.tagged}
    return Served(rooms, gate, Idempotency(rooms.store, kept), shown, settings.require_if_match)


def _counted(meters: Meters) -> Middleware:
    @web.middleware
    async def count(request: web.Request, handler: _Handler) -> web.StreamResponse:
        begun, status = time.monotonic(), 499  # the client went away, as nginx has it
        endless = request.path.endswith("/stream")
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            resource = request.match_info.route.resource
            route = OTHER if resource is None else resource.canonical
            meters.answered(request.method, route, status, None if endless else time.monotonic() - begun)

    return count


async def _end_streams(app: web.Application) -> None:
    """Whoever listens is told, and goes; other requests get the moment that they need."""
    app[LIVE].stopping.set()


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Request-Id"] = request.get(REQUEST_ID, "")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers[REVISION_HEADER] = str(REVISION)
    response.headers.setdefault("Cache-Control", "no-store")
