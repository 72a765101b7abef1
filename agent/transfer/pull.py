"""One run over what is missing of some files: blocks asked of the sources in order, checked, written, counted.

A block is a range of one file: less than a chunk on a slow link, several chunks on a fast one. Called by
`agent.transfer.fetch`, which owns the files and the thread that writes them; several runs at a time share the sources.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial as bind
from typing import TypeVar

from agent.config import FetchLimits
from agent.errors import FetchError, LinkDown, LinkError, LinkTimeout, Refused
from agent.transfer.lane import Lane
from agent.transfer.partial import Partial, Written
from agent.transfer.schedule import Gate
from agent.transfer.source import Source
from agent.transfer.todo import Block, Todo
from agent.transfer.traffic import Traffic
from agent.transfer.window import Flight

LEAST_SYNC_BYTES = 64 * 1024

_T = TypeVar("_T")
OnDisk = Callable[[Callable[[], _T]], Awaitable[_T]]
Arrived = Callable[[int], None]


class Pull:
    """The sources, each with its window, and the disk behind them. `run` may be called several times at once."""

    def __init__(
        self, sources: Sequence[Source], limits: FetchLimits, on_disk: OnDisk[Written], gate: Gate, traffic: Traffic
    ) -> None:
        self._lanes = [Lane(source, limits, self._unwritten_bytes) for source in sources]
        self._limits, self._on_disk, self._gate, self._traffic = limits, on_disk, gate, traffic
        self._unwritten = 0

    async def run(self, partials: Sequence[Partial], arrived: Arrived) -> None:
        """Returns when nothing is missing; `arrived` gets the bytes of each chunk that is complete.

        Raises FetchError, OSError. What has arrived stays on the disk, however this ends.
        """
        run = _Run(Todo(partials), arrived, self._gate.closed_s)
        try:
            async with asyncio.TaskGroup() as group:
                await self._ask(run, group)
        except BaseExceptionGroup as errors:
            raise _first(errors) from None

    async def _ask(self, run: _Run, group: asyncio.TaskGroup) -> None:
        while await run.todo.more():
            if await self._gate.open():
                run.moved = time.monotonic()
            self._check_deadline(run)
            twin = run.todo.twin()
            if twin is not None:
                await self._copy(run, *twin)
                continue
            lane = await self._lane(run)
            await lane.pause()
            await lane.admit()
            await self._send(run, lane, group)

    async def _send(self, run: _Run, lane: Lane, group: asyncio.TaskGroup) -> None:
        """Uses the lane's turn for the next block, or gives it back."""
        if run.todo.changed_from(lane.name):
            lane.leave()
            return
        block = run.todo.take(lane.window.block)
        try:
            limited = await self._gate.admit(block.size)
        except BaseException:
            lane.leave()
            raise
        flight = lane.sent(block.size, limited=limited or run.todo.short)
        task = group.create_task(self._block(run, lane, block, flight), name=f"block-{block.start}")
        task.add_done_callback(lambda _: lane.settle(flight))

    async def _block(self, run: _Run, lane: Lane, block: Block, flight: Flight) -> None:
        """Asks for it once; what did not come, or came wrong, is put back to be asked for again."""
        try:
            data = await self._read(run, lane, block, flight)
            if data is not None:
                await self._keep(run, lane, block, data)
        finally:
            run.todo.ended(block)

    async def _read(self, run: _Run, lane: Lane, block: Block, flight: Flight) -> bytes | None:
        """The bytes; None when they did not come. Raises FetchError when it is hopeless to ask on."""
        partial = block.partial
        try:
            data = await lane.read(flight, partial.plan.sha256, block.start, block.size)
        except Refused as error:
            if error.key != "busy":
                run.todo.refuse(lane.name, partial, error)
                run.todo.again(block)
                return None
        except (LinkDown, LinkTimeout):
            pass
        except LinkError:
            return b""  # not what was asked for: as wrong as wrong bytes
        else:
            self._traffic.add(lane.name, len(data))
            return data
        lane.failed()
        run.todo.again(block)
        self._check_moving(run, partial)
        return None

    async def _keep(self, run: _Run, lane: Lane, block: Block, data: bytes) -> None:
        """Writes the block and looks at the chunks that are complete with it."""
        partial = block.partial
        if len(data) != block.size:
            index = partial.index(block.start)
            run.todo.again(Block(partial, max(block.start, partial.chunk(index)[1]), block.stop))
            self._wrong(run, lane, partial, [index], len(data))
            return
        self._unwritten += len(data)
        try:
            sync_every = max(LEAST_SYNC_BYTES, lane.window.size)
            # What has come is kept, also when nobody waits for it any more.
            written = await asyncio.shield(self._on_disk(bind(partial.write, block.start, data, sync_every)))
        finally:
            self._unwritten -= len(data)
            for waiting in self._lanes:
                waiting.next()
        run.moved = time.monotonic()
        if written.wrong:
            self._wrong(run, lane, partial, written.wrong, sum(partial.plan.stretches[i].size for i in written.wrong))
        else:
            lane.good()
        if written.count:
            run.arrived(written.count)

    def _wrong(self, run: _Run, lane: Lane, partial: Partial, chunks: Sequence[int], wasted: int) -> None:
        """Others are asked first from now on; each chunk is asked for by itself, so that the blame is exact."""
        self._traffic.add("wasted", wasted)
        lane.wrong(partial.plan.sha256)
        for index in chunks:
            run.todo.strike(lane.name, partial, index)

    async def _copy(self, run: _Run, source: Partial, index: int, target: Partial, at: int) -> None:
        """A chunk that is wanted twice comes once."""
        start, _ = target.chunk(at)
        written = await self._on_disk(lambda: target.write(start, source.read(index), LEAST_SYNC_BYTES))
        if written.wrong:
            run.todo.not_twins(target.plan.stretches[at].sha256)
            return
        self._traffic.add("reused", written.count)
        run.arrived(written.count)

    async def _lane(self, run: _Run) -> Lane:
        """The best source for what is next. Raises FetchError where none is left, or none can be reached."""
        while True:
            able = [lane for lane in self._lanes if not run.todo.excludes(lane.name)]
            if not able:
                raise run.todo.hopeless()
            near = [lane for lane in able if lane.connected is None or lane.connected.is_set()]
            if near:
                return min(near, key=lambda lane: (lane.resting, run.todo.strikes(lane.name)))
            await self._online(able[0], run)

    async def _online(self, lane: Lane, run: _Run) -> None:
        """Waits for the link; that time does not count as a stall. Raises FetchError (offline)."""
        if lane.connected is None:
            return
        try:
            async with asyncio.timeout(self._limits.offline_s):
                await lane.connected.wait()
        except TimeoutError as error:
            raise self._offline(run) from error
        run.moved = run.online = time.monotonic()

    def _check_moving(self, run: _Run, partial: Partial) -> None:
        now = time.monotonic()
        if all(lane.offline for lane in self._lanes):
            if now - run.online > self._limits.offline_s:
                raise self._offline(run)
            run.moved = now
            return
        run.online = now
        if now - run.moved > self._limits.stall_s:
            text = f"{partial.plan.name}: nothing arrived for {self._limits.stall_s} s; what has arrived is kept"
            raise FetchError(text, "stalled")

    def _offline(self, run: _Run) -> FetchError:
        text = f"{run.todo.name}: no connection for {self._limits.offline_s} s; what has arrived is kept"
        return FetchError(text, "offline")

    def _check_deadline(self, run: _Run) -> None:
        """The time outside the allowed hours is not held against the download."""
        took = time.monotonic() - run.began - (self._gate.closed_s - run.closed_s)
        if took > self._limits.deadline_s:
            text = f"{run.todo.name}: not here after {self._limits.deadline_s} s; what has arrived is kept"
            raise FetchError(text, "deadline")

    def _unwritten_bytes(self) -> int:
        return self._unwritten


class _Run:
    """What one call of `run` remembers. Times are of the monotonic clock."""

    def __init__(self, todo: Todo, arrived: Arrived, closed_s: float) -> None:
        self.todo, self.arrived, self.closed_s = todo, arrived, closed_s
        self.began = self.moved = self.online = time.monotonic()


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """What ended the run: the first error of its tasks."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
