"""Requests with an `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): done once, however often they come.

That a request was begun is written in the transaction of its first change, so neither stands without the other; its
answer in the same transaction where the route allows it (`Route.whole`), else right behind. The same request gets the
same answer for 24 hours, another one under the same key 422. What failed before it changed anything is not kept:
sent again, it is tried again. Called by `app`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.api.kept import Answer, Asked, Kept, KeptRequests
from cloud_hub.api.problem import failed
from cloud_hub.api.route import Call, Route
from cloud_hub.errors import BadRequest, Conflict, Unprocessable
from cloud_hub.store.engine import Store
from cloud_hub.store.guards import Guards

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotency-Replayed"
MAX_KEY_CHARS: Final = 255
RETRY_AFTER_S: Final = 1.0
_PLAIN: Final = re.compile(r'"([\x20\x21\x23-\x5b\x5d-\x7e]+)"|([\x21\x23-\x5b\x5d-\x7e]+)')
_KEPT_HEADERS: Final = ("Location", "ETag", "Preference-Applied")
Work = Callable[[], Awaitable[web.StreamResponse]]


class UnderWay(Conflict):
    """The same request is being worked on, or nobody knows what became of it."""

    retry_after_s = RETRY_AFTER_S


class _BegunElsewhere(Exception):
    """Another process of this hub has begun the request meanwhile."""


class Idempotency:
    """One per API; knows what is under way in this process."""

    def __init__(self, store: Store, kept: KeptRequests) -> None:
        self._store, self._kept = store, kept
        self._under_way: dict[str, str] = {}

    async def once(self, route: Route, call: Call, raw: bytes, guards: Guards, work: Work) -> web.StreamResponse:
        """The answer of `work`, or the one of before.

        Raises BadRequest `idempotency-key-invalid`, Unprocessable `idempotency-key-reused`, UnderWay
        `request-under-way` and `request-unanswered`.
        """
        asked = _asked(route, call, raw)
        if asked is None:
            return await work()
        kept = await self._kept.find(asked)
        if kept is not None:
            return self._again(asked, kept)
        if asked.id in self._under_way:
            raise _reused() if self._under_way[asked.id] != asked.asked else _under_way()
        self._under_way[asked.id] = asked.asked
        try:
            return await self._first(route, call.request, asked, guards, work)
        except _BegunElsewhere as error:
            kept = await self._kept.find(asked)
            if kept is None:
                raise _under_way() from error
            return self._again(asked, kept)
        finally:
            del self._under_way[asked.id]

    async def _first(
        self, route: Route, request: web.Request, asked: Asked, guards: Guards, work: Work
    ) -> web.StreamResponse:
        async def claim(connection: AsyncConnection) -> None:
            if not await self._kept.claim(connection, asked):
                raise _BegunElsewhere

        guards.add(claim)
        if route.whole:
            async with self._store.whole() as connection:
                response = await work()
                await self._kept.keep(connection, asked, _answer(response))
            return response
        try:
            response = await work()
        except _BegunElsewhere:
            raise
        except Exception as error:
            if not guards.passed:
                raise
            # Something was changed: whoever sends it again is told the same, and changes nothing more.
            response = failed(request, error)
        async with self._store.write() as connection:  # claims too, where nothing was changed
            await self._kept.keep(connection, asked, _answer(response))
        return response

    def _again(self, asked: Asked, kept: Kept) -> web.Response:
        if not kept.same:
            raise _reused()
        if kept.answer is not None:
            headers = kept.answer.headers | {REPLAYED: "true"}
            media = kept.answer.media or None
            return web.Response(
                status=kept.answer.status, headers=headers, body=kept.answer.body or None, content_type=media
            )
        if asked.id in self._under_way:
            raise _under_way()
        text = (
            "this request has begun to change something, and its answer is not there: the hub was stopped meanwhile, "
            "another replica is still at it, or it is too large to keep. Send it again in a moment; when no answer "
            "comes, look whether what it asks for is there, and if not send it with another key"
        )
        raise UnderWay("request-unanswered", text, begun_at=kept.at)


def _asked(route: Route, call: Call, raw: bytes) -> Asked | None:
    given = call.request.headers.getall(HEADER, [])
    if not route.keyed or not given:
        return None
    found = _PLAIN.fullmatch(given[0].strip()) if len(given) == 1 else None
    key = (found[1] or found[2]) if found else ""
    if not 1 <= len(key) <= MAX_KEY_CHARS:
        raise BadRequest(
            "idempotency-key-invalid",
            f"{HEADER}: expected one key of 1 to {MAX_KEY_CHARS} printable ASCII characters without quotes in it",
        )
    who = f"{call.principal.kind}\0{call.principal.name}"
    prefer = call.request.headers.get("Prefer", "")
    said = (route.method, call.request.rel_url.raw_path_qs, prefer)
    return Asked.of(who, key, *(text.encode() for text in said), raw)


def _answer(response: web.StreamResponse) -> Answer:
    if not isinstance(response, web.Response):
        raise TypeError("expected an answer of one piece from a route whose answers are kept")
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    body = bytes(response.body) if isinstance(response.body, bytes | bytearray) else b""
    return Answer(response.status, response.content_type if body else "", headers, body)


def _reused() -> Unprocessable:
    text = f"{HEADER}: another request was sent with this key; nothing was done. Choose a new key for each request"
    return Unprocessable("idempotency-key-reused", text)


def _under_way() -> UnderWay:
    return UnderWay("request-under-way", "the same request is being worked on; send it again in a moment")
