"""Every event to one place that takes them as they come: the log file, a broker.

A sink has a cursor; it moves after the place has taken a page of events. What a place did not take is tried again,
ever more rarely, and waits in the hub's own events, which are kept for good. Run by `room`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from cloud_hub.outward.cloud_events import CloudEvent, cloud_event
from cloud_hub.outward.feed import EventFeed
from cloud_hub.outward.kinds import chosen
from cloud_hub.store.engine import Store

PAGE: Final = 100
GATHER_S: Final = 0.2  # after news, before looking: many events in a row are written together
FIRST_S: Final = 0.5
LAST_S: Final = 60.0
log = logging.getLogger(__name__)

# Returns when they are kept there; raises what `failures` of the sink names.
Take = Callable[[Sequence[CloudEvent]], Awaitable[None]]


class Sink:
    """`run` goes on until it is cancelled. `taken` counts events by sink and outcome (taken, failed)."""

    def __init__(
        self,
        store: Store,
        name: str,
        source: str,
        kinds: Sequence[str],
        take: Take,
        failures: tuple[type[Exception], ...],
        tally: Counter[tuple[str, str]],
    ) -> None:
        self._store, self._name, self._source, self._kinds = store, name, source, kinds
        self._take, self._failures, self._tally = take, failures, tally
        self._feed = EventFeed(store, name)
        self._delay_s = 0.0

    async def run(self) -> None:
        """Begins with what happens from the first run on."""
        async with self._store.write() as connection:
            await self._feed.open(connection)
        this = asyncio.current_task()
        # Before Python 3.12 a cancellation that meets the end of a wait inside aiomqtt is swallowed there.
        while this is None or not this.cancelling():
            try:
                await self._round()
            except Exception:
                # Whatever it was, the cursor stands where it stood: the next round meets the same events.
                log.exception("events to the %s: failed, trying again in %s s", self._name, LAST_S)
                await asyncio.sleep(LAST_S)

    async def _round(self) -> None:
        found = await self._feed.read(PAGE)
        if not found:
            await self._feed.news()
            await asyncio.sleep(GATHER_S)
            return
        wanted = [cloud_event(event, self._source) for event in found if chosen(event.kind, self._kinds)]
        try:
            if wanted:
                await self._take(wanted)
        except self._failures as error:
            await self._pause(error)
            return
        async with self._store.write() as connection:
            await self._feed.advance(connection, found[-1].id)
        self._delay_s = 0.0
        self._tally[self._name, "taken"] += len(wanted)

    async def _pause(self, error: Exception) -> None:
        if not self._delay_s:
            log.warning("events to the %s wait: %s", self._name, error)
        self._tally[self._name, "failed"] += 1
        self._delay_s = min(max(FIRST_S, 2 * self._delay_s), LAST_S)
        await asyncio.sleep(self._delay_s * (0.5 + random.random() / 2))
