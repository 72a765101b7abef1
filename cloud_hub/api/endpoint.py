"""One route as it is served: who asks, what is asked, on what condition, and whether it was asked before.

Made by `app` for each row of the table. Handlers see parsed values only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec
from aiohttp import web

from cloud_hub.api.answers import answer
from cloud_hub.api.etags import Precondition, tag_of
from cloud_hub.api.gate import Gate
from cloud_hub.api.idempotency import Idempotency
from cloud_hub.api.long import begin, wants_async
from cloud_hub.api.parse import parse_body, parse_query
from cloud_hub.api.route import Call, Route
from cloud_hub.errors import BadRequest, PreconditionRequired
from cloud_hub.events import because
from cloud_hub.rooms import Rooms
from cloud_hub.store.guards import Guards, guarded

BODY_DEADLINE_S: Final = 60.0
MAX_REASON_CHARS: Final = 500
REASON_HEADER: Final = "X-Mooring-Reason"
_CHANGES: Final = ("PUT", "PATCH", "DELETE")


@dataclass(frozen=True)
class Served:
    """What all endpoints of an application share. `shown` are the routes that show one resource, by their path."""

    rooms: Rooms
    gate: Gate
    idempotency: Idempotency
    shown: Mapping[str, Route]
    require_if_match: bool = False


class Endpoint:
    """`respond` is the handler that aiohttp calls."""

    def __init__(self, served: Served, route: Route) -> None:
        self._served, self._route = served, route
        self._shows = served.shown.get(route.path) if route.method in _CHANGES else None

    async def respond(self, request: web.Request) -> web.StreamResponse:
        route = self._route
        access = await self._served.gate.enter(route, request)
        query = _query(request, route.query) if route.query else None
        raw = await _read(request) if route.body else b""
        body = parse_body(raw, route.body) if route.body else None
        again = partial(self._served.gate.enter, route, request)
        call = Call(request, dict(request.match_info), body, query, access, again)
        guards = Guards()
        with because(_reason(request)), guarded(guards):
            try:
                work = partial(self._work, call, guards)
                return await self._served.idempotency.once(route, call, raw, guards, work)
            finally:
                guards.passed = True  # what goes on behind the answer is not part of the request any more

    async def _work(self, call: Call, guards: Guards) -> web.StreamResponse:
        await self._check_state(call, guards)
        route, rooms = self._route, self._served.rooms
        if route.slow and wants_async(call.request):
            return await begin(rooms, route, call)
        response = await answer(call.request, route, await route.handler(rooms, call))
        if self._shows is not None and self._shows.returns == route.returns and isinstance(response, web.Response):
            response.headers["ETag"] = tag_of(bytes(response.body or b""))  # type: ignore[arg-type]
        return response

    async def _check_state(self, call: Call, guards: Guards) -> None:
        """Raises PreconditionFailed `etag-mismatch`, PreconditionRequired `if-match-missing`."""
        if self._route.method not in _CHANGES:
            return
        condition = Precondition.of(call.request, partial(self._current, call))
        if condition is not None:
            await condition.check()
            guards.add(condition.guard)
        elif self._shows is not None and self._served.require_if_match:
            text = "expected If-Match with the ETag of what is changed ([api] require_if_match); nothing was done"
            raise PreconditionRequired("if-match-missing", text)

    async def _current(self, call: Call) -> bytes:
        """The resource as the GET on the same path shows it. Raises BadRequest `if-match-unsupported` without one."""
        shows = self._shows
        if shows is None:
            what = f"{call.request.method} {self._route.path}"
            text = f"{what}: there is no GET whose ETag could be named; nothing was done"
            raise BadRequest("if-match-unsupported", text)
        query = shows.query() if shows.query else None
        asked = Call(call.request, call.path, None, query, call.access)
        return msgspec.json.encode(await shows.handler(self._served.rooms, asked))


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
