"""The serving worker's connection to one candidate: what is sent is bounded, and who waits is told of every end.

One of these per candidate worker; `beside` decides what goes through it. Worker side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.candidates.frames import Answered, Fed, FrameError, Frames, answers, framed
from agent.candidates.terms import Terms

MAX_UNSENT = 256 * 1024  # bytes beside what the kernel holds: a candidate that is slower than this misses some
MAX_ASKED = 64  # requests that wait for it at once

Told = Callable[[Answered], None]
LOST, LATE, BUSY, LARGE = "lost", "late", "busy", "large"


class Feed:
    """`ended` is called when the connection is gone."""

    def __init__(self, terms: Terms, ended: Callable[[Feed], None]) -> None:
        self.terms = terms
        self.frames = Frames(self._take, self._lost)
        self._ended = ended
        self._asked: dict[int, tuple[Told, asyncio.TimerHandle]] = {}
        self._number = 0
        self._leaving = False

    @property
    def ready(self) -> bool:
        return self.frames.transport is not None and not self._leaving

    def give(self, fed: Fed) -> str:
        """Sent, and forgotten; else why not."""
        if not self.ready:
            return LOST
        if self.frames.unsent > MAX_UNSENT:
            return BUSY
        try:
            self.frames.send(framed(fed))
        except FrameError:
            return LARGE
        return ""

    def ask(self, fed: Fed, wait_s: float, told: Told) -> str:
        """Sent; `told` is called once, with the answer or with why there is none. Else why it was not sent."""
        if len(self._asked) >= MAX_ASKED:
            return BUSY
        self._number += 1
        fed.number = self._number
        fed.left_us = int(wait_s * 1e6)
        if why := self.give(fed):
            return why
        timer = asyncio.get_running_loop().call_later(wait_s, self._late, fed.number)
        self._asked[fed.number] = told, timer
        return ""

    def leave(self) -> None:
        """Nothing more goes through it; closed once nobody waits any more."""
        self._leaving = True
        if not self._asked:
            self.frames.close()

    def _take(self, body: bytes) -> None:
        answered = answers.decode(body)
        self._settle(answered.number, answered)

    def _late(self, number: int) -> None:
        self._settle(number, Answered(number, [], LATE))

    def _settle(self, number: int, answered: Answered) -> None:
        """An answer that comes after its time is of no use any more."""
        found = self._asked.pop(number, None)
        if found is not None:
            found[1].cancel()
            found[0](answered)
        if self._leaving and not self._asked:
            self.frames.close()

    def _lost(self) -> None:
        self._ended(self)
        for number in list(self._asked):
            self._settle(number, Answered(number, [], LOST))
