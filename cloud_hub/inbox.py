"""Messages that have come and wait to be worked on: bounded, fair between devices, in order where order matters.

`put` never waits, so the receive loop never does. What does not fit is dropped and counted: devices ask again, and
send batches until they are acknowledged. Used by `link` only; knows nothing of MQTT.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

MAX_WAITING_BYTES = 64 * 1024 * 1024
COMPLAINT_PAUSE_S = 60.0
MAX_COMPLAINTS = 10_000

Work = Callable[[], Awaitable[None]]


class Inbox:
    """Lanes of work. Within a lane one thing after the other; `workers` lanes at a time; at most `depth` each."""

    def __init__(self, workers: int, depth: int) -> None:
        self._workers = workers
        self._depth = depth
        self._lanes: dict[str, deque[tuple[int, Work]]] = {}
        # A lane stands here once while it has work and no worker: so each gets its turn, whoever sends most.
        self._turns: asyncio.Queue[str] = asyncio.Queue()
        self._bytes = 0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def waiting(self) -> int:
        """How many lanes have work and no worker."""
        return self._turns.qsize()

    def put(self, lane: str, size: int, work: Work) -> bool:
        """Whether there was room. `size` is what the work holds in memory, in bytes."""
        if self._bytes + size > MAX_WAITING_BYTES:
            return False
        waiting = self._lanes.get(lane)
        if waiting is None:
            waiting = self._lanes[lane] = deque()
            self._turns.put_nowait(lane)
        elif len(waiting) >= self._depth:
            return False
        waiting.append((size, work))
        self._bytes += size
        return True

    def replace(self, lane: str, size: int, work: Work) -> bool:
        """As `put`, in the place of what still waits in the lane: for messages of which only the last counts."""
        for old, _ in self._lanes.get(lane, ()):
            self._bytes -= old
        if lane in self._lanes:
            self._lanes[lane].clear()
        return self.put(lane, size, work)

    async def start(self, name: str) -> None:
        self._tasks = [
            asyncio.create_task(self._work(), name=f"{name}-{number}") for number in range(1, self._workers + 1)
        ]

    async def stop(self) -> None:
        """Ends the workers; what still waits is dropped."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _work(self) -> None:
        while True:
            lane = await self._turns.get()
            waiting = self._lanes[lane]
            if waiting:
                size, work = waiting.popleft()
                self._bytes -= size
                await work()
            if waiting:
                self._turns.put_nowait(lane)
            else:
                del self._lanes[lane]


class Complaints:
    """Counts what went wrong by key, and logs it once a minute per device, not once per message."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._told: dict[tuple[str, str], float] = {}

    def note(self, device: str, key: str, text: str) -> None:
        self.counts[key] += 1
        now = time.monotonic()
        if now - self._told.get((device, key), -COMPLAINT_PAUSE_S) < COMPLAINT_PAUSE_S:
            return
        if len(self._told) >= MAX_COMPLAINTS:
            self._told.clear()
        self._told[(device, key)] = now
        log.warning("message of device %s dropped (%s): %s", device, key, text)
