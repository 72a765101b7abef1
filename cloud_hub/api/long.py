"""Routes of long operations, and how a request becomes one: `Prefer: respond-async` (RFC 7240) gets 202 and where to
look instead of an answer that takes long.

Only routes with `slow` do that; for all others the preference is passed over, as the RFC has it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Final, Literal

import msgspec
from aiohttp import web

from cloud_hub.api.answers import JSON, Pieces
from cloud_hub.api.blobs import send_file
from cloud_hub.api.etags import names, tag_of
from cloud_hub.api.pages import Page, PageQuery, cut, row_cursor
from cloud_hub.api.problem import MEDIA as PROBLEM
from cloud_hub.api.problem import REQUEST_ID, Failure, known_failure, problem
from cloud_hub.api.route import PREFIX, Call, Route
from cloud_hub.errors import Conflict
from cloud_hub.operations import book
from cloud_hub.operations.book import New, Operation, OperationState, Outcome
from cloud_hub.operations.progress import tell
from cloud_hub.roles import Principal, Role
from cloud_hub.rooms import Rooms

MAX_WAIT_S: Final = 60.0
MAX_RESULT_BYTES: Final = 16 * 1024**3
RETRY_AFTER_S: Final = 1
_ASYNC: Final = re.compile(r"(^|,)\s*respond-async\s*(,|;|$)", re.IGNORECASE)
log = logging.getLogger(__name__)


class OperationQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Newest first: of one state, or all."""

    state: Literal["", "waiting", "running", "done", "failed", "cancelled", "interrupted"] = ""


class WaitQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """With `wait_s` the answer comes when the operation has come further than If-None-Match says, or than it is now;
    after so many seconds at the latest.
    """

    wait_s: Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT_S)] = 0.0


def wants_async(request: web.Request) -> bool:
    return any(_ASYNC.search(header) for header in request.headers.getall("Prefer", []))


async def begin(rooms: Rooms, route: Route, call: Call) -> web.Response:
    """202, with the operation and where it is."""
    # The request is over when its answer is sent; the work knows what was asked and by whom.
    asked, name = replace(call, path=dict(call.path)), call.request[REQUEST_ID]

    async def work() -> Outcome:
        return await _done(rooms, route, asked, name)

    request = f"{route.method} {call.request.path}"[:200]
    number = await rooms.operations.begin(New(route.name, request, _owner(call.principal), call.actor), work)
    made = _shown(rooms, await rooms.operations.get(number))
    headers = {
        "Location": f"{PREFIX}/operations/{number}",
        "Preference-Applied": "respond-async",
        "Retry-After": str(RETRY_AFTER_S),
    }
    return web.Response(status=202, body=msgspec.json.encode(made), content_type=JSON, headers=headers)


async def _done(rooms: Rooms, route: Route, call: Call, request_id: str) -> Outcome:
    try:
        result = await route.handler(rooms, call)
        if isinstance(result, Pieces):
            sha256, size = await rooms.blobs.put_stream(_counted(result.pieces), MAX_RESULT_BYTES)
            return Outcome(200, result.media, blob=sha256, size=size)
        return Outcome(route.status, JSON, msgspec.json.encode(result))
    except Exception as error:
        known = known_failure(error)
        if known is None:
            log.exception("long operation failed: %s (%s)", route.name, request_id)
            text = f"the hub failed on request {request_id}; its log says why"
            known = 500, Failure("internal", text, {"request_id": request_id})
        return Outcome(known[0], PROBLEM, msgspec.json.encode(problem(*known, request_id), enc_hook=str))


async def _counted(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    done = 0
    async for piece in pieces:
        done += len(piece)
        tell("bytes written", done)
        yield piece


async def list_operations(rooms: Rooms, call: Call) -> Page[Operation]:
    query: OperationQuery = call.query
    owner = "" if call.principal.role is Role.ADMIN else _owner(call.principal)
    rows = await rooms.operations.page(owner, query.state, row_cursor(query.after), query.limit + 1)
    page = cut(rows, query.limit, lambda row: int(row.number))
    return page.showing([_shown(rooms, row) for row in page.rows])


async def show_operation(rooms: Rooms, call: Call) -> Operation:
    query: WaitQuery = call.query
    found = await _own(rooms, call)
    if not query.wait_s:
        return found
    known = call.request.headers.get("If-None-Match", "") or tag_of(msgspec.json.encode(found))
    loop = asyncio.get_running_loop()
    until = loop.time() + query.wait_s
    while not found.state.ended and names(known, tag_of(msgspec.json.encode(found)), weakly=True):
        if (left := until - loop.time()) <= 0:
            break
        await rooms.operations.news(found.id, left)
        found = await _own(rooms, call)
    return found


async def operation_result(rooms: Rooms, call: Call) -> web.StreamResponse:
    """The answer as the request would have had it, its status included."""
    found = await _own(rooms, call)
    if not found.result:
        raise Conflict("operation-no-result", f"operation {found.id} is {found.state}; it has no result", id=found.id)
    row = await rooms.operations.get(found.id)
    if row.blob is not None:
        return await send_file(rooms, call, row.blob, {"Content-Type": row.media})
    return web.Response(status=row.status, body=row.answer, content_type=row.media)


async def cancel_operation(rooms: Rooms, call: Call) -> Operation:
    found = await _own(rooms, call)
    await rooms.operations.cancel(found.id, call.actor)
    return await _own(rooms, call)


async def _own(rooms: Rooms, call: Call) -> Operation:
    """Everybody has their own; admins see all. Raises NotFound `operation-not-found`."""
    row = await rooms.operations.get(call.path["id"])
    if call.principal.role is not Role.ADMIN and row.owner != _owner(call.principal):
        raise book.unknown(call.path["id"])
    return _shown(rooms, row)


def _shown(rooms: Rooms, row: book.Kept) -> Operation:
    found = book.shown(row, rooms.operations.keep_s, f"{PREFIX}/operations/{row.id}/result")
    told = rooms.operations.told(row.id)
    if told is None or found.state is not OperationState.RUNNING:
        return found
    return msgspec.structs.replace(found, doing=told[0], done=told[1], total=told[2])


def _owner(principal: Principal) -> str:
    return f"{principal.kind}:{principal.name}"[:160]


_ONE = "/operations/{id}"
ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/operations",
        list_operations,
        "List your long operations, newest first; admins see all",
        returns=list[Operation],
        query=OperationQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route(
        "GET",
        _ONE,
        show_operation,
        "How far a long operation is",
        returns=Operation,
        query=WaitQuery,
        role=Role.VIEWER,
    ),
    Route(
        "GET",
        f"{_ONE}/result",
        operation_result,
        "The answer to what was asked for, with its status and media type",
        media="application/octet-stream",
        role=Role.VIEWER,
    ),
    Route(
        "POST",
        f"{_ONE}/cancel",
        cancel_operation,
        "End a long operation without a result; what it has done stays",
        returns=Operation,
        role=Role.VIEWER,
    ),
)
