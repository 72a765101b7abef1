"""Sends one stream of the outbox over the link: batches after batches, a few of them unacknowledged at a time.

The streams take turns by what matters: while one that matters more has something to send, this one waits. Where nobody
listens (the hub is away, the broker says so), it asks again soon, with little, instead of waiting for an ack. Called by
`agent.outbox`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from agent.config import OutboxLimits
from agent.errors import LinkDown, LinkError
from agent.link import Link
from agent.outbox_lane import Lane
from modules.messages import Batch, encode
from modules.topics import up

log = logging.getLogger(__name__)

IDLE_S = 3600.0
UNHEARD_FIRST_S = 0.5
Next = Callable[[Lane, int], Awaitable[Batch | None]]


class Sender:
    """`before` are the lanes that go first. `following(lane, after)` gives what comes after a number, as a batch."""

    def __init__(
        self,
        lane: Lane,
        before: Sequence[Lane],
        link: Link,
        device: str,
        limits: OutboxLimits,
        following: Next,
        begin_anew: Callable[[Lane], Awaitable[None]],
    ) -> None:
        self._lane, self._before, self._link, self._limits = lane, before, link, limits
        self._topic = up(device, lane.stream)
        self._following, self._begin_anew = following, begin_anew
        self._unheard = 0  # batches in a row that nobody took
        self._sent: deque[int] = deque()
        self._position, self._progress = 0, 0.0

    async def run(self) -> None:
        """Until cancelled."""
        said = ""
        while True:
            await self._link.connected.wait()
            try:
                await self._session(self._link.session)
            except LinkDown:
                await asyncio.sleep(self._limits.commit_every_s)  # the link's own event is about to be cleared
            except LinkError as error:
                if error.key != said:
                    log.warning("entries could not be sent, kept: stream=%s error=%s", self._lane.stream, error)
                said = error.key
                await asyncio.sleep(self._limits.ack_timeout_s)

    async def _session(self, session: int) -> None:
        """Sends over one connection until it ends. Raises LinkError."""
        lane, link = self._lane, self._link
        self._start_over()
        try:
            while link.connected.is_set() and link.session == session:
                lane.moved.clear()
                if lane.lost:
                    await self._begin_anew(lane)
                    self._start_over()
                while self._sent and self._sent[0] <= lane.acked:
                    self._sent.popleft()
                    self._progress = time.monotonic()
                if not self._may_send() or not await self._send():
                    lane.idle.set()
                    await self._rest()
        finally:
            lane.idle.set()

    def _start_over(self) -> None:
        """Everything unacknowledged goes out again."""
        self._position, self._progress = self._lane.acked, time.monotonic()
        self._sent.clear()

    def _may_send(self) -> bool:
        return len(self._sent) < self._limits.batches_in_flight and self._lane.held.last_seq > self._position

    async def _send(self) -> bool:
        """Whether there was something."""
        lane = self._lane
        lane.idle.clear()
        for first in self._before:
            await first.idle.wait()
        batch = await self._following(lane, max(self._position, lane.acked))
        if batch is None:
            return False
        data, began = encode(batch), time.monotonic()
        if not await self._link.publish(self._topic, data):
            await self._nobody()
            return True
        lane.took(time.monotonic() - began, len(data))
        self._unheard = 0
        self._progress = self._progress if self._sent else time.monotonic()
        self._position = batch.entries[-1][0]
        self._sent.append(self._position)
        return True

    async def _nobody(self) -> None:
        """The hub is away. A fleet does not come back together, so the pause is by chance."""
        lane = self._lane
        lane.batch_bytes = 1  # one entry, because it may have to be said often
        most = min(self._limits.ack_timeout_s, UNHEARD_FIRST_S * 2**self._unheard)
        self._unheard = min(self._unheard + 1, 16)
        self._start_over()
        lane.idle.set()
        await asyncio.sleep(random.uniform(most / 2, most))

    async def _rest(self) -> None:
        """Until something moves; when an ack stays away, everything goes out again."""
        left = self._limits.ack_timeout_s - (time.monotonic() - self._progress) if self._sent else IDLE_S
        try:
            async with asyncio.timeout(max(0.0, left)):
                await self._lane.moved.wait()
        except TimeoutError:
            if self._sent:
                self._start_over()
