"""Files by their digest over HTTP, in ranges (RFC 9110, section 14): for operators by role, for devices by a right.

What lies under a digest never changes, so an answer may be kept for ever by whoever has it, a CDN too. Whoever reads
slowly is let go, and only so many are served at a time, so that nobody keeps others waiting.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Final

import msgspec
from aiohttp import web

from cloud_hub.api.route import Call, Route
from cloud_hub.errors import HubError, TooMany
from cloud_hub.limits import network_of
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms
from cloud_hub.transfer_settings import TransferSettings

PIECE_BYTES: Final = 256 * 1024
RETRY_AFTER_S: Final = 2.0
IMMUTABLE: Final = "max-age=31536000, immutable"
_RANGE: Final = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")


class RightQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`right`: what a device got with the address, in the place of a token."""

    right: str = ""


class RangeNotSatisfiable(HubError):
    """Nothing of the file lies in the range that was asked for."""

    status = 416


@dataclass(frozen=True)
class Stretch:
    """Bytes [start, end) of a file of `size` bytes; `whole` when no range was asked for, or none that counts."""

    start: int
    end: int
    size: int
    whole: bool

    @property
    def headers(self) -> dict[str, str]:
        if self.whole:
            return {}
        return {"Content-Range": f"bytes {self.start}-{self.end - 1}/{self.size}"}


class Transfers:
    """How many files are being sent, in all and to each address."""

    def __init__(self) -> None:
        self.under_way: Counter[str] = Counter()

    @contextmanager
    def one(self, sender: str, settings: TransferSettings) -> Iterator[None]:
        """Raises TooMany `transfers-busy`."""
        most, each = settings.transfers, settings.transfers_per_address
        if self.under_way.total() >= most or self.under_way[sender] >= each:
            text = f"files: expected at most {most} transfers at a time, {each} to one address; try again"
            raise TooMany("transfers-busy", text, retry_after_s=RETRY_AFTER_S)
        self.under_way[sender] += 1
        try:
            yield
        finally:
            self.under_way[sender] -= 1
            self.under_way += Counter()  # forgets those at zero


TRANSFERS: Final = web.AppKey("transfers", Transfers)


def stretch(asked: str | None, if_range: str | None, etag: str, size: int) -> Stretch:
    """What to send. Raises RangeNotSatisfiable `range-invalid`.

    One range counts; several, other units and what is no range are passed over, which a server may (RFC 9110, 14.2).
    """
    whole = Stretch(0, size, size, True)
    match = _RANGE.fullmatch(asked.strip()) if asked else None
    if match is None or (if_range is not None and if_range.strip() != etag):
        return whole
    if match[3] is not None:
        start, end = max(0, size - int(match[3])), size
    else:
        start, end = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
        if match[2] and int(match[2]) < int(match[1]):
            return whole
    if start >= end:
        raise RangeNotSatisfiable("range-invalid", f"range: expected one that begins below {size}", size=size)
    return Stretch(start, end, size, False)


async def download_blob(rooms: Rooms, call: Call) -> web.StreamResponse:
    return await _send(rooms, call)


async def inspect_blob(rooms: Rooms, call: Call) -> web.StreamResponse:
    return await _send(rooms, call)


async def _send(rooms: Rooms, call: Call) -> web.StreamResponse:
    # What a token opened is nobody else's to keep: a shared cache would give it to those who have none.
    whose = "public" if "right" in call.request.query else "private"
    about = {"Content-Type": "application/octet-stream", "Cache-Control": f"{whose}, {IMMUTABLE}"}
    return await send_file(rooms, call, call.path["sha256"], about)


async def send_file(rooms: Rooms, call: Call, digest: str, about: Mapping[str, str]) -> web.StreamResponse:
    """A blob, or the range of it that was asked for, under these headers. Raises NotFound `blob-not-found`."""
    request, etag = call.request, f'"{digest}"'
    size = await rooms.blobs.size(digest)
    headers = {**about, "ETag": etag, "Accept-Ranges": "bytes"}
    if _held(request.headers.get("If-None-Match"), etag):
        return web.Response(status=304, headers=headers)
    try:
        part = stretch(request.headers.get("Range"), request.headers.get("If-Range"), etag, size)
    except RangeNotSatisfiable:
        headers |= {"Content-Range": f"bytes */{size}"}
        return web.Response(status=416, headers=headers)
    response = web.StreamResponse(status=200 if part.whole else 206, headers=headers | part.headers)
    response.content_length = part.end - part.start
    if request.method == "HEAD":
        await response.prepare(request)
        return response
    settings = rooms.config.transfer
    with request.app[TRANSFERS].one(network_of(request.remote), settings):
        async with aclosing(rooms.blobs.pages(digest, part.start, part.end, PIECE_BYTES)) as pages:
            first = await anext(pages, b"")  # a file that cannot be had is an error, and no answer that breaks off
            await response.prepare(request)
            await _copy(first, pages, part.end - part.start, response, request, settings.write_s)
    return response


def _held(if_none_match: str | None, etag: str) -> bool:
    if if_none_match is None:
        return False
    return any(one.strip().removeprefix("W/") in (etag, "*") for one in if_none_match.split(","))


async def _copy(
    piece: bytes,
    pages: AsyncIterator[bytes],
    length: int,
    response: web.StreamResponse,
    request: web.Request,
    write_s: float,
) -> None:
    """The first piece and the others. Ends the connection of a reader that takes nothing."""
    try:
        while piece:
            async with asyncio.timeout(write_s):
                await response.write(piece)
            length -= len(piece)
            piece = await anext(pages, b"")
        if length:
            raise ConnectionResetError("the file ended early")
        async with asyncio.timeout(write_s):
            await response.write_eof()
    except TimeoutError as error:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError(f"a reader took nothing for {write_s:g} s") from error
    except HubError as error:  # headers are on their way already: what is short is asked for again, in a range
        raise ConnectionResetError(error.message) from error


_ABOUT = "a file by its digest, or a range of it; `right` stands in for a token"
ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/blobs/{sha256}",
        download_blob,
        f"Download {_ABOUT}",
        query=RightQuery,
        media="application/octet-stream",
        role=Role.VIEWER,
        by_right=True,
    ),
    Route(
        "HEAD",
        "/blobs/{sha256}",
        inspect_blob,
        f"Size and tag of {_ABOUT}",
        query=RightQuery,
        role=Role.VIEWER,
        by_right=True,
        media="application/octet-stream",
    ),
)
