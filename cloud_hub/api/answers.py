"""What a handler gives becomes an HTTP answer: one resource, a page of a list, a stream of bytes, or nothing.

Called by `endpoint`. Handlers that have headers of their own to set make their answer themselves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from aiohttp import web

from cloud_hub.api.etags import is_held, tag_of
from cloud_hub.api.pages import TOTAL_HEADER, Page, link
from cloud_hub.api.route import Route

JSON: Final = "application/json"
# Kept by whoever asked, and used only after the hub has said that it is still so.
REVALIDATE: Final = "private, no-cache"


@dataclass(frozen=True)
class Pieces:
    """An answer that is made while it is sent: bytes of the media type `media`."""

    media: str
    pieces: AsyncIterator[bytes]


async def answer(request: web.Request, route: Route, result: object) -> web.StreamResponse:
    if isinstance(result, web.StreamResponse):
        return result
    if isinstance(result, Pieces):
        return await _streamed(request, result)
    if route.returns is None:
        return web.Response(status=204)
    if isinstance(result, Page):
        return _page(request, result)
    body = msgspec.json.encode(result)
    if not route.tagged:
        return web.Response(body=body, status=route.status, content_type=JSON)
    headers = {"ETag": tag_of(body), "Cache-Control": REVALIDATE}
    if is_held(request, headers["ETag"]):
        return web.Response(status=304, headers=headers)
    return web.Response(body=body, status=route.status, content_type=JSON, headers=headers)


def _page(request: web.Request, page: Page[Any]) -> web.Response:
    response = web.Response(body=msgspec.json.encode(list(page.rows)), content_type=JSON)
    if page.next:
        response.headers["Link"] = link(request.rel_url, page)
    if page.total is not None:
        response.headers[TOTAL_HEADER] = str(page.total)
    return response


async def _streamed(request: web.Request, result: Pieces) -> web.StreamResponse:
    # The first piece is made before the answer begins, so that a wrong query is still a proper error.
    first = await anext(result.pieces, None)
    response = web.StreamResponse(headers={"Content-Type": result.media})
    await response.prepare(request)
    if first:
        await response.write(first)
    async for piece in result.pieces:
        await response.write(piece)
    await response.write_eof()
    return response
