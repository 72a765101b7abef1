"""The hub itself over HTTP: its health, its certificate authority, this interface's description, uploads, events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from aiohttp import web
from sqlalchemy import text

from cloud_hub import __version__
from cloud_hub.api.pages import Page, cut
from cloud_hub.api.route import DOCUMENT, Call, Route
from cloud_hub.bounds import Limit, RowId
from cloud_hub.chain import Event
from cloud_hub.errors import BadRequest, TooLarge
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms

MAX_UPLOAD_BYTES: Final = 4 * 1024**3
STALL_S: Final = 60.0
_PIECE_BYTES: Final = 256 * 1024


class HubHealth(msgspec.Struct, frozen=True):
    """`broker` says whether the hub's own client is connected there; devices can do without for a while."""

    status: str
    version: str
    broker: bool


class Upload(msgspec.Struct, frozen=True):
    """A stored file: digest and size in bytes."""

    sha256: str
    size: int


class EventQuery(msgspec.Struct, frozen=True):
    """Newest first. `after` and `before` are ids, themselves not included."""

    kind: str = ""
    subject: str = ""
    after: RowId = 0
    before: RowId = 0
    limit: Limit = 100


async def health(rooms: Rooms, _call: Call) -> HubHealth:
    async with rooms.store.read() as connection:
        await connection.execute(text("SELECT 1"))
    connected = rooms.link.connected.is_set()
    return HubHealth("ok" if connected else "degraded", __version__, connected)


async def authority(rooms: Rooms, _call: Call) -> web.Response:
    return web.Response(text=rooms.ca.server_ca_pem, content_type="application/x-pem-file")


async def description(_rooms: Rooms, call: Call) -> web.Response:
    return web.Response(body=call.request.app[DOCUMENT], content_type="application/json")


async def upload(rooms: Rooms, call: Call) -> Upload:
    announced = call.request.content_length or 0
    if announced > MAX_UPLOAD_BYTES:
        raise TooLarge("upload-too-large", f"upload: expected at most {MAX_UPLOAD_BYTES} bytes, got {announced}")
    sha256, size = await rooms.blobs.put_stream(_pieces(call.request), MAX_UPLOAD_BYTES)
    return Upload(sha256, size)


async def list_events(rooms: Rooms, call: Call) -> Page[Event]:
    query: EventQuery = call.query
    visible = await call.access.visible_events()
    found = await rooms.events.list(query.kind, query.subject, query.after, query.before, query.limit + 1, visible)
    return cut(found, query.limit, lambda event: event.id, parameter="before")


async def _pieces(request: web.Request) -> AsyncIterator[bytes]:
    pieces = request.content.iter_chunked(_PIECE_BYTES)
    while True:
        try:
            async with asyncio.timeout(STALL_S):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise BadRequest("upload-stalled", f"upload: nothing came for {STALL_S:.0f} s; nothing was kept") from error
        yield piece


ROUTES = (
    Route("GET", "/health", health, "Whether the hub works", HubHealth, public=True),
    Route("GET", "/ca", authority, "The CA of the hub's servers (PEM)", public=True, media="application/x-pem-file"),
    Route("GET", "/openapi.json", description, "This description", public=True, media="application/json"),
    Route(
        "POST", "/uploads", upload, "Store a file by its digest", Upload, status=201, upload=True, role=Role.PUBLISHER
    ),
    Route(
        "GET",
        "/events",
        list_events,
        "What happened, newest first",
        list[Event],
        query=EventQuery,
        role=Role.VIEWER,
        paged=True,
    ),
)
