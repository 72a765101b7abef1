"""The HTTP application: takes a table of routes and serves it. Who asks, what is asked, one form of error.

Handlers see parsed values only and never answer with an error themselves: they raise. Built by `service`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from cloud_hub.api import metrics
from cloud_hub.api.blobs import TRANSFERS, Transfers
from cloud_hub.api.gate import Gate
from cloud_hub.api.openapi import document
from cloud_hub.api.pages import TOTAL_HEADER, Page, link
from cloud_hub.api.parse import parse_body, parse_query
from cloud_hub.api.route import DOCUMENT, PREFIX, Call, Failure, FailureBody, Route
from cloud_hub.errors import BadRequest, HubError, TooMany
from cloud_hub.events import Events, because
from cloud_hub.metrics.meters import OTHER, Meters
from cloud_hub.rooms import Rooms
from modules.errors import ModuleError

MAX_JSON_BYTES: Final = 4 * 1024 * 1024
BODY_DEADLINE_S: Final = 60.0
MAX_REASON_CHARS: Final = 500
REASON_HEADER: Final = "X-Mooring-Reason"
_REQUEST_ID = web.RequestKey("request_id", str)
_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = logging.getLogger(__name__)


def application(
    rooms: Rooms, routes: Sequence[Route], gate: Gate | None = None, meters: Meters | None = None
) -> web.Application:
    """Serves `routes` below /api/v1. Without a `gate` one that knows tokens and users of this hub only.

    With `meters` requests are counted, and GET /metrics tells.
    """
    gate = gate or Gate(rooms.store, Events(rooms.store, rooms.clock), rooms.clock)
    app = web.Application(
        client_max_size=MAX_JSON_BYTES, middlewares=[_errors] if meters is None else [_counted(meters), _errors]
    )
    app[DOCUMENT] = msgspec.json.encode(document(routes))
    app[TRANSFERS] = Transfers()
    app.on_response_prepare.append(_add_headers)
    for route in routes:
        app.router.add_route(route.method, PREFIX + route.path, _endpoint(rooms, route, gate))
    if meters is not None:
        app.router.add_get("/metrics", _endpoint(rooms, metrics.route(rooms), gate))
    return app


def _endpoint(rooms: Rooms, route: Route, gate: Gate) -> _Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        access = await gate.enter(route, request)
        query = _query(request, route.query) if route.query else None
        body = parse_body(await _read(request), route.body) if route.body else None
        with because(_reason(request)):
            result = await route.handler(rooms, Call(request, dict(request.match_info), body, query, access))
        if isinstance(result, web.StreamResponse):
            return result
        if route.returns is None:
            return web.Response(status=204)
        if isinstance(result, Page):
            return _page(request, result)
        encoded = msgspec.json.encode(result)
        return web.Response(body=encoded, status=route.status, content_type="application/json")

    return answer


def _page(request: web.Request, page: Page[Any]) -> web.Response:
    response = web.Response(body=msgspec.json.encode(list(page.rows)), content_type="application/json")
    if page.next:
        response.headers["Link"] = link(request.rel_url, page)
    if page.total is not None:
        response.headers[TOTAL_HEADER] = str(page.total)
    return response


def _reason(request: web.Request) -> str:
    """Why the change is made, for the audit trail. Raises BadRequest `reason-invalid`."""
    reason = request.headers.get(REASON_HEADER, "")
    if len(reason) > MAX_REASON_CHARS or not reason.isprintable():
        raise BadRequest(
            "reason-invalid", f"{REASON_HEADER}: expected at most {MAX_REASON_CHARS} printable characters in UTF-8"
        )
    return reason


def _query(request: web.Request, kind: type) -> object:
    return parse_query({name: request.query.getall(name) for name in request.query}, kind)


async def _read(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            return await request.read()
    except TimeoutError as error:
        raise BadRequest("body-late", f"body: expected all of it within {BODY_DEADLINE_S:.0f} s") from error


def _counted(meters: Meters) -> Middleware:
    @web.middleware
    async def count(request: web.Request, handler: _Handler) -> web.StreamResponse:
        begun, status = time.monotonic(), 499  # the client went away, as nginx has it
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            resource = request.match_info.route.resource
            route = OTHER if resource is None else resource.canonical
            meters.answered(request.method, route, status, time.monotonic() - begun)

    return count


@web.middleware
async def _errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Every failure becomes the one error body; what nobody foresaw is logged here, once, and named by its id."""
    given = request.headers.get("X-Request-Id", "")
    request[_REQUEST_ID] = given if _PLAIN_ID.fullmatch(given) else uuid.uuid4().hex
    try:
        return await handler(request)
    except HubError as error:
        response = _failure(error.status, Failure(error.key, error.message, error.fields))
        if isinstance(error, TooMany):
            response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        return response
    except ModuleError as error:
        return _failure(422, Failure(error.key, str(error)))
    except web.HTTPRequestEntityTooLarge:
        return _failure(413, Failure("body-too-large", f"body: expected at most {MAX_JSON_BYTES} bytes"))
    except web.HTTPException as error:
        key = (error.reason or "http-error").lower().replace(" ", "-")
        response = _failure(error.status, Failure(key, f"{request.method} {request.path[:200]}: {error.reason}"))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except ConnectionError:
        raise  # the client is gone: there is nobody to tell
    except Exception:
        log.exception("request failed: %s %s (%s)", request.method, request.path, request[_REQUEST_ID])
        text = f"the hub failed on request {request[_REQUEST_ID]}; its log says why"
        return _failure(500, Failure("internal", text, {"request_id": request[_REQUEST_ID]}))


def _failure(status: int, failure: Failure) -> web.Response:
    body = msgspec.json.encode(FailureBody(failure), enc_hook=str)
    response = web.Response(body=body, status=status, content_type="application/json")
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Request-Id"] = request.get(_REQUEST_ID, "")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
