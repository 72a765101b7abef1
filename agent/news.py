"""What an operator should hear of as it happens: events for the hub, through the outbox, a few at a time.

The device's report says how things stand; these say what happened in between. Called by the units of
`agent.runtimes` and by the update engine, which get `News.tell` from the composition root.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Literal, TypeAlias

from modules.messages import AgentEvent, Stream, encode

QUIET_S = 60.0  # the same news about the same module is told once in this time
MAX_TEXT = 400

Level: TypeAlias = Literal["info", "warning", "error"]
# The level, a stable key, words, and the module's name or nothing.
Tell: TypeAlias = Callable[[Level, str, str, str], object]


def nobody(level: Level, key: str, text: str, module: str = "") -> None:
    """For rooms that have nobody to tell."""


class News:
    """`offer` is `Outbox.offer`: durable soon, never waits."""

    def __init__(
        self,
        offer: Callable[[Stream, bytes], object],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._offer, self._clock, self._monotonic = offer, clock, monotonic
        self._told: dict[tuple[str, str], float] = {}
        self._held: Counter[tuple[str, str]] = Counter()

    def tell(self, level: Level, key: str, text: str, module: str = "") -> None:
        """Sends it, unless the same key was told of the same module just now; how often that was stands in the next."""
        what, now = (key, module), self._monotonic()
        if now - self._told.get(what, -QUIET_S) < QUIET_S:
            self._held[what] += 1
            return
        self._told[what] = now
        again = f" ({self._held.pop(what)} more before this)" if what in self._held else ""
        self._offer("event", encode(AgentEvent(self._clock(), level, key, _plain(text) + again, module)))


def _plain(text: str) -> str:
    """Bounded, one line: part of it may be a module's own words."""
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_TEXT]
