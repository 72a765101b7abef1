"""When to look at the desired state: the doorbell, the poll, a back-off; and never while the hub cannot be reached."""

from __future__ import annotations

import asyncio
import random

from agent.backoff import longest_s
from agent.config import UpdateLimits


class Bell:
    """`due_s` is the wait until the next look without a ring; zero at start, so that a boot looks once.

    `online` is set while there is something to look at: the hub can be reached, or a folder is installed from.
    """

    def __init__(self, limits: UpdateLimits, online: asyncio.Event) -> None:
        self.due_s = 0.0
        self.rung = 0  # the newest director version that the hub has announced
        self._limits = limits
        self._online = online
        self.asked = False  # somebody at the device wants it looked at now
        self._looked = 0  # the newest announced version that somebody has looked at
        self._event = asyncio.Event()

    @property
    def reachable(self) -> bool:
        return self._online.is_set()

    def ring(self, version: int) -> None:
        if version > self.rung:
            self.rung = version
            self._event.set()

    def ask(self) -> None:
        """Look as soon as there is a way to, whatever the hub has announced."""
        self.asked = True
        self._event.set()

    def news(self, known: int) -> bool:
        """Whether somebody asks, or the hub has announced something newer than `known` that nobody has looked at."""
        return self.asked or self.rung > max(known, self._looked)

    def look(self) -> None:
        """Marks what is announced as looked at."""
        self._looked, self.asked = self.rung, False
        self._event.clear()

    async def wait(self, known: int) -> None:
        """Until there is a reason to look, and a way to. Being offline has no deadline."""
        if not self.news(known):
            try:
                async with asyncio.timeout(self.due_s):
                    await self.newer(known)
            except TimeoutError:
                pass  # time to look without being asked
        await self._online.wait()
        self.poll_later()

    async def newer(self, known: int) -> None:
        while not self.news(known):
            self._event.clear()
            await self._event.wait()

    def poll_later(self) -> None:
        self.due_s = self._limits.poll_s * random.uniform(0.5, 1.5)

    def retry_later(self, attempt: int) -> None:
        """Exponential from the first retry to the ceiling, with jitter in the upper half."""
        ceiling = longest_s(self._limits.retry_first_s, self._limits.retry_ceiling_s, attempt)
        self.due_s = random.uniform(ceiling / 2, ceiling)
