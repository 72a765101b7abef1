"""Batches of several devices in one transaction: what is new of them, and the marks that say so, all or nothing.

Marks are read, entries are parsed, and in the writing transaction the marks are read again: if another process has
moved one meanwhile, everything is begun anew. Called by `ingest` with one group after the other.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.asking.arriving import keep_asked
from cloud_hub.clock import Clock
from cloud_hub.errors import Unavailable
from cloud_hub.monitoring.clocks import newest_looks, without_gone_back
from cloud_hub.monitoring.intake import CountedWindow, KeptSample, Parsed, Problem
from cloud_hub.monitoring.keeping import FromDevice, keep_samples, keep_windows
from cloud_hub.monitoring.looks import Group
from cloud_hub.monitoring.parsing import parse
from cloud_hub.monitoring.references import References
from cloud_hub.monitoring.scopes import scopes_of
from cloud_hub.monitoring.streams import CLOSED, MAX_EPOCHS, StreamKey, forget_epochs, move_marks, read_marks
from cloud_hub.monitoring.traits import Traits
from cloud_hub.privacy import note_spent
from cloud_hub.store.engine import Store
from modules.messages import Ack, AgentEvent, Batch

MAX_TRIES: Final = 5
MAX_TEXT: Final = 500

_log = logging.getLogger(__name__)
Entries = list[tuple[int, bytes]]
Record = Callable[..., Awaitable[None]]  # (connection, kind, device, **details)
Marks = Mapping[StreamKey, int]


class Joiner(Protocol):
    """Joins samples with labels that were here before them (`cloud_hub.labels`)."""

    async def joined(self, connection: AsyncConnection, samples: Collection[tuple[str, str]]) -> set[str]:
        """Device and prediction id of samples that this transaction keeps; the builds that have other outcomes now."""

    def tell(self, manifests: Collection[str]) -> None:
        """The transaction is committed."""


@dataclass(eq=False)
class Job:
    """A batch that waits, with those of its entries that may be taken now, and what became of it."""

    device: str
    batch: Batch
    entries: Entries
    held: int = 0  # entries that the device has no room for now
    done: bool = False
    abandoned: bool = False  # nobody waits for it any more
    ack: Ack | None = None
    error: Exception | None = None
    step: Literal["none", "take", "close"] = "none"
    fresh: Entries = field(default_factory=list)
    parsed: list[Parsed] = field(default_factory=list)

    @property
    def key(self) -> StreamKey:
        return StreamKey(self.device, self.batch.stream, self.batch.epoch)


class Committer:
    """Commits groups of jobs, one at a time. `record` writes an event that a device causes."""

    def __init__(
        self,
        store: Store,
        references: References,
        clock: Clock,
        look_s: float,
        group_by: Sequence[str],
        record: Record,
        joiner: Joiner | None = None,
    ) -> None:
        self._store = store
        self._references = references
        self._clock = clock
        self._look_s = look_s
        self._group_by = group_by
        self._record = record
        self._joiner = joiner
        self._traits = Traits()

    async def commit(self, jobs: Sequence[Job]) -> set[Group]:
        """Commit them all and set their acknowledgements; the groups of devices that have new counts or problems."""
        keys = {job.key for job in jobs}
        for _ in range(MAX_TRIES):
            async with self._store.read() as connection:
                before = await read_marks(connection, keys)
                after = _planned(jobs, before)
                if all(job.step == "none" for job in jobs):
                    await self._drop_retired(connection, jobs)
                    return set()
            await self._parse(jobs)
            touched: set[Group] | None = None
            labelled: set[str] = set()
            async with self._store.write() as connection:
                if await read_marks(connection, keys) == before:
                    touched, labelled = await self._keep(connection, jobs, before, after)
            if touched is not None:
                if self._joiner is not None and labelled:
                    self._joiner.tell(labelled)
                return touched
        raise Unavailable("store-busy", "others moved the same streams again and again; nothing was changed")

    async def _drop_retired(self, connection: AsyncConnection, jobs: Sequence[Job]) -> None:
        traits = await self._traits.of(connection, {job.device for job in jobs})
        for job in jobs:
            if traits.get(job.device, ...) is None:
                job.ack = None

    async def _parse(self, jobs: Sequence[Job]) -> None:
        """Fill in what each job's fresh entries are."""
        batches = [(job.batch.stream, job.fresh) for job in jobs]
        for job, parsed in zip(jobs, await parse(self._references, batches, self._clock()), strict=True):
            job.parsed = parsed

    async def _keep(
        self, connection: AsyncConnection, jobs: Sequence[Job], before: Marks, after: Marks
    ) -> tuple[set[Group], set[str]]:
        traits = await self._traits.of(connection, {job.device for job in jobs})
        retired = {device for device, found in traits.items() if found is None}
        scopes = {job.device: scopes_of(job.device, traits.get(job.device), self._group_by) for job in jobs}
        for job in jobs:
            if job.device in retired:
                job.ack, job.step, job.parsed = None, "none", []
        now = self._clock()
        newest = await newest_looks(connection, [(job.device, job.parsed) for job in jobs])
        for job in jobs:
            job.parsed = without_gone_back(job.device, job.parsed, newest)
        windows = [
            FromDevice(job.device, scopes[job.device], item)
            for job in jobs
            for item in job.parsed
            if isinstance(item, CountedWindow)
        ]
        new = await keep_windows(connection, windows, self._look_s, now)
        await note_spent(connection, ((item.device, item.counted.window) for item in new))
        samples = [(job.device, item) for job in jobs for item in job.parsed if isinstance(item, KeptSample)]
        await keep_samples(connection, samples, now)
        await keep_asked(connection, ((job.device, item) for job in jobs for item in job.parsed), now)
        labelled: set[str] = set()
        if self._joiner is not None and samples:
            ids = {(device, item.sample.prediction_id) for device, item in samples}
            labelled = await self._joiner.joined(connection, ids)
        for job in jobs:
            await self._tell(connection, job, before)
        await self._move(connection, {k: m for k, m in after.items() if k.device not in retired}, before, now)
        return _touched(new, jobs), labelled

    async def _move(self, connection: AsyncConnection, after: Marks, before: Marks, now: float) -> None:
        moved = {key: mark for key, mark in after.items() if before.get(key, 0) != mark}
        gone = await forget_epochs(connection, [key for key in moved if key not in before])
        await move_marks(connection, moved, now)
        for (device, stream), count in gone.items():
            await self._record(connection, f"{stream}.epochs", device, kept=MAX_EPOCHS, forgotten=count)

    async def _tell(self, connection: AsyncConnection, job: Job, before: Marks) -> None:
        """The events that a job gives rise to."""
        if job.step == "close" and before.get(job.key, 0) != CLOSED:
            had, acknowledged = before.get(job.key, 0), job.batch.acked
            await self._record(connection, f"{job.batch.stream}.lost", job.device, had=had, acknowledged=acknowledged)
            text = "this hub no longer has what it acknowledged, the device begins a new epoch"
            _log.warning(text, extra={"device": job.device, "stream": job.batch.stream, "had": had})
        for item in job.parsed:
            if isinstance(item, AgentEvent):
                await self._record_event(connection, job.device, item)
        await self._record_problems(connection, job)

    async def _record_event(self, connection: AsyncConnection, device: str, event: AgentEvent) -> None:
        await self._record(
            connection,
            f"agent.{event.key}",
            device,
            level=event.level,
            text=event.text[:MAX_TEXT],
            module=event.module[:MAX_TEXT],
            device_time=event.at,
        )

    async def _record_problems(self, connection: AsyncConnection, job: Job) -> None:
        """One event per reason, so that a device that sends nothing but nonsense does not fill the trail."""
        problems = [item for item in job.parsed if isinstance(item, Problem)]
        texts = {item.key: item.text for item in problems}
        reasons = Counter((item.key, item.manifest_sha256, item.module) for item in problems)
        for (key, manifest_sha256, module), count in reasons.items():
            await self._record(
                connection,
                f"{job.batch.stream}.refused",
                job.device,
                key=key,
                text=texts[key][:MAX_TEXT],
                count=count,
                module=module,
                manifest_sha256=manifest_sha256,
            )


def _planned(jobs: Sequence[Job], before: Marks) -> dict[StreamKey, int]:
    """Say of each job, in order, what is to be done with it; the marks once all of it is done."""
    marks = dict(before)
    for job in jobs:
        mark, batch = marks.get(job.key, 0), job.batch
        job.step, job.fresh, job.parsed, job.ack = "none", [], [], None
        if mark == CLOSED or batch.acked > mark:
            # Nothing more of this epoch, so that what the device sends anew under the next cannot count twice.
            job.ack = Ack(batch.stream, batch.epoch, 0, lost=True)
            job.step = "none" if mark == CLOSED else "close"
            marks[job.key] = CLOSED
        elif batch.previous <= mark:
            job.fresh = [entry for entry in job.entries if entry[0] > mark]
            job.step = "take" if job.fresh else "none"
            upto = max(mark, job.entries[-1][0] if job.entries else 0)
            job.ack = Ack(batch.stream, batch.epoch, upto)
            if job.fresh:
                marks[job.key] = upto
    return marks


def _touched(windows: Sequence[FromDevice], jobs: Sequence[Job]) -> set[Group]:
    touched = {Group(item.counted.window.manifest_sha256, scope) for item in windows for scope in item.scopes}
    for job in jobs:
        touched |= {Group(i.manifest_sha256, job.device) for i in job.parsed if isinstance(i, Problem)}
    return touched
