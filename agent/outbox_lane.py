"""One stream of the outbox in memory: where it stands on the disk, what is not there yet, what may go out now.

No I/O. Used by `agent.outbox`, which commits, and `agent.outbox_sender`, which sends.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

from agent.outbox_rows import BATCH_BYTES, ENTRY_BYTES, Change, Standing
from modules.messages import MAX_MESSAGE_BYTES, Stream

# What may wait in memory for the next commit, for each stream; and how much is committed without waiting for more,
# because a commit writes about as much itself.
MAX_UNCOMMITTED_BYTES = 8 * 1024 * 1024
ENOUGH_BYTES = 16 * 1024
LEAST_BATCH_BYTES = 16 * 1024
MOST_BATCH_BYTES = MAX_MESSAGE_BYTES - BATCH_BYTES
# A batch should be through within this, so that one of a stream that matters more never waits much longer.
SLOW_S, QUICK_S = 1.0, 0.25


@dataclass(frozen=True)
class Bounds:
    """Of one stream: bytes on the disk, seconds until an entry is too old; seconds that an entry waits for others
    before it is committed, and that commits for its sake are apart at least; seconds until what is acknowledged goes.
    """

    limit_bytes: int
    age_s: float
    commit_s: float
    apart_s: float
    forget_s: float


class Lane:
    """`wants` is set while there is something to send, and the stream behind it waits."""

    def __init__(self, stream: Stream, bounds: Bounds) -> None:
        self.stream, self.bounds = stream, bounds
        self.epoch = ""
        self.lost = False  # the hub has lost part of this epoch
        self.held = Standing()
        self.fresh: list[tuple[bytes, float]] = []
        self.fresh_bytes = 0
        self.acked = 0
        self.drops: Counter[str] = Counter()  # by reason, not yet counted on the disk
        self.moved = asyncio.Event()  # new rows, an ack, or the link came or went
        self.idle = asyncio.Event()  # nothing can be sent now: whoever comes after may
        self.idle.set()
        self.batch_bytes = LEAST_BATCH_BYTES
        self._fresh_since = self._acked_since = 0.0

    @property
    def waiting(self) -> int:
        """Entries not yet acknowledged. What is held are the last numbers given, without a gap."""
        return min(self.held.count, self.held.last_seq - self.acked) + len(self.fresh)

    def offer(self, payload: bytes, at: float) -> bool:
        if self.fresh_bytes + len(payload) > MAX_UNCOMMITTED_BYTES:
            self.drops["memory"] += 1
            return False
        if not self.fresh:
            self._fresh_since = time.monotonic()
        self.fresh.append((payload, at))
        self.fresh_bytes += len(payload) + ENTRY_BYTES
        return True

    def acknowledge(self, upto: int) -> None:
        if self.acked <= self.held.acked:
            self._acked_since = time.monotonic()
        self.acked = upto
        self.moved.set()

    def due(self, committed_at: float) -> float | None:
        """When the next commit should be, by the monotonic clock; None while there is nothing to write."""
        moments = []
        if self.fresh_bytes >= ENOUGH_BYTES:
            moments.append(self._fresh_since)
        elif self.fresh:
            moments.append(max(self._fresh_since + self.bounds.commit_s, committed_at + self.bounds.apart_s))
        if self.acked > self.held.acked:
            moments.append(self._acked_since + self.bounds.forget_s)
        return min(moments, default=None)

    @property
    def changed(self) -> bool:
        return bool(self.fresh or self.drops or self.acked > self.held.acked)

    def take(self, now: float) -> Change:
        """What the next commit shall do; the lane is then as if it had. `now` by the outbox's clock."""
        horizon = now - self.bounds.age_s if self.bounds.age_s else 0.0
        dropped = self.drops.total()
        change = Change(self.held, self.fresh, self.acked, dropped, self.bounds.limit_bytes, horizon)
        self.fresh, self.fresh_bytes = [], 0
        return change

    def give_back(self, change: Change) -> None:
        """The commit failed: the same again next time."""
        self.fresh = [*change.payloads, *self.fresh]
        self.fresh_bytes = sum(len(payload) + ENTRY_BYTES for payload, _ in self.fresh)

    def took(self, seconds: float, size: int) -> None:
        """A batch of this size was through after so long: larger ones on a good link, smaller ones on a bad one."""
        if seconds > SLOW_S:
            self.batch_bytes = max(LEAST_BATCH_BYTES, self.batch_bytes // 2)
        elif seconds < QUICK_S and size > self.batch_bytes // 2:
            self.batch_bytes = min(MOST_BATCH_BYTES, max(LEAST_BATCH_BYTES, self.batch_bytes * 4))
