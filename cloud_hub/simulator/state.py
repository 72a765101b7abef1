"""What a simulated device would have on its disk: what runs, how updates went, what it counted and what it has to send.

Called by `walk` (changes it), `outbox`, `reporting` and `book` (keeps it in a file).
"""

from __future__ import annotations

import secrets
from collections import deque
from typing import Literal

import msgspec

from modules.messages import Ack, Batch, ModuleReport, Repository, Stream, UpdateReport

MAX_WAITING = 32  # entries of a stream; beyond, the oldest goes, as in an outbox that is full
IDLE = UpdateReport("idle")


class Lane(msgspec.Struct):
    """One stream of the outbox. `acked` and `last` are sequence numbers of this `epoch`."""

    epoch: str
    last: int = 0
    acked: int = 0
    waiting: list[tuple[int, bytes]] = []
    lost: int = 0

    @classmethod
    def new(cls) -> Lane:
        return cls(secrets.token_hex(8))

    def put(self, body: bytes) -> None:
        self.last += 1
        self.waiting = [*self.waiting, (self.last, body)]
        if len(self.waiting) > MAX_WAITING:
            self.waiting = self.waiting[1:]
            self.lost += 1

    def batch(self, stream: Stream) -> Batch:
        """All that waits, which is something, to be sent until it is acknowledged."""
        return Batch(stream, self.epoch, self.waiting[0][0] - 1, tuple(self.waiting), self.acked)

    def hear(self, ack: Ack) -> int:
        """How many entries are off the mind now. A hub that lost what it had gets the rest under a new epoch."""
        if ack.epoch != self.epoch:
            return 0
        if ack.lost:
            bodies = [body for _, body in self.waiting]
            self.epoch, self.acked, self.last = secrets.token_hex(8), 0, len(bodies)
            self.waiting = list(enumerate(bodies, 1))
            return 0
        before = len(self.waiting)
        self.waiting = [entry for entry in self.waiting if entry[0] > ack.upto]
        self.acked = max(self.acked, min(ack.upto, self.last))
        return before - len(self.waiting)


class DeviceState(msgspec.Struct):
    """`held` are digests of the timestamps that were trusted last. `failed` counts updates that were made to fail."""

    counter: int = 0
    director_version: int = 0
    image_version: int = 0
    modules: tuple[ModuleReport, ...] = ()
    current: UpdateReport = IDLE
    last: UpdateReport = IDLE
    held: dict[Repository, bytes] = {}
    window: Lane | None = None
    event: Lane | None = None
    failed: int = 0
    silent: bool = False
    done: tuple[str, ...] = ()  # ids of the last commands that were done

    def lane(self, stream: Literal["window", "event"]) -> Lane:
        found = self.window if stream == "window" else self.event
        if found is None:
            found = Lane.new()
            if stream == "window":
                self.window = found
            else:
                self.event = found
        return found

    def did(self, command: str) -> bool:
        """Whether it is new; from now on it is not."""
        if command in self.done:
            return False
        self.done = tuple(deque((*self.done, command), maxlen=16))
        return True
