"""Events as they happen, for many listeners at once: one look into the database serves them all.

Events are pulled: each listener remembers how far it has come and asks for what is behind. The last RING events lie
in memory, made ready to send once; whoever is further behind reads pages of the database until it has caught up. So
nothing waits in a queue for anybody, nobody loses an event, and who reads slowly holds up nobody else. Made by
`api.app`, used by `api.stream`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final

import msgspec
from sqlalchemy import ColumnElement, func, or_, select

from cloud_hub.chain import Event
from cloud_hub.errors import TooMany
from cloud_hub.events import Visible, is_seen, seen
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import events

RING: Final = 4096
READ: Final = 500  # events of one look; some milliseconds of the loop
POLL_S: Final = 5.0  # for events of other processes, whose bell is not heard here
RETRY_AFTER_S: Final = 5.0


@dataclass(frozen=True)
class Told:
    """An event and its bytes as a stream has them."""

    event: Event
    frame: bytes


@dataclass(frozen=True)
class Wanted:
    """Which events: of any of the kinds (`rollout.*` for all that begin so) and of any of the subjects; none: all.

    `visible` as for `Events.list`.
    """

    kinds: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    visible: Visible | None = None

    def takes(self, event: Event) -> bool:
        if self.subjects and event.subject not in self.subjects:
            return False
        if self.kinds and not any(_is_of(event.kind, kind) for kind in self.kinds):
            return False
        return self.visible is None or is_seen(event, self.visible)

    @property
    def conditions(self) -> list[ColumnElement[bool]]:
        """The same for the database."""
        found: list[ColumnElement[bool]] = []
        if self.subjects:
            found.append(events.c.subject.in_(self.subjects))
        if self.kinds:
            found.append(or_(*(_condition(kind) for kind in self.kinds)))
        if self.visible is not None:
            found.append(seen(self.visible))
        return found


@dataclass(frozen=True)
class Found:
    """What there is, oldest first, and up to which id everything has been looked at. `more`: ask again at once."""

    told: list[Told]
    position: int
    more: bool


class Live:
    """One per process. `listeners` in all and `each` of one principal may listen at a time."""

    def __init__(self, store: Store, listeners: int, each: int) -> None:
        self._store, self._most, self._each = store, listeners, each
        self._ring: deque[Told] = deque(maxlen=RING)
        self._last = -1  # the newest event that has been looked at; below 0 before the first look
        self._heard, self._looked_at = -1, 0.0
        self._looking = asyncio.Lock()
        self._seats: Counter[str] = Counter()
        self.stopping = asyncio.Event()

    @property
    def listeners(self) -> int:
        return self._seats.total()

    @contextmanager
    def seat(self, who: str) -> Iterator[None]:
        """Raises TooMany `listeners-full`."""
        if self.stopping.is_set() or self.listeners >= self._most or self._seats[who] >= self._each:
            text = f"streams: expected at most {self._most} listeners, {self._each} of one name; try again"
            raise TooMany("listeners-full", text, retry_after_s=RETRY_AFTER_S)
        self._seats[who] += 1
        try:
            yield
        finally:
            self._seats[who] -= 1
            self._seats += Counter()  # forgets those at zero

    async def newest(self) -> int:
        """The id of the newest event."""
        await self._look()
        return self._last

    async def after(self, position: int, wanted: Wanted) -> Found:
        """Events behind the id `position`, READ of them at most."""
        await self._look()
        first = self._last - len(self._ring) + 1  # ids have no gaps
        if position < first - 1:
            return await self._from_database(position, wanted)
        looked = list(islice(self._ring, position - first + 1, position - first + 1 + READ))
        if not looked:
            return Found([], position, False)
        reached = looked[-1].event.id
        return Found([told for told in looked if wanted.takes(told.event)], reached, reached < self._last)

    async def news(self, position: int, timeout_s: float) -> None:
        """Returns when there may be events behind `position`, when the hub stops, or after `timeout_s`."""
        if position < self._last or self.stopping.is_set():
            return
        bell = asyncio.ensure_future(self._store.bell.heard(self._heard, min(timeout_s, POLL_S)))
        stop = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait((bell, stop), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (bell, stop):
                task.cancel()
            await asyncio.gather(bell, stop, return_exceptions=True)

    async def _look(self) -> None:
        """Reads what is new, once for all who ask meanwhile."""
        async with self._looking:
            bell = self._store.bell.count
            if self._last >= 0 and bell == self._heard and time.monotonic() - self._looked_at < POLL_S:
                return
            async with self._store.read() as connection:
                if self._last < 0:
                    self._last = (await connection.execute(select(func.max(events.c.id)))).scalar_one() or 0
                query = select(events).where(events.c.id > self._last).order_by(events.c.id).limit(READ)
                rows = (await connection.execute(query)).all()
            self._ring.extend(_told(row) for row in rows)
            self._last = rows[-1].id if rows else self._last
            if len(rows) < READ:  # else there is more: the next who asks looks again
                self._heard, self._looked_at = bell, time.monotonic()

    async def _from_database(self, position: int, wanted: Wanted) -> Found:
        until = self._last
        query = select(events).where(events.c.id > position, events.c.id <= until, *wanted.conditions)
        async with self._store.read() as connection:
            rows = (await connection.execute(query.order_by(events.c.id).limit(READ))).all()
        reached = rows[-1].id if len(rows) == READ else until
        return Found([_told(row) for row in rows], reached, True)


def _told(row: object) -> Told:
    event = msgspec.convert(row, Event, from_attributes=True)
    return Told(event, b"id: %d\ndata: %b\n\n" % (event.id, msgspec.json.encode(event)))


def _is_of(kind: str, wanted: str) -> bool:
    return kind.startswith(wanted[:-1]) if wanted.endswith("*") else kind == wanted


def _condition(wanted: str) -> ColumnElement[bool]:
    if wanted.endswith("*"):
        return events.c.kind.startswith(wanted[:-1], autoescape=True)
    return events.c.kind == wanted
