"""Long operations at work: so many at a time, each in a task of its own, written down as they go on.

A hub that is stopped ends what it is at as interrupted; one that was killed is found out by its silence. Opened by
`service`; `api.long` brings the work.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from cloud_hub.clock import Clock
from cloud_hub.errors import Conflict, TooMany, Unavailable
from cloud_hub.events import Events
from cloud_hub.operations import book
from cloud_hub.operations.book import Kept, New, OperationState, Outcome
from cloud_hub.operations.progress import listening
from cloud_hub.store.engine import Store
from cloud_hub.store.guards import guarded

BEAT_S: Final = 5.0
SILENT_S: Final = 60.0  # without a word from its process an operation is taken for interrupted
STOP_S: Final = 10.0
KEPT_EACH: Final = 100  # of one owner
POLL_S: Final = 1.0
RETRY_AFTER_S: Final = 10.0
Work = Callable[[], Awaitable[Outcome]]
log = logging.getLogger(__name__)


@dataclass
class _Live:
    """One that this process is at."""

    owner: str
    task: asyncio.Task[None] | None = None
    told: tuple[str, int, int] = ("", 0, 0)
    cancelled: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, doing: str, done: int, total: int) -> None:
        self.told = (doing[: book.MAX_DOING_CHARS], max(0, done), max(0, total))
        self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Operations:
    """`async with operations`: then `begin`. `most` are worked on at a time, `waiting` more may wait."""

    def __init__(
        self, store: Store, events: Events, clock: Clock, most: int, waiting: int, keep_s: float, alone: bool
    ) -> None:
        """`alone`: no other process works on this database, so that what was left behind is nobody's any more."""
        self.keep_s = keep_s
        self._store, self._events, self._clock = store, events, clock
        self._room, self._waiting, self._alone = asyncio.Semaphore(most), most + waiting, alone
        self._process = secrets.token_hex(16)
        self._live: dict[str, _Live] = {}
        self._beat: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        now = self._clock()
        async with self._store.write() as connection:
            await book.interrupt(connection, self._process, now if self._alone else now - SILENT_S, now)
        self._beat = asyncio.create_task(self._beating(), name="operations")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        beat, self._beat = self._beat, None
        left = list(self._live)
        tasks = [live.task for live in self._live.values() if live.task is not None]
        tasks += [beat] if beat is not None else []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_S)
        async with self._store.write() as connection:
            for number in left:  # a task that had not begun yet could say nothing
                await book.end(connection, number, OperationState.INTERRUPTED, self._clock())

    async def begin(self, new: New, work: Work) -> str:
        """Has `work` done, when there is room; the operation's id.

        Raises TooMany `operations-full`, Unavailable `operations-closed`.
        """
        if self._beat is None:
            raise Unavailable("operations-closed", "the hub is stopping; nothing was begun")
        if len(self._live) >= self._waiting:
            text = f"operations: expected at most {self._waiting} at a time; nothing was begun"
            raise TooMany("operations-full", text, retry_after_s=RETRY_AFTER_S)
        number = f"op-{secrets.token_hex(8)}"
        live = self._live[number] = _Live(new.owner)
        try:
            async with self._store.write() as connection:
                await book.trim(connection, new.owner, KEPT_EACH)
                await book.add(connection, number, new, self._process, self._clock())
                await self._events.record(connection, "operation.begun", new.actor, number, kind=new.kind)
            with guarded(None):  # the request's guards have been passed with the operation itself
                context = contextvars.copy_context()
        except BaseException:
            del self._live[number]
            raise
        live.task = asyncio.create_task(self._run(number, new, live, work), name=f"operation-{number}", context=context)
        live.task.add_done_callback(lambda _task: self._over(number))
        return number

    async def get(self, number: str) -> Kept:
        """With what it tells now. Raises NotFound `operation-not-found`."""
        async with self._store.read() as connection:
            return await book.find(connection, number)

    def told(self, number: str) -> tuple[str, int, int] | None:
        """Newer than what is written, of one that this process is at."""
        live = self._live.get(number)
        return None if live is None else live.told

    async def page(self, owner: str, state: str, before: int, limit: int) -> list[Kept]:
        async with self._store.read() as connection:
            return await book.page(connection, owner, state, before, limit)

    async def news(self, number: str, wait_s: float) -> None:
        """Returns when the operation may have come further, or after `wait_s`."""
        live = self._live.get(number)
        if live is None:
            await asyncio.sleep(min(POLL_S, wait_s))  # another process is at it
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await live.changed.wait()

    async def cancel(self, number: str, actor: str) -> None:
        """It ends without a result; what it has done up to now may stay. Raises NotFound, Conflict `operation-ended`.

        One that another process is at hears of it within BEAT_S.
        """
        async with self._store.write() as connection:
            row = await book.find(connection, number)
            if OperationState(row.state).ended:
                raise Conflict("operation-ended", f"operation {number} has ended as {row.state}; nothing was changed")
            await book.end(connection, number, OperationState.CANCELLED, self._clock())
            await self._events.record(connection, "operation.cancelled", actor, number, kind=row.kind)
        self._stop(number)

    def _stop(self, number: str) -> None:
        live = self._live.get(number)
        if live is not None and live.task is not None:
            live.cancelled = True
            live.task.cancel()

    async def _run(self, number: str, new: New, live: _Live, work: Work) -> None:
        try:
            async with self._room:
                async with self._store.write() as connection:
                    if not await book.note(connection, number, self._clock(), state=str(OperationState.RUNNING)):
                        return
                live.wake()
                with listening(live.tell):
                    outcome = await work()
            state = OperationState.DONE if outcome.status < 400 else OperationState.FAILED
            await self._ended(number, new, live, state, outcome)
        except asyncio.CancelledError:
            if not live.cancelled:
                await self._ended(number, new, live, OperationState.INTERRUPTED, None)
            raise
        except Exception:
            # Only the database can be to blame; whoever asks finds it interrupted after SILENT_S.
            log.exception("the end of operation %s could not be written", number)

    def _over(self, number: str) -> None:
        live = self._live.pop(number, None)
        if live is not None:
            live.wake()

    async def _ended(self, number: str, new: New, live: _Live, state: OperationState, outcome: Outcome | None) -> None:
        doing, done, total = live.told
        async with self._store.write() as connection:
            await book.note(connection, number, self._clock(), doing=doing, done=done, total=total)
            if await book.end(connection, number, state, self._clock(), outcome):
                status = 0 if outcome is None else outcome.status
                await self._events.record(
                    connection, "operation.ended", new.actor, number, kind=new.kind, state=str(state), status=status
                )

    async def _beating(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                await self._write_down()
            except Exception:
                log.exception("long operations could not be written down; trying again in %s s", BEAT_S)

    async def _write_down(self) -> None:
        """That this process is at them, and how far; then what other processes have left, and what is too old."""
        now = self._clock()
        if not self._live:
            async with self._store.read() as connection:
                if not await book.is_work(connection, self._process, now - SILENT_S, now - self.keep_s):
                    return
        async with self._store.write() as connection:
            for number, live in list(self._live.items()):
                doing, done, total = live.told
                if not await book.note(connection, number, now, doing=doing, done=done, total=total):
                    self._stop(number)  # ended through another process
            await book.interrupt(connection, self._process, now - SILENT_S, now)
            await book.forget(connection, now - self.keep_s)
