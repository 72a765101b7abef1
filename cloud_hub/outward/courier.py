"""Brings one webhook its events: in order, each at least once, at the pace that its endpoint takes.

The cursor moves in the transaction that writes down the delivery. A hub that is killed between an answer and that
transaction sends the event again, under the same id. While an event fails those behind it wait: order is kept up to
the moment in which an event is dead. A courier knows of no other webhook, so a slow endpoint holds up its own events
and nothing else. Run by `couriers`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.access import Access
from cloud_hub.chain import Event
from cloud_hub.clock import Clock
from cloud_hub.errors import Conflict
from cloud_hub.events import Events, Visible
from cloud_hub.outward import book
from cloud_hub.outward.book import Delivery, DeliveryState, Standing, Webhook
from cloud_hub.outward.choice import wants
from cloud_hub.outward.cloud_events import cloud_event
from cloud_hub.outward.feed import EventFeed
from cloud_hub.outward.pace import DEFAULT_PACE, Pace
from cloud_hub.outward.sending import Answer, Meaning, Sender
from cloud_hub.outward.webhooks import Webhooks, feed_name, origin_of
from cloud_hub.roles import Principal, Role, Scope
from cloud_hub.store.engine import Store

PAGE: Final = 100
SCOPE_S: Final = 5.0
WRITTEN_EVERY_S: Final = 30.0
LONGEST_WAIT_S: Final = 5.0  # until the row is looked at again: it may have been paused by another process
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trade:
    """What couriers have in common."""

    store: Store
    events: Events
    clock: Clock
    webhooks: Webhooks
    sender: Sender
    source: str
    pace: Pace = DEFAULT_PACE
    gather_s: float = 0.2  # after news, before looking: many events in a row are looked at together
    tally: Counter[str] = field(default_factory=Counter)  # deliveries by what became of them, since the start
    random: Callable[[], float] = random.random


class Courier:
    """`run` ends when its webhook is not active any more."""

    def __init__(self, trade: Trade, webhook: str) -> None:
        self._trade = trade
        self._number = webhook
        self._feed = EventFeed(trade.store, feed_name(webhook))
        self._page: deque[Event] = deque()
        self._seen = self._written = 0
        self._written_at = float("-inf")
        self._visible: tuple[float, Visible | None] | None = None

    async def run(self) -> None:
        while (standing := await self._active()) is not None:
            if standing.again:
                await self._once_more(standing)
                continue
            event = await self._next(standing.webhook)
            if event is None:
                await self._feed.news()
                await asyncio.sleep(self._trade.gather_s)
            elif (wait_s := self._wait_s(standing.webhook)) > 0:
                await self._feed.news(min(wait_s, LONGEST_WAIT_S))
            # Looked at again: it may have been paused, or events skipped, after the first look and before this event.
            elif (standing := await self._active()) is not None and event.id > self._seen:
                await self._deliver(standing, event)

    async def _active(self) -> Standing | None:
        async with self._trade.store.read() as connection:
            standing = await book.standing(connection, self._number, self._feed.name)
        if standing is None or standing.webhook.state != "active":
            return None
        # What `_deliver` wrote down, or an administrator who skipped events.
        self._seen = max(self._seen, standing.position)
        while self._page and self._page[0].id <= self._seen:
            self._page.popleft()
        return standing

    async def _next(self, webhook: Webhook) -> Event | None:
        """The first event that it is to have and has not; stays the first until the cursor has moved on."""
        while True:
            if not self._page:
                self._page.extend(await self._feed.read(PAGE, self._seen))
            if not self._page:
                return None
            visible = await self._scope(webhook)
            while self._page:
                if wants(webhook.choice, self._page[0], visible):
                    return self._page[0]
                self._seen = self._page.popleft().id
            await self._write_seen()

    async def _write_seen(self) -> None:
        """Not for each event that it does not want: some are looked at again after a restart."""
        now = asyncio.get_running_loop().time()
        if self._seen - self._written < PAGE and now - self._written_at < WRITTEN_EVERY_S:
            return
        async with self._trade.store.write() as connection:
            await self._feed.advance(connection, self._seen)
        self._written, self._written_at = self._seen, now

    async def _scope(self, webhook: Webhook) -> Visible | None:
        """What its scope shows, at most SCOPE_S seconds old; None for everything."""
        now = asyncio.get_running_loop().time()
        if self._visible is None or now - self._visible[0] > SCOPE_S:
            who = Principal("token", webhook.id, Role.VIEWER, Scope.parse(webhook.choice.scope))
            self._visible = now, await Access(who, self._trade.store).visible_events()
        return self._visible[1]

    def _wait_s(self, webhook: Webhook) -> float:
        """Not above the longest delay, wherever the clock has been set since."""
        return min(webhook.not_before - self._trade.clock(), self._trade.pace.last_s)

    async def _deliver(self, standing: Standing, event: Event) -> None:
        webhook = standing.webhook
        answer = await self._send(standing, event)
        if answer is None:
            return
        now = self._trade.clock()
        async with self._trade.store.write() as connection:
            before = await book.delivery_of(connection, webhook.id, event.id)
            delivery = self._result(webhook, event, before, answer, now)
            # Locked by this transaction: a webhook that was removed meanwhile gets no rows any more.
            if not await book.change(connection, webhook.id, **self._standing(webhook, delivery, answer, now)):
                return
            await book.put(connection, delivery)
            if delivery.state != "waiting":
                await self._feed.advance(connection, event.id)
            if (why := self._given_up(webhook, answer, now)) is not None:
                await self._disable(connection, webhook, why)
        self._tell(webhook, delivery)

    def _tell(self, webhook: Webhook, delivery: Delivery) -> None:
        self._trade.tally[delivery.state] += 1
        if delivery.state == "dead" or (delivery.state == "waiting" and not webhook.failures):
            log.warning(
                "webhook %s to %s: event %s is %s after %s attempts: %s",
                webhook.id, origin_of(webhook.url), delivery.event, delivery.state, delivery.attempts, delivery.reason,
            )  # fmt: skip

    async def _send(self, standing: Standing, event: Event) -> Answer | None:
        """None when it could not be signed; the webhook is then disabled."""
        webhook = standing.webhook
        try:
            keys = self._trade.webhooks.unsealed(webhook.id, standing.sealed)
        except Conflict as error:
            async with self._trade.store.write() as connection:
                await self._disable(connection, webhook, error.message)
            return None
        message = cloud_event(event, self._trade.source)
        return await self._trade.sender.send(webhook.url, keys, message, self._trade.clock())

    def _result(self, webhook: Webhook, event: Event, before: Delivery | None, answer: Answer, now: float) -> Delivery:
        attempts = 1 + (before.attempts if before else 0)
        first_at = before.first_at if before else now
        state: DeliveryState = "waiting"
        if answer.meaning is Meaning.DELIVERED:
            state = "delivered"
        elif self._trade.pace.is_dead(answer, attempts, first_at, now):
            state = "dead"
        return Delivery(
            0, webhook.id, event.id, event.kind, state, attempts, answer.status, answer.reason, first_at, now
        )

    def _standing(self, webhook: Webhook, delivery: Delivery, answer: Answer, now: float) -> dict[str, float | None]:
        """The webhook after this attempt. An endpoint that refuses a message is well otherwise."""
        if delivery.state == "delivered":
            return {"failures": 0, "failing_since": None, "not_before": 0.0}
        failures = webhook.failures + 1
        delay_s = self._trade.pace.delay_s(failures, answer.wait_s, self._trade.random)
        since = webhook.failing_since if webhook.failing_since is not None else now
        return {"failures": failures, "failing_since": since, "not_before": now + delay_s}

    def _given_up(self, webhook: Webhook, answer: Answer, now: float) -> str | None:
        if answer.meaning is Meaning.GONE:
            return answer.reason
        since = webhook.failing_since
        if answer.meaning is not Meaning.DELIVERED and since is not None and now - since >= self._trade.pace.give_up_s:
            return f"nothing was delivered for {self._trade.pace.give_up_s / 86_400:g} days: {answer.reason}"
        return None

    async def _disable(self, connection: AsyncConnection, webhook: Webhook, why: str) -> None:
        await book.change(connection, webhook.id, state="disabled", reason=why)
        origin = origin_of(webhook.url)
        await self._trade.events.record(
            connection, "webhook.disabled", "hub", webhook.id, endpoint=origin, cause=why[:300]
        )
        log.warning("webhook %s to %s was disabled: %s", webhook.id, origin, why)

    # --- dead ones that were asked for by hand ------------------------------------------------------------------------
    async def _once_more(self, standing: Standing) -> None:
        """One attempt; what fails is dead again."""
        async with self._trade.store.read() as connection:
            delivery = await book.delivery(connection, standing.again)
        if delivery is None:
            return  # it was removed meanwhile
        (event,) = await self._feed.read(1, delivery.event - 1)
        answer = await self._send(standing, event)
        if answer is None:
            return
        state: DeliveryState = "delivered" if answer.meaning is Meaning.DELIVERED else "dead"
        after = msgspec.structs.replace(
            delivery,
            state=state,
            attempts=delivery.attempts + 1,
            status=answer.status,
            reason=answer.reason,
            last_at=self._trade.clock(),
        )
        async with self._trade.store.write() as connection:
            if await book.find(connection, self._number) is not None:
                await book.put(connection, after)
        self._trade.tally[state] += 1
