"""Store and forward: what the device says to the hub waits on its disk until the hub has it on its own.

Entries of a stream have ascending numbers; they leave in batches, a few of them unacknowledged at a time, and are
deleted only on the hub's ack. After a lost connection, or an ack that stays away, everything unacknowledged goes out
again; the hub drops what it has. Bounded in bytes: the oldest go first, counted. A hub that lost its database says
so, and the stream goes on under a new epoch with what is still here. The rows are `agent.outbox_rows`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import get_args

from agent.config import OutboxLimits
from agent.errors import LinkDown, LinkError, OutboxError, StoreError
from agent.link import Link
from agent.outbox_rows import ENTRY_BYTES, MAX_ITEM_BYTES, Change, Standing, begin_anew, commit, next_batch, standing
from agent.store import AgentStore, put_values
from modules.messages import Ack, Batch, Stream, encode
from modules.topics import up

log = logging.getLogger(__name__)

EPOCHS_KEY = "outbox.epochs"
# What may wait in memory for the next commit, for each stream.
MAX_UNCOMMITTED_BYTES = 8 * 1024 * 1024
RETRY_S = 2.0
IDLE_S = 3600.0


class _Lane:
    """One stream, in memory: where it stands on the disk, what is not there yet, and what has been acknowledged."""

    def __init__(self, stream: Stream, limit_bytes: int) -> None:
        self.stream, self.limit_bytes = stream, limit_bytes
        self.epoch = ""
        self.lost = False  # the hub has lost part of this epoch
        self.held = Standing()
        self.fresh: list[tuple[bytes, float]] = []
        self.fresh_bytes = 0
        self.acked = 0
        self.dropped = 0  # not yet counted on the disk
        self.moved = asyncio.Event()  # new rows, an ack, or the link came or went

    @property
    def changed(self) -> bool:
        return bool(self.fresh or self.dropped or self.acked > self.held.acked)

    def take(self) -> Change:
        """What the next commit shall do; the lane is then as if it had."""
        change = Change(self.held, self.fresh, self.acked, self.dropped, self.limit_bytes)
        self.fresh, self.fresh_bytes, self.dropped = [], 0, 0
        return change

    def give_back(self, change: Change) -> None:
        """The commit failed: the same again next time."""
        self.fresh = [*change.payloads, *self.fresh]
        self.fresh_bytes = sum(len(payload) + ENTRY_BYTES for payload, _ in self.fresh)
        self.dropped += change.dropped


class Outbox:
    """`run` is a unit of the supervisor. `add` and `offer` work whether or not there is a connection."""

    def __init__(
        self,
        store: AgentStore,
        link: Link,
        device: str,
        limits: OutboxLimits,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._link, self._device, self._limits, self._clock = store, link, device, limits, clock
        sizes = {"window": limits.window_bytes, "sample": limits.sample_bytes, "event": limits.event_bytes}
        self._lanes = {stream: _Lane(stream, sizes[stream]) for stream in get_args(Stream)}
        self._turn = asyncio.Lock()
        self._offered = asyncio.Event()

    async def open(self) -> None:
        """Reads where the streams stand. Before anything else. Raises StoreError."""
        epochs = await self._store.get(EPOCHS_KEY, dict[str, str])
        if epochs is None:
            epochs = {stream: _new_epoch() for stream in self._lanes}
            await self._store.put(EPOCHS_KEY, epochs)
        for stream, lane in self._lanes.items():
            lane.epoch = epochs[stream]
            lane.held = await self._store.run(partial(standing, stream=stream))
            lane.acked = lane.held.acked
        self._link.on_ack(self._acknowledged)
        self._link.on_change(lambda status: self._wake())

    async def add(self, stream: Stream, payload: bytes) -> None:
        """Durable when it returns; what is added at the same time shares a commit. Raises OutboxError, StoreError."""
        if len(payload) > MAX_ITEM_BYTES:
            self._lanes[stream].dropped += 1
            text = f"{stream}: expected an item of at most {MAX_ITEM_BYTES} bytes, got {len(payload)}; it is dropped"
            raise OutboxError(text, "item-too-large")
        if not self.offer(stream, payload):
            raise OutboxError(f"{stream}: too much waits for the disk; the item is dropped", "outbox-full")
        await self.flush()

    def offer(self, stream: Stream, payload: bytes) -> bool:
        """As `add` without waiting: durable soon. False (and counted as dropped) when too large or too much waits."""
        lane = self._lanes[stream]
        if len(payload) > MAX_ITEM_BYTES or lane.fresh_bytes + len(payload) > MAX_UNCOMMITTED_BYTES:
            lane.dropped += 1
            return False
        lane.fresh.append((payload, self._clock()))
        lane.fresh_bytes += len(payload) + ENTRY_BYTES
        self._offered.set()
        return True

    def dropped(self) -> dict[str, int]:
        """Entries given up so far, by stream, over the life of this device; streams that lost none are left out."""
        counts = {stream: lane.held.dropped + lane.dropped for stream, lane in self._lanes.items()}
        return {stream: count for stream, count in counts.items() if count}

    def epoch(self, stream: Stream) -> str:
        """The name of this life of the stream."""
        return self._lanes[stream].epoch

    def waiting(self) -> dict[str, int]:
        """Entries not yet acknowledged, by stream."""
        return {stream: lane.held.count + len(lane.fresh) for stream, lane in self._lanes.items()}

    async def flush(self) -> None:
        """Returns when everything offered so far is on the disk. Raises StoreError; it then stays for the next try."""
        # Shielded: a caller that is cancelled must not leave the lanes in another state than the disk.
        await asyncio.shield(asyncio.ensure_future(self._flush()))

    async def run(self) -> None:
        """Commits and sends until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._commits(), name="outbox-commits")
            for lane in self._lanes.values():
                group.create_task(self._sends(lane), name=f"outbox-{lane.stream}")

    async def _flush(self) -> None:
        async with self._turn:
            changes = {stream: lane.take() for stream, lane in self._lanes.items() if lane.changed}
            if not changes:
                return
            try:
                held = await self._store.run(lambda connection: commit(connection, changes))
            except StoreError:
                for stream, change in changes.items():
                    self._lanes[stream].give_back(change)
                raise
            for stream, now in held.items():
                self._lanes[stream].held = now
                self._lanes[stream].moved.set()

    async def _commits(self) -> None:
        failed = False
        while True:
            await self._offered.wait()
            await asyncio.sleep(RETRY_S if failed else self._limits.commit_every_s)
            self._offered.clear()
            try:
                await self.flush()
                failed = False
            except StoreError as error:
                if not failed:  # said once, not at every try
                    log.warning("the outbox cannot be written, entries wait in memory: error=%s", error)
                failed = True
                self._offered.set()

    async def _sends(self, lane: _Lane) -> None:
        said = ""
        while True:
            await self._link.connected.wait()
            try:
                await self._session(lane, self._link.session)
            except LinkDown:
                await asyncio.sleep(self._limits.commit_every_s)  # the link's own event is about to be cleared
            except LinkError as error:
                if error.key != said:
                    log.warning("entries could not be sent, kept: stream=%s error=%s", lane.stream, error)
                said = error.key
                await asyncio.sleep(self._limits.ack_timeout_s)

    async def _session(self, lane: _Lane, session: int) -> None:
        """Sends over one connection until it ends. Raises LinkError."""
        position, sent, progress = lane.acked, deque[int](), time.monotonic()
        while self._link.connected.is_set() and self._link.session == session:
            lane.moved.clear()
            if lane.lost:
                await self._begin_anew(lane)
                position, progress = 0, time.monotonic()
                sent.clear()
            while sent and sent[0] <= lane.acked:
                sent.popleft()
                progress = time.monotonic()
            if len(sent) < self._limits.batches_in_flight and lane.held.last_seq > position:
                batch = await self._next(lane, max(position, lane.acked))
                if batch is not None:
                    await self._link.publish(up(self._device, lane.stream), encode(batch))
                    progress = progress if sent else time.monotonic()
                    position = batch.entries[-1][0]
                    sent.append(position)
                    continue
            left = self._limits.ack_timeout_s - (time.monotonic() - progress) if sent else IDLE_S
            if not await _set_within(lane.moved, left) and sent:
                position, progress = lane.acked, time.monotonic()
                sent.clear()

    async def _next(self, lane: _Lane, after: int) -> Batch | None:
        entries = await self._store.run(lambda connection: next_batch(connection, lane.stream, after))
        return Batch(lane.stream, lane.epoch, after, entries, min(lane.acked, after)) if entries else None

    async def _begin_anew(self, lane: _Lane) -> None:
        """Everything still here goes out again, under an epoch that the hub has not heard of. Raises StoreError."""
        async with self._turn:
            epochs = {stream: each.epoch for stream, each in self._lanes.items()} | {lane.stream: _new_epoch()}

            def write(connection: sqlite3.Connection) -> Standing:
                put_values(connection, {EPOCHS_KEY: epochs})
                return begin_anew(connection, lane.stream, lane.acked)

            lane.held = await self._store.run(write)
            lane.epoch, lane.acked, lane.lost = epochs[lane.stream], 0, False
        log.warning("the hub lost what it had acknowledged, sending what is still here: stream=%s", lane.stream)

    def _acknowledged(self, ack: Ack) -> None:
        lane = self._lanes[ack.stream]
        if ack.epoch == lane.epoch and ack.lost:
            lane.lost = True
            lane.moved.set()
        elif ack.epoch == lane.epoch and lane.acked < ack.upto <= lane.held.last_seq:
            lane.acked = ack.upto
            lane.moved.set()
            self._offered.set()  # the next commit forgets them

    def _wake(self) -> None:
        for lane in self._lanes.values():
            lane.moved.set()


def _new_epoch() -> str:
    return secrets.token_hex(8)


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
    except TimeoutError:
        return False
    return True
