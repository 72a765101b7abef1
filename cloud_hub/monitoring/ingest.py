"""Commits what devices send back, exactly once: windows into looks, samples and events into their tables.

A batch and the mark of its stream are written in one transaction, so a batch that comes twice, or twice at a time,
counts once, and the device is told to forget only what is durably here. Called by `link`; tells `alerts` which
groups have new counts.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Final

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.events import Events
from cloud_hub.monitoring.allowance import Allowance
from cloud_hub.monitoring.intake import (
    CountedWindow,
    KeptSample,
    Parsed,
    Problem,
    manifests_of,
    peek_sample,
    peek_window,
    read_event,
    read_sample,
    read_window,
)
from cloud_hub.monitoring.looks import FLEET, Group, LookKey, Tally, look_start, merge
from cloud_hub.monitoring.references import References
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices, samples, streams, windows
from modules.messages import MAX_BATCH_ITEMS, Ack, AgentEvent, Batch

MAX_EPOCH: Final = 63
MAX_SEQUENCE: Final = 2**62
CLOSED: Final = MAX_SEQUENCE + 1  # the mark of an epoch of which this database has lost a part
MAX_TEXT: Final = 500
# Epochs of one stream of one device that are remembered: an honest device begins one when a database was lost.
MAX_EPOCHS: Final = 16
_EVENT_KEY = re.compile(r"[a-z0-9][a-z0-9.-]{0,49}")

_log = logging.getLogger(__name__)
Entries = list[tuple[int, bytes]]


class Ingest:
    """`on_counts` is called after a commit, with the groups whose looks or quality changed; it must not block."""

    def __init__(
        self,
        store: Store,
        events: Events,
        references: References,
        clock: Clock,
        look_s: float,
        on_counts: Callable[[Collection[Group]], None],
    ) -> None:
        self._store = store
        self._events = events
        self._references = references
        self._clock = clock
        self._look_s = look_s
        self._on_counts = on_counts
        self._allowance = Allowance(clock)

    async def commit(self, device: str, batch: Batch) -> Ack | None:
        """Store what is new in the batch and say up to where the device may forget.

        None when the batch follows entries that are not here (the device sends those first), or is no batch at all,
        or the device is retired: its connection may stand for a while yet, and nothing of it counts.
        An entry that cannot be used is recorded as an event, skipped, and acknowledged like the others. `lost` when
        entries are missing that were acknowledged once: the device has forgotten them and would wait for ever.
        """
        if not _well_formed(batch):
            _log.warning("refused a batch that is not one", extra={"device": device, "stream": batch.stream})
            return None
        entries = sorted(batch.entries)[:MAX_BATCH_ITEMS]
        async with self._store.read() as connection:
            mark = await _mark(connection, device, batch)
        if mark == CLOSED or batch.acked > mark:
            return await self._close(device, batch)
        parsed = await self._parse(batch, [entry for entry in entries if entry[0] > mark])
        async with self._store.write() as connection:
            if await _is_retired(connection, device):
                return None
            # Read again: another copy of this batch may have been committed since.
            mark = await _mark(connection, device, batch)
            if batch.previous > mark or mark == CLOSED:
                return None
            fresh = [item for sequence, item in parsed if sequence > mark]
            upto = max(mark, entries[-1][0] if entries else 0)
            if fresh:
                await self._keep(connection, device, batch, fresh)
                await self._move_mark(connection, device, batch, upto)
        if touched := _touched(device, fresh):
            self._on_counts(touched)
        return Ack(batch.stream, batch.epoch, upto)

    async def _close(self, device: str, batch: Batch) -> Ack | None:
        """Takes nothing more of this epoch, so that what the device sends anew under the next cannot count twice."""
        async with self._store.write() as connection:
            mark = await _mark(connection, device, batch)
            if batch.acked <= mark < CLOSED:
                return None  # an older copy of what was lost has come meanwhile
            if mark != CLOSED:
                await self._move_mark(connection, device, batch, CLOSED)
                await self._record(connection, f"{batch.stream}.lost", device, had=mark, acknowledged=batch.acked)
                text = "this hub no longer has what it acknowledged, the device begins a new epoch"
                _log.warning(text, extra={"device": device, "stream": batch.stream, "had": mark})
        return Ack(batch.stream, batch.epoch, 0, lost=True)

    async def _parse(self, batch: Batch, entries: Entries) -> list[tuple[int, Parsed]]:
        if batch.stream == "event":
            return [(sequence, read_event(body)) for sequence, body in entries]
        if batch.stream == "window":
            return await self._parse_windows(entries)
        return await self._parse_samples(entries)

    async def _parse_windows(self, entries: Entries) -> list[tuple[int, Parsed]]:
        peeked = [peek_window(body) for _, body in entries]
        known = {sha256: await self._references.get(sha256) for sha256 in manifests_of(peeked)}
        now = self._clock()

        def read() -> list[tuple[int, Parsed]]:
            return [
                (sequence, item if isinstance(item, Problem) else read_window(item, body, known, now))
                for (sequence, body), item in zip(entries, peeked, strict=True)
            ]

        return await asyncio.to_thread(read)

    async def _parse_samples(self, entries: Entries) -> list[tuple[int, Parsed]]:
        peeked = [peek_sample(body) for _, body in entries]
        known = {sha256: await self._references.get(sha256) for sha256 in manifests_of(peeked)}
        now = self._clock()
        return [
            (sequence, item if isinstance(item, Problem) else read_sample(item, body, known, now))
            for (sequence, body), item in zip(entries, peeked, strict=True)
        ]

    async def _keep(self, connection: AsyncConnection, device: str, batch: Batch, fresh: list[Parsed]) -> None:
        now = self._clock()
        await self._keep_windows(connection, device, [item for item in fresh if isinstance(item, CountedWindow)], now)
        await _keep_samples(connection, device, [item for item in fresh if isinstance(item, KeptSample)], now)
        for item in fresh:
            if isinstance(item, AgentEvent):
                await self._keep_event(connection, device, item)
        problems = [item for item in fresh if isinstance(item, Problem)]
        await self._keep_problems(connection, device, batch, problems)

    async def _keep_windows(
        self, connection: AsyncConnection, device: str, items: list[CountedWindow], now: float
    ) -> None:
        if not items:
            return
        await connection.execute(insert(windows), [_window_row(device, item, now) for item in items])
        for module in {item.window.module for item in items}:
            tallies: dict[LookKey, Tally] = {}
            for item in items:
                if item.window.module == module:
                    start = look_start(item.window.end, self._look_s)
                    for who in (device, FLEET):
                        key = LookKey(item.window.manifest_sha256, who, start)
                        tallies[key] = tallies[key] + item.tally if key in tallies else item.tally
            await merge(connection, module, tallies)

    async def _keep_event(self, connection: AsyncConnection, device: str, event: AgentEvent) -> None:
        key = event.key if _EVENT_KEY.fullmatch(event.key) else "other"
        await self._record(
            connection,
            f"agent.{key}",
            device,
            level=event.level,
            text=event.text[:MAX_TEXT],
            module=event.module[:MAX_TEXT],
            device_time=event.at,
        )

    async def _keep_problems(
        self, connection: AsyncConnection, device: str, batch: Batch, problems: list[Problem]
    ) -> None:
        """One event per reason, so that a device that sends nothing but nonsense does not fill the trail."""
        reasons = Counter((item.key, item.manifest_sha256, item.module) for item in problems)
        texts = {item.key: item.text for item in problems}
        for (key, manifest_sha256, module), count in reasons.items():
            await self._record(
                connection,
                f"{batch.stream}.refused",
                device,
                key=key,
                text=texts[key][:MAX_TEXT],
                count=count,
                module=module,
                manifest_sha256=manifest_sha256,
            )

    async def _record(self, connection: AsyncConnection, kind: str, device: str, **details: object) -> None:
        """An event that the device causes, as far as its allowance goes; how many it did not go for is told later."""
        if not self._allowance.allows(device):
            return
        if missed := self._allowance.missed(device):
            _log.warning("a device caused too many events", extra={"device": device, "not_recorded": missed})
            await self._events.record(connection, "device.flooded", "hub", device, not_recorded=missed)
        await self._events.record(connection, kind, f"device:{device}", device, **details)

    async def _move_mark(self, connection: AsyncConnection, device: str, batch: Batch, mark: int) -> None:
        place = {"device": device, "stream": batch.stream, "epoch": batch.epoch}
        now = self._clock()
        where = [streams.c[name] == value for name, value in place.items()]
        if (await connection.execute(update(streams).where(*where).values(mark=mark, heard_at=now))).rowcount:
            return
        await self._forget_epochs(connection, device, batch)
        await connection.execute(insert(streams).values(**place, mark=mark, heard_at=now))

    async def _forget_epochs(self, connection: AsyncConnection, device: str, batch: Batch) -> None:
        """The marks that have not moved for longest, so that a device cannot fill the table with epochs."""
        of = (streams.c.device == device, streams.c.stream == batch.stream)
        newest = func.coalesce(streams.c.heard_at, 0.0).desc()
        known = (await connection.execute(select(streams.c.epoch).where(*of).order_by(newest))).scalars().all()
        if len(known) >= MAX_EPOCHS:
            gone = known[MAX_EPOCHS - 1 :]
            await connection.execute(delete(streams).where(*of, streams.c.epoch.in_(gone)))
            await self._record(connection, f"{batch.stream}.epochs", device, kept=MAX_EPOCHS, forgotten=len(gone))


def _well_formed(batch: Batch) -> bool:
    sequences = [sequence for sequence, _ in batch.entries]
    return (
        0 < len(batch.epoch) <= MAX_EPOCH
        and 0 <= batch.acked <= batch.previous <= MAX_SEQUENCE
        and all(0 < sequence <= MAX_SEQUENCE for sequence in sequences)
        and len(set(sequences)) == len(sequences)
    )


async def _is_retired(connection: AsyncConnection, device: str) -> bool:
    query = select(devices.c.id).where(devices.c.id == device, devices.c.retired_at.is_not(None))
    return (await connection.execute(query)).one_or_none() is not None


async def _mark(connection: AsyncConnection, device: str, batch: Batch) -> int:
    query = select(streams.c.mark).where(
        streams.c.device == device, streams.c.stream == batch.stream, streams.c.epoch == batch.epoch
    )
    return (await connection.execute(query)).scalar_one_or_none() or 0


async def _keep_samples(connection: AsyncConnection, device: str, items: list[KeptSample], now: float) -> None:
    if items:
        await connection.execute(insert(samples), [_sample_row(device, item, now) for item in items])


def _window_row(device: str, item: CountedWindow, now: float) -> dict[str, object]:
    window = item.window
    return {
        "device": device,
        "module": window.module,
        "manifest_sha256": window.manifest_sha256,
        "start": window.start,
        "end": window.end,
        "received_at": now,
        "rows": window.rows,
        "body": item.body,
    }


def _sample_row(device: str, item: KeptSample, now: float) -> dict[str, object]:
    sample = item.sample
    return {
        "device": device,
        "module": sample.module,
        "manifest_sha256": sample.manifest_sha256,
        "prediction_id": sample.prediction_id,
        "at": sample.at,
        "received_at": now,
        "stratum": sample.stratum,
        "probability": sample.probability,
        "body": item.body,
    }


def _touched(device: str, fresh: list[Parsed]) -> set[Group]:
    return {group for item in fresh for group in _groups(device, item)}


def _groups(device: str, item: Parsed) -> Iterator[Group]:
    if isinstance(item, CountedWindow):
        yield Group(item.window.manifest_sha256, device)
        yield Group(item.window.manifest_sha256, FLEET)
    elif isinstance(item, Problem):
        yield Group(item.manifest_sha256, device)
