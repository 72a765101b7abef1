"""One source with its window: who may ask it for the next block, and how it has been doing of late.

All transfers share a source's window; they take turns, one block each, so that they share the link. Used by
`agent.transfer.pull`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable

from agent.config import FetchLimits
from agent.errors import LinkDown, LinkTimeout, Refused
from agent.transfer.source import MqttSource, Source, Suspect
from agent.transfer.window import Flight, Window

REST_FIRST_S, REST_MOST_S = 5.0, 600.0
# When the disk is slower than the link, the link waits: an interruption costs what is under way and what is unwritten.
MOST_UNWRITTEN_BYTES = 2 * 1024 * 1024
PAUSE_FIRST_S, PAUSE_MOST_S = 0.2, 5.0


class Lane:
    """`admit`, then `sent` or `leave`; then `read`. `unwritten`: the bytes that have come and wait for the disk."""

    def __init__(self, source: Source, limits: FetchLimits, unwritten: Callable[[], int]) -> None:
        self.name = source.name
        self.window = Window(limits.window_bytes, limits.block_bytes)
        self.down = False  # the last thing heard of it is that it cannot be reached
        self._source, self._timeout_s, self._unwritten = source, limits.chunk_timeout_s, unwritten
        self._turns: deque[asyncio.Future[None]] = deque()
        self._granted = False
        self._failures, self._rests_until, self._paused_until = 0, 0.0, 0.0

    @property
    def connected(self) -> asyncio.Event | None:
        """Set while it can be reached, for a source that knows."""
        return self._source.connected if isinstance(self._source, MqttSource) else None

    @property
    def offline(self) -> bool:
        event = self.connected
        return self.down if event is None else not event.is_set()

    @property
    def resting(self) -> bool:
        """It failed a moment ago: another one, if there is one, should be asked."""
        return time.monotonic() < self._rests_until

    def failed(self) -> None:
        """Nobody asks it for a moment, and for a while others are asked first; longer each time until it does well."""
        now = time.monotonic()
        self._paused_until = now + random.random() * min(PAUSE_MOST_S, PAUSE_FIRST_S * 2**self._failures)
        if now >= self._rests_until:
            self._rests_until = now + min(REST_MOST_S, REST_FIRST_S * 2**self._failures)
            self._failures = min(self._failures + 1, 16)

    def wrong(self, sha256: str) -> None:
        """What it gave of this file was not the file's."""
        self.failed()
        if isinstance(self._source, Suspect):
            self._source.wrong(sha256)

    def good(self) -> None:
        """What it gave was right."""
        self._failures, self._rests_until, self._paused_until = 0, 0.0, 0.0

    async def pause(self) -> None:
        """Returns when it may be asked again."""
        await asyncio.sleep(max(0.0, self._paused_until - time.monotonic()))

    async def admit(self) -> None:
        """Returns when it is the caller's turn and the window has room; then `sent` or `leave` must follow."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        self.next()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        """The turn passes unused."""
        self._granted = False
        self.next()

    def sent(self, size: int, *, limited: bool) -> Flight:
        """`limited`: something else than the window held the block back."""
        flight = self.window.sent(size, time.monotonic(), limited=limited)
        self.leave()
        return flight

    def settle(self, flight: Flight) -> None:
        """The block's task has ended, however it did."""
        self.window.dropped(flight)
        self.next()

    def next(self) -> None:
        """Gives the next turn where there is room."""
        while self._turns and self._turns[0].done():  # whoever waited was cancelled
            self._turns.popleft()
        if self._granted or not self._turns or self.window.room() <= 0:
            return
        if self._unwritten() > min(MOST_UNWRITTEN_BYTES, self.window.size):
            return
        self._granted = True
        self._turns.popleft().set_result(None)

    async def read(self, flight: Flight, sha256: str, offset: int, length: int) -> bytes:
        """As `Source.read`. Whatever comes of it, the window learns."""
        try:
            data = await self._source.read(sha256, offset, length, self.window.timeout_s(self._timeout_s))
        except BaseException as error:
            self.down = isinstance(error, LinkDown)
            if isinstance(error, LinkTimeout) or (isinstance(error, Refused) and error.key == "busy"):
                self.window.lost(flight)
            raise
        self.down = False
        self.window.arrived(flight, time.monotonic())
        return data
