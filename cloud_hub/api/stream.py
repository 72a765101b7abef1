"""Routes of events as they happen: server-sent events, as the HTML standard has them (9.2).

Each event comes as `id` and `data`, which is the event in JSON. What a listener has seen it names in `Last-Event-ID`
when it comes again, and misses nothing. While nothing happens a comment keeps the connection open, with the id up to
which there was nothing to tell. `event: end` says why a stream ends, `event: gap` that the hub knows no such id.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Annotated, Final

import msgspec
from aiohttp import web

from cloud_hub.api.pages import row_cursor
from cloud_hub.api.route import Call, Route
from cloud_hub.bounds import RowId
from cloud_hub.errors import BadRequest, HubError
from cloud_hub.live import Live, Wanted
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms

MEDIA: Final = "text/event-stream"
LIVE: Final = web.AppKey("live", Live)
HEARTBEAT_S: Final = 15.0
ASK_AGAIN_S: Final = 30.0  # whether the listener may still listen, and to what
GATHER_S: Final = 0.1  # events that happen together are sent together
LONGEST_S: Final = 24 * 3600.0
RECONNECT_MS: Final = 2000
FRAMES: Final = 100  # of one write
MAX_NAMES: Final = 50
Kind = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9.-]{0,62}\*?$")]
Subject = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class StreamQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Events behind the id `after`; without it, and without Last-Event-ID, those from now on.

    `kind` and `subject` may be given more than once; `rollout.*` is every kind that begins so. The stream ends after
    `for_s` seconds at the latest.
    """

    kind: tuple[Kind, ...] = ()
    subject: tuple[Subject, ...] = ()
    after: RowId | None = None
    for_s: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_S)] = LONGEST_S

    def __post_init__(self) -> None:
        if max(len(self.kind), len(self.subject)) > MAX_NAMES:
            raise ValueError(f"kind, subject: expected at most {MAX_NAMES} of each")


class RolloutStreamQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As for all events; `after` 0 is from the rollout's beginning."""

    after: RowId | None = None
    for_s: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_S)] = LONGEST_S


async def stream_events(rooms: Rooms, call: Call) -> web.StreamResponse:
    query: StreamQuery = call.query
    return await _stream(rooms, call, Wanted(query.kind, query.subject), query.after, query.for_s)


async def stream_rollout(rooms: Rooms, call: Call) -> web.StreamResponse:
    query: RolloutStreamQuery = call.query
    await rooms.rollouts.get(call.path["id"])
    return await _stream(rooms, call, Wanted(subjects=(call.path["id"],)), query.after, query.for_s)


async def _stream(rooms: Rooms, call: Call, wanted: Wanted, after: int | None, for_s: float) -> web.StreamResponse:
    live = call.request.app[LIVE]
    start = _last_seen(call, after)
    with live.seat(f"{call.principal.kind}:{call.principal.name}"):
        listener = _Listener(call, live, replace(wanted, visible=await call.access.visible_events()))
        listener.write_s = rooms.config.api.listener_write_s
        return await listener.run(start, for_s)


def _last_seen(call: Call, after: int | None) -> int | None:
    """Raises BadRequest `last-event-id-invalid`."""
    given = call.request.headers.get("Last-Event-ID", "").strip()
    try:
        return row_cursor(given) if given else after
    except BadRequest as error:
        raise BadRequest(
            "last-event-id-invalid", f"Last-Event-ID: expected the id of an event, got {given[:40]!r}"
        ) from error


class _Listener:
    """One stream, from its first byte to its last."""

    write_s = 30.0

    def __init__(self, call: Call, live: Live, wanted: Wanted) -> None:
        self._call, self._live, self._wanted = call, live, wanted
        headers = {"Content-Type": MEDIA, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        self._response = web.StreamResponse(headers=headers)
        self._written_at = self._asked_at = time.monotonic()

    async def run(self, start: int | None, for_s: float) -> web.StreamResponse:
        """`start` None: from now on."""
        until = time.monotonic() + for_s
        newest = await self._live.newest()
        await self._response.prepare(self._call.request)
        position = newest if start is None else min(start, newest)
        await self._write(b"retry: %d\nid: %d\n\n" % (RECONNECT_MS, position))
        if start is not None and start > newest:
            # Not of this database, or of one that was put back: what it would wait for may have other numbers.
            await self._tell("gap", asked=start, newest=newest)
        await self._tell("end", reason=await self._follow(position, until))
        await self._response.write_eof()
        return self._response

    async def _follow(self, position: int, until: float) -> str:
        """Sends what comes; why it ended."""
        while True:
            if self._live.stopping.is_set():
                return "stopping"
            if time.monotonic() >= until:
                return "time"
            if not await self._may_listen():
                return "refused"
            found = await self._live.after(position, self._wanted)
            position = found.position
            for at in range(0, len(found.told), FRAMES):
                await self._write(b"".join(told.frame for told in found.told[at : at + FRAMES]))
            if time.monotonic() - self._written_at >= HEARTBEAT_S:
                await self._write(b": nothing new\nid: %d\n\n" % position)
            if found.more:
                await asyncio.sleep(0)
                continue
            await asyncio.sleep(min(GATHER_S, max(0.0, until - time.monotonic())))
            await self._live.news(position, max(0.0, min(HEARTBEAT_S, until - time.monotonic())))

    async def _may_listen(self) -> bool:
        if self._call.again is None or time.monotonic() - self._asked_at < ASK_AGAIN_S:
            return True
        self._asked_at = time.monotonic()
        try:
            access = await self._call.again()
        except HubError:
            return False
        self._wanted = replace(self._wanted, visible=await access.visible_events())
        return True

    async def _tell(self, event: str, **about: object) -> None:
        await self._write(b"event: %b\ndata: %b\n\n" % (event.encode(), msgspec.json.encode(about)))

    async def _write(self, data: bytes) -> None:
        """Ends the connection of a reader that takes nothing."""
        try:
            async with asyncio.timeout(self.write_s):
                await self._response.write(data)
        except TimeoutError as error:
            if self._call.request.transport is not None:
                self._call.request.transport.abort()
            raise ConnectionResetError(f"a listener took nothing for {self.write_s:g} s") from error
        self._written_at = time.monotonic()


ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/events/stream",
        stream_events,
        "Events as they happen, as server-sent events",
        query=StreamQuery,
        media=MEDIA,
        role=Role.VIEWER,
    ),
    Route(
        "GET",
        "/rollouts/{id}/stream",
        stream_rollout,
        "What happens in a rollout, as server-sent events",
        query=RolloutStreamQuery,
        media=MEDIA,
        role=Role.VIEWER,
    ),
)
