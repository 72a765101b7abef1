"""One run over the missing chunks of some files: a window of requests, each answer verified, written, counted.

Called by `agent.transfer.fetch`, which owns the files and the thread that writes them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial as bind

from agent.config import FetchLimits
from agent.errors import FetchError, LinkDown, LinkError, LinkTimeout, Refused
from agent.link import Link
from agent.transfer.partial import Partial
from modules.bundle import sha256_hex

# A chunk that is wrong twice is no accident of the way.
TRIES = 2
PAUSE_S = 0.2


class Window:
    """How many requests may be out: one more after a round of quick answers, fewer after slow ones, half after a loss.

    Quick is within `slow_ms` of the quickest answer: what queues up beyond that delays everything else on the link.
    """

    def __init__(self, limits: FetchLimits) -> None:
        self._limits = limits
        self.size, self._quick, self._best_s = limits.window_first, 0, float("inf")

    def answered(self, seconds: float) -> None:
        self._best_s = min(self._best_s, seconds)
        if seconds > self._best_s + self._limits.slow_ms / 1000:
            self.size, self._quick = max(1, self.size - 1), 0
            return
        self._quick += 1
        if self._quick >= self.size:
            self.size, self._quick = min(self._limits.window_most, self.size + 1), 0

    def lost(self) -> None:
        self.size, self._quick = max(1, self.size // 2), 0


class Pull:
    """`on_disk` runs blocking work in the thread that owns the files; `arrived` gets the size of each new chunk."""

    def __init__(
        self,
        link: Link,
        limits: FetchLimits,
        on_disk: Callable[[Callable[[], None]], Awaitable[None]],
        arrived: Callable[[int], None],
    ) -> None:
        self._link, self._limits, self._on_disk, self._arrived = link, limits, on_disk, arrived
        self._window = Window(limits)
        self._moved = time.monotonic()  # when the last chunk came, or the link came back

    async def run(self, partials: Sequence[Partial]) -> None:
        """Returns when nothing is missing. However it ends, what has arrived is synced. Raises FetchError, OSError."""
        todo = deque((partial, index) for partial in partials for index in partial.missing)
        tasks: set[asyncio.Task[None]] = set()
        try:
            while todo or tasks:
                while todo and len(tasks) < self._window.size:
                    partial, index = todo.popleft()
                    tasks.add(asyncio.create_task(self._chunk(partial, index), name=f"chunk-{index}"))
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.shield(asyncio.ensure_future(self._sync(partials)))

    async def _sync(self, partials: Sequence[Partial]) -> None:
        """A failure here hides nothing: chunks that the map lacks are asked for again."""
        for partial in partials:
            with suppress(OSError):
                await self._on_disk(partial.sync)

    async def _chunk(self, partial: Partial, index: int) -> None:
        data = await self._verified(partial, index)
        await self._on_disk(bind(partial.write, index, data, sync_every=self._limits.window_most))
        self._moved = time.monotonic()
        self._arrived(len(data))

    async def _verified(self, partial: Partial, index: int) -> bytes:
        """The chunk's bytes, asked for until they come. Raises FetchError."""
        chunk, name = partial.entry.chunks[index], partial.entry.path
        wrong = 0
        while True:
            data = await self._asked(partial, index)
            if data is None:
                self._check_progress(name)
                await asyncio.sleep(PAUSE_S * random.random())
            elif sha256_hex(data) == chunk.sha256:
                return data
            else:
                wrong += 1
                if wrong >= TRIES:
                    text = f"{name}, chunk {index}: expected {chunk.size} bytes with sha256 {chunk.sha256}, got others"
                    raise FetchError(f"{text} {wrong} times", "chunk-mismatch")

    async def _asked(self, partial: Partial, index: int) -> bytes | None:
        """One request; None when it is worth another. Raises FetchError."""
        entry, limits = partial.entry, self._limits
        await self._online(entry.path)
        began = time.monotonic()
        offset, size = partial.offset(index), entry.chunks[index].size
        try:
            answer = await self._link.get("blob", entry.sha256, offset, size, limits.chunk_timeout_s)
        except LinkDown:
            return None
        except LinkTimeout:
            self._window.lost()
            return None
        except Refused as error:
            if error.key == "busy":
                self._window.lost()
                return None
            key = "not-found" if error.key == "not-found" else "refused"
            raise FetchError(f"{entry.path}: the hub refused: {error}", key) from error
        except LinkError:
            return b""  # not what was asked for: as wrong as wrong bytes
        self._window.answered(time.monotonic() - began)
        return answer.data

    async def _online(self, name: str) -> None:
        """Waits for the link; that time does not count as a stall. Raises FetchError (offline)."""
        if self._link.connected.is_set():
            return
        try:
            async with asyncio.timeout(self._limits.offline_s):
                await self._link.connected.wait()
        except TimeoutError as error:
            text = f"{name}: no connection for {self._limits.offline_s} s; what has arrived is kept"
            raise FetchError(text, "offline") from error
        self._moved = time.monotonic()

    def _check_progress(self, name: str) -> None:
        if time.monotonic() - self._moved > self._limits.stall_s:
            text = f"{name}: nothing arrived for {self._limits.stall_s} s; what has arrived is kept"
            raise FetchError(text, "stalled")
