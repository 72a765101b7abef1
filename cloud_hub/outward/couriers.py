"""One courier for each active webhook: engaged as soon as there is one, and old deliveries forgotten now and then.

Called by `room`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from cloud_hub.outward import book
from cloud_hub.outward.courier import Courier, Trade
from cloud_hub.outward.feed import EventFeed

SWEEP_EVERY_S: Final = 3600.0
STOP_DEADLINE_S: Final = 5.0
log = logging.getLogger(__name__)


class Couriers:
    """One courier per active webhook, and old deliveries forgotten now and then."""

    def __init__(self, trade: Trade, delivered_s: float, dead_s: float) -> None:
        self._trade = trade
        self._ages_s = (delivered_s, dead_s)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until cancelled; then every courier ends."""
        feed, swept_at = EventFeed(self._trade.store, "couriers"), 0.0
        try:
            while True:
                try:
                    await self._engage()
                    if abs(self._trade.clock() - swept_at) > SWEEP_EVERY_S:
                        swept_at = self._trade.clock()
                        await self._sweep()
                except Exception:
                    # The next round meets the same rows.
                    log.exception("webhooks could not be seen to; trying again")
                await feed.news()
        finally:
            for task in self._tasks.values():
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks.values(), timeout=STOP_DEADLINE_S)

    async def _engage(self) -> None:
        for number, task in list(self._tasks.items()):
            if task.done():
                self._tell_failure(number, task)
                del self._tasks[number]
        async with self._trade.store.read() as connection:
            wanted = [webhook.id for webhook in await book.every(connection) if webhook.state == "active"]
        for number in wanted:
            if number not in self._tasks:
                work = Courier(self._trade, number).run()
                self._tasks[number] = asyncio.create_task(work, name=f"webhook-{number}")

    def _tell_failure(self, number: str, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("webhook %s: its courier failed and begins again", number, exc_info=error)

    async def _sweep(self) -> None:
        now = self._trade.clock()
        delivered_s, dead_s = self._ages_s
        while True:
            async with self._trade.store.write() as connection:
                if await book.forget(connection, now - delivered_s, now - dead_s) < book.SLICE:
                    return
