"""What a replica had heard and not stored when it ended is read again, from what the broker keeps of each device.

Replicas share what devices send (shared subscriptions), and those bring nothing that is retained. So the holder of the
lease reads the retained reports and presences: when it becomes that, after each connection of its own, and when a
replica has gone or come back. Reports that are stored already cost a comparison. Built by `composition`, run by
`service` under the lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from sqlalchemy import select

from cloud_hub.replicas.lease import is_left
from cloud_hub.replicas.settings import PEER
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import leases

ROUND_S: Final = 2.0
_log = logging.getLogger(__name__)


class Rereading:
    """`read` has the broker send what it keeps; `session` counts the connections to it."""

    def __init__(self, store: Store, read: Callable[[], Awaitable[int]], session: Callable[[], int]) -> None:
        self._store = store
        self._read = read
        self._session = session

    async def run(self) -> None:
        """Until cancelled."""
        seen: tuple[int, frozenset[tuple[str, int]]] | None = None
        while True:
            try:
                now = self._session(), await self._peers()
                if now[0] and now != seen:
                    messages = await self._read()
                    _log.info("read again what the broker keeps of devices", extra={"messages": messages})
                    seen = now
            except Exception:
                # Of the broker or the database: both come back, and nothing is lost that the broker keeps.
                _log.exception("what the broker keeps could not be read; trying again in %s s", ROUND_S)
            await asyncio.sleep(ROUND_S)

    async def _peers(self) -> frozenset[tuple[str, int]]:
        """The replicas that are there, each with the token of its life."""
        async with self._store.read() as connection:
            query = select(leases.c.name, leases.c.token).where(leases.c.name.startswith(PEER), is_left(connection))
            return frozenset((row.name, row.token) for row in await connection.execute(query))
