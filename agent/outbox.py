"""Store and forward: what the device says to the hub waits on its disk until the hub has it on its own.

Entries of a stream have ascending numbers; they leave in batches and are deleted only on the hub's ack. After a lost
connection, or an ack that stays away, everything unacknowledged goes out again; the hub drops what it has. Bounded in
bytes and in age, by stream and in all: blobs of samples go before samples, samples before windows, windows before
events, the oldest first, counted by reason. A hub that lost its database says so, and the stream goes on under a new
epoch with what is still here.

Writes are few, for the sake of flash: what comes within a stream's interval shares one commit, and what the hub has
acknowledged is forgotten along with it. The rows are `agent.outbox_rows`, sending is `agent.outbox_sender`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from agent.config import OutboxLimits
from agent.errors import OutboxError, StoreError
from agent.link import Link, LinkStatus
from agent.outbox_lane import Bounds, Lane
from agent.outbox_rows import (
    MAX_ITEM_BYTES,
    Change,
    Committed,
    Standing,
    begin_anew,
    commit,
    next_batch,
    standing,
    time_anew,
)
from agent.outbox_sender import Sender
from agent.store import AgentStore, put_values
from modules.messages import Ack, Batch, Stream

log = logging.getLogger(__name__)

EPOCHS_KEY, DROPS_KEY, CLOCK_KEY = "outbox.epochs", "outbox.drops", "outbox.clock"
# What matters most goes out first, and is given up last.
PRIORITY: tuple[Stream, ...] = ("event", "window", "sample", "blob")
RETRY_S = 2.0
IDLE_S = 3600.0
KEEP_TIME_EVERY_S = 3600.0


class Outbox:
    """`run` is a unit of the supervisor. `add` and `offer` work whether or not there is a connection."""

    def __init__(
        self,
        store: AgentStore,
        link: Link,
        device: str,
        limits: OutboxLimits,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._link, self._device, self._limits = store, link, device, limits
        self._lanes = {stream: Lane(stream, _bounds(stream, limits)) for stream in PRIORITY}
        self._drops: Counter[tuple[str, str]] = Counter()
        self._monotonic, self._began, self._kept_at = monotonic, monotonic(), 0.0
        self._turn = asyncio.Lock()
        self._offered = asyncio.Event()
        self._tidied_at = monotonic()
        self._freed = False
        self._committed_at = float("-inf")

    async def open(self) -> None:
        """Reads where the streams stand. Before anything else. Raises StoreError."""
        epochs = await self._store.get(EPOCHS_KEY, dict[str, str]) or {}
        if missing := [stream for stream in self._lanes if stream not in epochs]:  # the first start, or a new stream
            epochs |= {stream: _new_epoch() for stream in missing}
            await self._store.put(EPOCHS_KEY, epochs)
        self._kept_at = await self._store.get(CLOCK_KEY, float) or 0.0
        self._began = self._monotonic() - self._kept_at
        try:
            await self._store.run(partial(time_anew, now=self._now()))
        except StoreError as error:  # a full disk must not keep modules from being served
            log.warning("times of waiting entries stay those of another clock: error=%s", error)
        known = await self._store.get(DROPS_KEY, dict[str, int]) or {}
        self._drops = Counter({_split(name): count for name, count in known.items()})
        for stream, lane in self._lanes.items():
            lane.epoch = epochs[stream]
            lane.held = await self._store.run(partial(standing, stream=stream))
            lane.acked = lane.held.acked
        self._link.on_ack(self._acknowledged)
        self._link.on_change(self._wake)

    async def add(self, stream: Stream, payload: bytes) -> None:
        """Durable when it returns; what is added at the same time shares a commit. Raises OutboxError, StoreError."""
        if len(payload) > MAX_ITEM_BYTES:
            self._lanes[stream].drops["size"] += 1
            text = f"{stream}: expected an item of at most {MAX_ITEM_BYTES} bytes, got {len(payload)}; it is dropped"
            raise OutboxError(text, "item-too-large")
        if not self.offer(stream, payload):
            raise OutboxError(f"{stream}: too much waits for the disk; the item is dropped", "outbox-full")
        await self.flush()

    def offer(self, stream: Stream, payload: bytes) -> bool:
        """As `add` without waiting: durable within the stream's interval. False (and counted as dropped) when it is
        too large, or too much waits.
        """
        lane = self._lanes[stream]
        if len(payload) > MAX_ITEM_BYTES:
            lane.drops["size"] += 1
            return False
        if not lane.offer(payload, self._now()):
            return False
        self._offered.set()
        return True

    def dropped(self) -> dict[str, int]:
        """Entries given up so far, by stream, over the life of this device; streams that lost none are left out."""
        counts = {stream: lane.held.dropped + lane.drops.total() for stream, lane in self._lanes.items()}
        return {stream: count for stream, count in counts.items() if count}

    def dropped_why(self) -> dict[str, int]:
        """The same by stream and reason, as `sample.age`: age, bytes, total, size, memory (the disk was too slow)."""
        counts = Counter({f"{stream}.{why}": count for (stream, why), count in self._drops.items()})
        for stream, lane in self._lanes.items():
            counts.update({f"{stream}.{why}": count for why, count in lane.drops.items()})
        return dict(sorted(counts.items()))

    def epoch(self, stream: Stream) -> str:
        """The name of this life of the stream."""
        return self._lanes[stream].epoch

    def waiting(self) -> dict[str, int]:
        """Entries not yet acknowledged, by stream."""
        return {stream: lane.waiting for stream, lane in self._lanes.items()}

    def waiting_bytes(self) -> dict[str, int]:
        """Bytes on the disk that the hub has not acknowledged, or that are not forgotten yet, by stream."""
        return {stream: lane.held.size for stream, lane in self._lanes.items()}

    async def flush(self) -> None:
        """Returns when everything offered so far is on the disk. Raises StoreError; it then stays for the next try."""
        # Shielded: a caller that is cancelled must not leave the lanes in another state than the disk.
        await asyncio.shield(asyncio.ensure_future(self._flush()))

    async def run(self) -> None:
        """Commits and sends until cancelled."""
        lanes = list(self._lanes.values())
        async with asyncio.TaskGroup() as group:
            group.create_task(self._commits(), name="outbox-commits")
            for number, lane in enumerate(lanes):
                sender = Sender(
                    lane, lanes[:number], self._link, self._device, self._limits, self._next, self._begin_anew
                )
                group.create_task(sender.run(), name=f"outbox-{lane.stream}")

    def _now(self) -> float:
        """Seconds that agents have run on this device, give or take those before a power cut."""
        return self._monotonic() - self._began

    async def _flush(self) -> None:
        async with self._turn:
            now = self._now()
            if not any(lane.changed for lane in self._lanes.values()) and now - self._kept_at < KEEP_TIME_EVERY_S:
                return
            taken = {stream: Counter(lane.drops) for stream, lane in self._lanes.items()}
            changes = {stream: lane.take(now) for stream, lane in self._lanes.items()}
            try:
                done = await self._store.run(partial(self._write, changes=changes, taken=taken, now=now))
            except StoreError:
                for stream, change in changes.items():
                    self._lanes[stream].give_back(change)
                raise
            self._committed_at = time.monotonic()
            for stream, lane in self._lanes.items():
                held = done.held[stream]
                self._freed = self._freed or held.size < lane.held.size
                lane.held = held
                lane.drops -= taken[stream]
                lane.moved.set()
            self._drops.update(done.drops)

    def _write(
        self,
        connection: sqlite3.Connection,
        changes: dict[Stream, Change],
        taken: dict[Stream, Counter[str]],
        now: float,
    ) -> Committed:
        """Everything that one commit writes, on the store's thread."""
        done = commit(connection, changes, self._limits.total_bytes, reversed(PRIORITY))
        for stream, drops in taken.items():
            done.drops.update({(stream, why): count for why, count in drops.items()})
        if done.drops:
            counts = self._drops + done.drops
            put_values(connection, {DROPS_KEY: {f"{stream}.{why}": n for (stream, why), n in counts.items()}})
        if now - self._kept_at >= KEEP_TIME_EVERY_S:
            put_values(connection, {CLOCK_KEY: now})
            self._kept_at = now
        return done

    async def _commits(self) -> None:
        failed = False
        while True:
            await self._until_due(RETRY_S if failed else 0.0)
            try:
                await self.flush()
                failed = False
            except StoreError as error:
                if not failed:  # said once, not at every try
                    log.warning("the outbox cannot be written, entries wait in memory: error=%s", error)
                failed = True
            else:
                await self._tidy()

    async def _until_due(self, least_s: float) -> None:
        """Until there is something to write, and a stream's interval has passed."""
        await asyncio.sleep(least_s)
        while True:
            moments = [lane.due(self._committed_at) for lane in self._lanes.values()]
            due = min((at for at in moments if at is not None), default=None)
            left = KEEP_TIME_EVERY_S if due is None else due - time.monotonic()
            if left <= 0:
                return
            self._offered.clear()
            try:
                async with asyncio.timeout(left):
                    await self._offered.wait()
            except TimeoutError:
                return

    async def _tidy(self) -> None:
        """Gives freed space back from time to time, when there is nothing else to do."""
        due = self._monotonic() - self._tidied_at >= self._limits.tidy_every_s
        if not (self._freed and due) or any(lane.fresh for lane in self._lanes.values()):
            return
        self._freed, self._tidied_at = False, self._monotonic()
        try:
            await self._store.tidy()
        except StoreError as error:
            log.warning("space could not be given back: error=%s", error)

    async def _next(self, lane: Lane, after: int) -> Batch | None:
        room = lane.batch_bytes
        entries = await self._store.run(lambda connection: next_batch(connection, lane.stream, after, room))
        return Batch(lane.stream, lane.epoch, after, entries, min(lane.acked, after)) if entries else None

    async def _begin_anew(self, lane: Lane) -> None:
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
            lane.acknowledge(ack.upto)
            self._offered.set()  # a commit some time later forgets them

    def _wake(self, _: LinkStatus) -> None:
        for lane in self._lanes.values():
            lane.moved.set()


def _bounds(stream: Stream, limits: OutboxLimits) -> Bounds:
    of = {
        "event": (limits.event_bytes, limits.event_age_s),
        "window": (limits.window_bytes, limits.window_age_s),
        "sample": (limits.sample_bytes, limits.sample_age_s),
        "blob": (limits.blob_bytes, limits.blob_age_s),
    }
    apart_s = 0.0 if stream == "event" else limits.lazy_commit_s
    return Bounds(*of[stream], limits.commit_every_s, apart_s, limits.forget_s)


def _split(name: str) -> tuple[str, str]:
    stream, _, why = name.partition(".")
    return stream, why


def _new_epoch() -> str:
    return secrets.token_hex(8)
