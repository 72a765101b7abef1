"""Entity tags (RFC 9110, 8.8.3): answers that the client has already, and changes of what it has not seen.

The tag of a resource is a digest of its representation, as whoever asks sees it. A change with `If-Match` is checked
twice: at once, and behind the writer's lock in the transaction that begins to change something, so that of two
changes of the same state only one is made. Called by `app`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.errors import BadRequest, NotFound, PreconditionFailed

_DIGITS: Final = 32
_TAG: Final = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_TAGS: Final = re.compile(rf"\s*{_TAG.pattern}(?:\s*,\s*{_TAG.pattern})*\s*")
Representation = Callable[[], Awaitable[bytes]]


def tag_of(body: bytes) -> str:
    """A strong validator: other bytes, another tag."""
    return f'"{hashlib.sha256(body).hexdigest()[:_DIGITS]}"'


def names(header: str, tag: str, weakly: bool) -> bool:
    """Whether a header that lists tags, or is `*`, names this one. Weak tags count only where `weakly`.

    Raises BadRequest `etag-invalid`.
    """
    if header.strip() == "*":
        return True
    if not _TAGS.fullmatch(header):
        raise BadRequest("etag-invalid", f'expected * or tags in quotes such as "a1b2", got {header[:80]!r}')
    return any(f'"{found[2]}"' == tag and (weakly or not found[1]) for found in _TAG.finditer(header))


def is_held(request: web.Request, tag: str) -> bool:
    """Whether the client of a GET has this representation (`If-None-Match`)."""
    header = request.headers.get("If-None-Match")
    return header is not None and names(header, tag, weakly=True)


@dataclass(frozen=True)
class Precondition:
    """Of a change: the state in which the resource must be, or not be. Empty texts ask for nothing."""

    if_match: str
    if_none_match: str
    current: Representation

    @classmethod
    def of(cls, request: web.Request, current: Representation) -> Precondition | None:
        """None when the request has none."""
        match, none_match = (request.headers.get(name, "") for name in ("If-Match", "If-None-Match"))
        return cls(match, none_match, current) if match or none_match else None

    async def guard(self, _connection: AsyncConnection) -> None:
        await self.check()

    async def check(self) -> None:
        """Raises PreconditionFailed `etag-mismatch`, NotFound when it is about something that is not there."""
        tag = await self._tag()
        if self.if_match and (tag is None or not names(self.if_match, tag, weakly=False)):
            raise _mismatch(f"If-Match: expected {tag}, got {self.if_match[:80]}", tag)
        if self.if_none_match and tag is not None and names(self.if_none_match, tag, weakly=True):
            raise _mismatch(f"If-None-Match: there is {tag}, got {self.if_none_match[:80]}", tag)

    async def _tag(self) -> str | None:
        try:
            return tag_of(await self.current())
        except NotFound:
            if self.if_match:
                raise
            return None


def _mismatch(text: str, tag: str | None) -> PreconditionFailed:
    return PreconditionFailed("etag-mismatch", f"{text}; it was changed meanwhile, nothing was done", etag=tag)
