"""Questions that come while others are being answered share the next look into the database.

Ten thousand devices ask much the same within seconds: one statement for many costs little more than for one, and
nothing is remembered, so no answer is older than its question. Called by `trust.director`, `trust.image` and `serving`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from typing import Final, Generic, TypeVar

from cloud_hub.store.guards import connection_here

MAX_GROUP: Final = 200
_Key = TypeVar("_Key")
_Found = TypeVar("_Found")


class Together(Generic[_Key, _Found]):
    """`look` finds what belongs to each of several keys; keys that it leaves out have nothing.

    Whoever waits first looks for all who wait. When `look` fails, each of its group gets the error.
    """

    def __init__(
        self, look: Callable[[Collection[_Key]], Awaitable[Mapping[_Key, _Found]]], most: int = MAX_GROUP
    ) -> None:
        self._look = look
        self._most = most
        self._waiting: dict[_Key, list[asyncio.Future[_Found | None]]] = {}
        self._turn = asyncio.Lock()

    async def find(self, key: _Key) -> _Found | None:
        """As of now or later. Raises what `look` raises."""
        if connection_here() is not None:
            return (await self._look([key])).get(key)  # the others have no part in this one's transaction
        future: asyncio.Future[_Found | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        try:
            while not future.done():
                async with self._turn:
                    if not future.done():
                        await self._next()
        finally:
            future.cancel()  # whoever was cancelled waits no more
        return future.result()

    async def _next(self) -> None:
        keys = [key for key, _ in zip(self._waiting, range(self._most), strict=False)]
        group = {key: self._waiting.pop(key) for key in keys}
        try:
            found = await self._look(keys)
        except Exception as error:
            for future in _undone(group.values()):
                future.set_exception(error)
                future.exception()  # seen: whoever asked may have gone meanwhile
        else:
            for key, futures in group.items():
                for future in _undone([futures]):
                    future.set_result(found.get(key))
        finally:
            for key, futures in group.items():  # of a cancellation: they ask with the next group
                if left := list(_undone([futures])):
                    self._waiting.setdefault(key, []).extend(left)


def _undone(groups: Iterable[list[asyncio.Future[_Found | None]]]) -> Iterator[asyncio.Future[_Found | None]]:
    return (future for futures in groups for future in futures if not future.done())
