"""What happened, in order and for good: the audit trail of every change, and what devices told.

An event is written in the transaction of the change that it speaks of, so neither stands without the other. There is
one writing transaction at a time, so the chain of hashes (`chain`) has one order. Called by every room that changes
something; listed by `api.system`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Row, and_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.chain import GENESIS, Event, Link, digest
from cloud_hub.clock import Clock
from cloud_hub.store.bulk import insert_many
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import events

MAX_EVENTS: Final = 1000
EXPORT_PAGE: Final = 500
# Events whose subject is a device, and those that speak of no device at all.
_OF_DEVICES: Final = ("agent.", "blob.", "command.", "device.", "event.", "sample.", "state.", "window.")
_OF_NO_DEVICE: Final = ("model.", "module.")
# Why the request at hand is made, in the words of who makes it. It travels beside the call, because every change may
# have a reason and no room does anything with it.
_reason: ContextVar[str] = ContextVar("reason", default="")


def of_devices(kind: str) -> bool:
    """Whether the subject of such events is a device."""
    return kind.startswith(_OF_DEVICES)


def of_no_device(kind: str) -> bool:
    """Whether such events tell of no device."""
    return kind.startswith(_OF_NO_DEVICE)


@contextmanager
def because(reason: str) -> Iterator[None]:
    """Events recorded inside have `reason` among their details, unless they name one of their own."""
    before = _reason.set(reason)
    try:
        yield
    finally:
        _reason.reset(before)


@dataclass(frozen=True)
class Visible:
    """What somebody may see who may not see everything: events of these devices, and of rollouts on nothing else."""

    devices: Collection[str]
    rollouts: Collection[str]


@dataclass(frozen=True)
class Happened:
    """What is to be recorded: of which kind, by whom, about what."""

    kind: str
    actor: str
    subject: str
    details: Mapping[str, object]


class Events:
    """Append-only. Ids grow by one, with time."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        # Since the start of the process. What devices make up (agent.*) is one kind here.
        self.recorded: Counter[str] = Counter()

    async def record(
        self, connection: AsyncConnection, kind: str, actor: str, subject: str, /, **details: object
    ) -> None:
        """Adds an event to the transaction of `connection`, which must be the writing one."""
        await self.record_many(connection, [Happened(kind, actor, subject, details)])

    async def record_many(self, connection: AsyncConnection, happened: Sequence[Happened]) -> None:
        """As `record`, for many at once, in their order."""
        if not happened:
            return
        at, last = float(self._clock()), await self._last(connection)
        rows = []
        for one in happened:
            event = _linked(one, at, last)
            last = Link(event.id, event.hash)
            rows.append(msgspec.structs.asdict(event))
            self.recorded["agent.*" if one.kind.startswith("agent.") else one.kind] += 1
        await insert_many(connection, events, rows)
        self._store.ring_after(connection)

    async def list(
        self,
        kind: str = "",
        subject: str = "",
        after: int = 0,
        before: int = 0,
        limit: int = 100,
        visible: Visible | None = None,
    ) -> list[Event]:
        """Newest first: those with an id above `after` and below `before` (0 = no bound), at most MAX_EVENTS
        and one more.

        With `visible` nothing else is listed.
        """
        query = select(events).where(events.c.id > after).order_by(events.c.id.desc()).limit(min(limit, MAX_EVENTS + 1))
        if before:
            query = query.where(events.c.id < before)
        if kind:
            query = query.where(events.c.kind == kind)
        if subject:
            query = query.where(events.c.subject == subject)
        if visible is not None:
            query = query.where(seen(visible))
        async with self._store.read() as connection:
            return [_event(row) for row in await connection.execute(query)]

    async def export(self) -> AsyncIterator[bytes]:
        """Every event as one line of JSON, oldest first: the whole chain. Read page by page."""
        after = 0
        while True:
            query = select(events).where(events.c.id > after).order_by(events.c.id).limit(EXPORT_PAGE)
            async with self._store.read() as connection:
                page = [_event(row) for row in await connection.execute(query)]
            for event in page:
                yield msgspec.json.encode(event) + b"\n"
            if len(page) < EXPORT_PAGE:
                return
            after = page[-1].id

    async def head(self) -> Link:
        """The end of the chain; id 0 when nothing has happened yet."""
        async with self._store.read() as connection:
            return await self._last(connection)

    async def _last(self, connection: AsyncConnection) -> Link:
        query = select(events.c.id, events.c.hash).order_by(events.c.id.desc()).limit(1)
        row = (await connection.execute(query)).one_or_none()
        return Link(0, GENESIS) if row is None else Link(row.id, row.hash)


def _linked(happened: Happened, at: float, last: Link) -> Event:
    """The event as the next in the chain."""
    details = dict(happened.details)
    if _reason.get() and not details.get("reason"):
        details["reason"] = _reason.get()
    event = Event(
        id=last.id + 1,
        at=at,
        kind=happened.kind,
        actor=happened.actor,
        subject=happened.subject,
        # As it will be read again: what is hashed must be what is stored.
        details=msgspec.json.decode(msgspec.json.encode(details)),
        previous=last.hash,
        hash="",
    )
    return msgspec.structs.replace(event, hash=digest(event))


def is_seen(event: Event, visible: Visible) -> bool:
    """Whether somebody may see the event who may see nothing but `visible`."""
    if of_devices(event.kind):
        return event.subject in visible.devices
    if event.kind.startswith("rollout."):
        return event.subject in visible.rollouts
    return of_no_device(event.kind)


def seen(visible: Visible) -> ColumnElement[bool]:
    """`is_seen` for the database."""

    def of(prefixes: tuple[str, ...]) -> ColumnElement[bool]:
        return or_(*(events.c.kind.startswith(prefix, autoescape=True) for prefix in prefixes))

    return or_(
        and_(of(_OF_DEVICES), among(events.c.subject, visible.devices)),
        and_(of(("rollout.",)), among(events.c.subject, visible.rollouts)),
        of(_OF_NO_DEVICE),
    )


def _event(row: Row[Any]) -> Event:
    return msgspec.convert(row, Event, from_attributes=True)
