"""Commits what devices send back, exactly once: windows into looks, samples and events into their tables.

A batch and the mark of its stream are written in one transaction, so a batch that comes twice, or twice at a time,
counts once, and the device is told to forget only what is durably here. Batches that come while one transaction is
under way share the next. Called by `link`; tells `alerts` which groups have new counts.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.errors import HubError
from cloud_hub.events import Events
from cloud_hub.monitoring.allowance import Allowance, Room
from cloud_hub.monitoring.committing import Committer, Job, Joiner
from cloud_hub.monitoring.looks import Group
from cloud_hub.monitoring.references import References
from cloud_hub.monitoring.settings import MonitoringSettings
from cloud_hub.monitoring.streams import CLOSED, MAX_EPOCHS, MAX_SEQUENCE
from cloud_hub.store.engine import Store
from modules.messages import MAX_BATCH_ITEMS, Ack, Batch

__all__ = ["CLOSED", "MAX_EPOCHS", "MAX_SEQUENCE", "Ingest"]
MAX_EPOCH: Final = 63
# What shares one transaction: enough that its cost is nothing per entry, few enough that others get the writer soon.
MAX_JOBS: Final = 256
MAX_ENTRIES: Final = 2048
# Between two transactions, unless so many batches wait: those that come a few at a time share one as well. A window in
# a transaction of its own takes 10 ms of the processor, most of it for the transaction.
GATHER_S: Final = 0.2
ENOUGH: Final = 16
_EVENT_KIND = re.compile(r"(agent\.[a-z0-9][a-z0-9.-]{0,49}|(window|sample|event|blob)\.[a-z]+)")

_log = logging.getLogger(__name__)


class Ingest:
    """`on_counts` is called after a commit, with the groups whose looks or quality changed; it must not block.

    Between two transactions `gather_s` seconds pass, unless many batches wait.
    """

    def __init__(
        self,
        store: Store,
        events: Events,
        references: References,
        clock: Clock,
        look_s: float,
        on_counts: Callable[[Collection[Group]], None],
        settings: MonitoringSettings | None = None,
        joiner: Joiner | None = None,
        gather_s: float = 0.0,
    ) -> None:
        settings = settings or MonitoringSettings()
        self._events = events
        self._on_counts = on_counts
        self._allowance = Allowance(clock)
        self._room = Room(clock, settings.device_mib_per_day)
        self._store = store
        self._committer = Committer(store, references, clock, look_s, settings.group_by, self._record, joiner)
        self._waiting: deque[Job] = deque()
        self._turn = asyncio.Lock()
        self._gather_s = gather_s
        self._ended = float("-inf")  # the last transaction
        self.on_job: Callable[[Job], None] = _uncounted  # called for each batch that was committed; must not block

    async def commit(self, device: str, batch: Batch) -> Ack | None:
        """Store what is new in the batch and say up to where the device may forget.

        None when the batch follows entries that are not here (the device sends those first), or is no batch at all,
        or the device is retired: its connection may stand for a while yet, and nothing of it counts. Of a device that
        has sent more than a day's worth no more is taken: it keeps the rest, and sends it again.
        An entry that cannot be used is recorded as an event, skipped, and acknowledged like the others. `lost` when
        entries are missing that were acknowledged once: the device has forgotten them and would wait for ever.
        """
        if not _well_formed(batch):
            _log.warning("refused a batch that is not one", extra={"device": device, "stream": batch.stream})
            return None
        job = self._admit(device, batch)
        if job.held:
            await self._tell_held(job)
        self._waiting.append(job)
        try:
            while not job.done:
                async with self._turn:  # whoever has it commits what waits, its own and others'
                    if not job.done:
                        await self._commit_waiting()
        finally:
            job.abandoned = not job.done
            if job in self._waiting:
                self._waiting.remove(job)
        if job.error is not None:
            raise job.error
        return job.ack

    def _admit(self, device: str, batch: Batch) -> Job:
        entries = sorted(batch.entries)[:MAX_BATCH_ITEMS]
        fitting = len(entries) if batch.stream == "event" else self._room.fitting(device, entries)
        return Job(device, batch, entries[:fitting], held=len(entries) - fitting)

    async def _tell_held(self, job: Job) -> None:
        """Once an hour: the device sends more than it may."""
        if self._room.is_news(job.device):
            _log.warning("a device sends more than it may", extra={"device": job.device, "stream": job.batch.stream})
            async with self._store.write() as connection:
                await self._record(connection, f"{job.batch.stream}.held", job.device, entries=job.held)

    async def _commit_waiting(self) -> None:
        if len(self._waiting) < ENOUGH and (pause_s := self._ended + self._gather_s - time.monotonic()) > 0:
            await asyncio.sleep(pause_s)
        jobs = self._next_group()
        try:
            await self._commit(jobs)
        except Exception as error:
            if len(jobs) == 1 or isinstance(error, HubError):
                for job in jobs:
                    job.done, job.error = True, error
                return
            # One of them is at fault, and must not keep the others from being committed.
            for job in jobs:
                try:
                    await self._commit([job])
                except Exception as its_error:
                    job.done, job.error = True, its_error
        finally:
            self._ended = time.monotonic()
            # Only a cancellation leaves any: the next in turn commits them. The marks tell what was committed.
            self._waiting.extendleft(reversed([job for job in jobs if not job.done and not job.abandoned]))

    def _next_group(self) -> list[Job]:
        jobs: list[Job] = []
        entries = 0
        while self._waiting and len(jobs) < MAX_JOBS and entries < MAX_ENTRIES:
            jobs.append(self._waiting.popleft())
            entries += len(jobs[-1].entries)
        return jobs

    async def _commit(self, jobs: list[Job]) -> None:
        touched = await self._committer.commit(jobs)
        for job in jobs:
            if job.fresh and job.batch.stream != "event":
                self._room.use(job.device, job.fresh)
            job.done = True
            self.on_job(job)
        if touched:
            self._on_counts(touched)

    async def _record(self, connection: AsyncConnection, kind: str, device: str, **details: object) -> None:
        """An event that the device causes, as far as its allowance goes; how many it did not go for is told later."""
        if not self._allowance.allows(device):
            return
        if missed := self._allowance.missed(device):
            _log.warning("a device caused too many events", extra={"device": device, "not_recorded": missed})
            await self._events.record(connection, "device.flooded", "hub", device, not_recorded=missed)
        kind = kind if _EVENT_KIND.fullmatch(kind) else "agent.other"
        await self._events.record(connection, kind, f"device:{device}", device, **details)


def _uncounted(_job: Job) -> None:
    """Where nobody counts."""


def _well_formed(batch: Batch) -> bool:
    sequences = [sequence for sequence, _ in batch.entries]
    return (
        0 < len(batch.epoch) <= MAX_EPOCH
        and "\0" not in batch.epoch  # which PostgreSQL does not take
        and 0 <= batch.acked <= batch.previous <= MAX_SEQUENCE
        and all(0 < sequence <= MAX_SEQUENCE for sequence in sequences)
        and len(set(sequences)) == len(sequences)
    )
