"""The part of the hub's client that is about any call: all pages of a list, and the state that was seen.

Mixed into `client.HubClient`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from cloud_hub.operator.marks import Seen, noting, only_if
from cloud_hub.operator.rows import Rows
from cloud_hub.operator.transport import Transport

_Row = TypeVar("_Row")
_Value = TypeVar("_Value")


class Following:
    _http: Transport

    async def pages(self, first: Awaitable[list[_Row]]) -> AsyncIterator[list[_Row]]:
        """The page that a list method gives and all behind it: `hub.pages(hub.models())`.

        What was there when the first page was read comes exactly once.
        """
        page = await first
        yield page
        while isinstance(page, Rows) and page.next:
            page = await self._http.next_page(page)
            yield page

    async def every(self, first: Awaitable[list[_Row]]) -> AsyncIterator[_Row]:
        """Row by row: `async for model in hub.every(hub.models("digits"))`."""
        async for page in self.pages(first):
            for row in page:
                yield row

    async def all_of(self, first: Awaitable[list[_Row]], most: int = 1_000_000) -> list[_Row]:
        """As `every`, in one list of at most `most` rows."""
        found: list[_Row] = []
        async for page in self.pages(first):
            found += page
            if len(found) >= most:
                return found[:most]
        return found

    async def seen(self, call: Coroutine[Any, Any, _Value]) -> Seen[_Value]:
        """The answer with the tag of the state that it shows: `await hub.seen(hub.user("alice"))`."""
        with noting() as tags:
            value = await call
        return Seen(value, tags[-1] if tags else "")

    def only_if(self, etag: str) -> AbstractContextManager[None]:
        """Changes made inside are made only while what they change is as it was seen.

        Raises Refused `etag-mismatch` (412) out of the call:

            seen = await hub.seen(hub.user("alice"))
            with hub.only_if(seen.etag):
                await hub.change_user("alice", role=Role.VIEWER)
        """
        return only_if(etag)
