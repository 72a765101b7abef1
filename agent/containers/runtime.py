"""Modules in containers: image loaded, container started, our worker inside reached through its door.

What comes out is a worker like any other: units, hand-over and probation do not know the difference. Called by
`agent.runtimes.process`.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from agent.containers.body import ContainerBody
from agent.containers.client import EngineClient, EngineError
from agent.containers.door import Door
from agent.containers.options import options
from agent.containers.protocol import Load, Loaded, Run, Running, Sweep, Swept
from agent.containers.relayed import start_relay
from agent.containers.settings import ContainerSettings
from agent.errors import WorkerError
from agent.sandbox.body import Body
from agent.sandbox.ending import in_words
from agent.sandbox.host import OnItem, WorkerProcess
from agent.sandbox.log import LogPipe, RotatingLog
from agent.slots import Slot

USER = 60_799  # inside, where the agent is root and gives no users away: just below theirs

_logger = logging.getLogger(__name__)


class Containers:
    """Makes workers in containers. `folder` is the agent's own, for their doors; `close` ends every container."""

    def __init__(self, folder: Path, settings: ContainerSettings, on_item: OnItem) -> None:
        self._folder = folder
        self._settings = settings
        self._on_item = on_item
        self._engine = EngineClient(settings.engine)
        self._owner = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
        self._numbers = itertools.count(1)
        self._running: set[str] = set()
        self._tidying: asyncio.Task[None] | None = None
        self._placed = 0  # images on their way

    async def spawn(
        self,
        slot: Slot,
        uid: int,
        listen: tuple[int, ...],
        log: Path,
        cpus: tuple[int, ...] = (),
        cache: Path | None = None,
    ) -> WorkerProcess:
        """A fresh worker that waits for its Start; `listen` are the descriptors it gets, `cache` a folder that it sees
        where it is here. Raises WorkerError.
        """
        name, user = slot.manifest.name, uid or os.geteuid() or USER
        container = slot.manifest.runtime.container
        if container is not None and container.serves == "http":
            return await self._relayed(slot, user, listen, log, cpus)
        run = self._fresh_name(name)
        door = self._door(name, run, user)
        try:
            async with self._placing():
                image = await self._load(slot)
                asked = options(slot.manifest, image, self._settings, self._owner, user, door.folder, cpus, cache)
                body = await self._run(name, Run(run, asked), door.close)
        except BaseException:
            door.close()
            raise
        output = RotatingLog(log)
        channel, out = await self._admitted(name, body, door, listen, output)
        return await _worker(name, body, channel, out, output, self._on_item)

    async def _relayed(
        self, slot: Slot, user: int, listen: tuple[int, ...], log: Path, cpus: tuple[int, ...]
    ) -> WorkerProcess:
        """An image that serves by itself, behind a relay. The engine hands on what it prints, to the module's log."""
        name = slot.manifest.name
        self._made()
        async with self._placing():
            image = await self._load(slot)
            asked = options(slot.manifest, image, self._settings, self._owner, user, None, cpus)
            body = await self._run(name, Run(self._fresh_name(name), asked, str(log)), _nothing)
        try:
            joined, channel, out = start_relay(name, body, listen)
        except BaseException:
            body.kill()
            await body.ended()
            raise
        return await _worker(name, joined, channel, out, RotatingLog(log), self._on_item)

    def tidy(self, slots: Path) -> None:
        """Begins a `sweep` with the slots that are there; not while an image is on its way into a container."""
        if not self._settings.engine or not self._folder.is_dir():
            return  # nothing was ever run here: no engine is asked
        if not self._placed and (self._tidying is None or self._tidying.done()):
            names = [path.name for path in slots.iterdir()] if slots.is_dir() else []
            self._tidying = asyncio.create_task(self.sweep(names), name="sweep-containers")

    async def sweep(self, slots: Collection[str]) -> None:
        """Removes containers that an agent has left which was killed, and images of all but these slots (names)."""
        order = Sweep(self._owner, tuple(self._running), tuple(map(self._tag, slots)))
        try:
            swept = await self._engine.ask(order, Swept, self._settings.call_s)
        except EngineError as error:
            _logger.warning("containers not swept", extra={"why": str(error), "key": error.key})
            return
        if swept.containers or swept.images:
            _logger.info("swept", extra={"containers": swept.containers, "images": swept.images})

    async def close(self) -> None:
        """Whatever container is left ends."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.wait([self._tidying])
        await self._engine.close()

    @asynccontextmanager
    async def _placing(self) -> AsyncIterator[None]:
        """Inside, no image is removed."""
        self._placed += 1
        try:
            if self._tidying is not None:
                await asyncio.wait([self._tidying])
            yield
        finally:
            self._placed -= 1

    async def _load(self, slot: Slot) -> str:
        order = Load(str(slot.path), slot.manifest_bytes, self._tag(slot.path.name))
        return (await self._engine.ask(order, Loaded, self._settings.load_s)).image

    async def _run(self, name: str, order: Run, gone: Callable[[], None]) -> ContainerBody:
        running = await self._engine.ask(order, Running, self._settings.call_s)
        self._running.add(running.container)

        def removed() -> None:
            self._running.discard(running.container)
            gone()

        return ContainerBody(name, running, self._engine, self._settings.call_s, removed)

    def _made(self) -> None:
        """Closed to everybody else; its being there says that containers have run here. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _door(self, name: str, run: str, user: int) -> Door:
        try:
            self._made()
            return Door(self._folder / run, user)
        except OSError as error:
            raise WorkerError(f"worker of {name}: no way into its container: {error}", "spawn-failed") from error

    async def _admitted(
        self, name: str, body: ContainerBody, door: Door, listen: tuple[int, ...], output: RotatingLog
    ) -> tuple[socket.socket, int]:
        """The channel to the worker once it has come to the door, and the pipe with what it prints."""
        out, into = os.pipe()
        ended = asyncio.create_task(body.ended(), name=f"ended-{name}")
        knock = asyncio.create_task(door.opened(listen, into), name=f"door-{name}")
        try:
            await asyncio.wait({ended, knock}, timeout=self._settings.begin_s, return_when=asyncio.FIRST_COMPLETED)
            if knock.done():
                return knock.result(), out
            if not ended.done():
                text = f"worker of {name}: it did not come to its door within {self._settings.begin_s:g} s"
                raise WorkerError(f"{text}; its container was ended", "worker-timeout")
            output.write(f"{body.last}\n".encode())
            output.close()
            text = f"worker of {name}: its container ended with {in_words(ended.result())} before it came to its door"
            raise WorkerError(text, "out-of-memory" if body.out_of_memory else "worker-exited")
        except BaseException as error:
            os.close(out)
            body.kill()
            await body.ended()
            if isinstance(error, OSError):
                raise WorkerError(f"worker of {name}: its door: {error}", "spawn-failed") from error
            raise
        finally:
            os.close(into)
            for task in (ended, knock):
                task.cancel()

    def _fresh_name(self, name: str) -> str:
        return f"mooring-{self._owner}-{name}-{os.getpid()}-{next(self._numbers)}"

    def _tag(self, slot_name: str) -> str:
        return f"mooring-{self._owner}:{slot_name}"


def _nothing() -> None:
    """There is no door to close."""


async def _worker(
    name: str, body: Body, channel: socket.socket, out: int, output: RotatingLog, on_item: OnItem
) -> WorkerProcess:
    channel.setblocking(False)
    worker = WorkerProcess(name, body, channel, on_item)
    pipe = worker.output = LogPipe(output)
    await asyncio.get_running_loop().connect_read_pipe(lambda: pipe, os.fdopen(out, "rb", buffering=0))
    return worker
