"""The parent's end of a worker's sources: what it may have of the device comes through here, and is checked here.

One worker of a module at a time has the turn: the next one's sources begin when the one before has gone, so that no
file is taken by both. A worker that breaks the form of an ask loses its door, and with it its turn. Made by
`agent.runtimes.process` for modules with sources.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from agent.files import write_durably
from agent.sources.memory import Memory, MemoryFull
from agent.sources.talk import (
    LENGTH,
    MAX_ASK_BYTES,
    MAX_FILES,
    MAX_RESULT_BYTES,
    VIDEO_RESULT,
    Answer,
    Ask,
    Begin,
    Claim,
    Dial,
    Note,
    Write,
    asks,
    framed,
    is_name,
)
from modules.errors import MALFORMED
from modules.sources import Directory, Mqtt, Source, Video

DIAL_DEADLINE_S = 5.0
DIAL_PAUSE_S = 0.1  # a worker that does nothing but dial must not keep the agent busy
ANSWER_DEADLINE_S = 10.0

_logger = logging.getLogger(__name__)


class Doors:
    """Of all workers. `root` is the folder of what is remembered."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._turns: dict[str, Door] = {}
        self._doors: set[Door] = set()
        self._memories: dict[tuple[str, str], Memory] = {}

    def open(self, module: str, sources: Sequence[Source]) -> Door:
        """A door for a new worker, with nothing behind it where there are no sources. Its handles are to be inherited
        by the worker, and then closed here (`given`).
        """
        door = Door(self, module, tuple(sources))
        if sources:
            self._doors.add(door)
            door.open()
        return door

    def turn(self, door: Door) -> bool:
        """Whether it is this worker's turn; it keeps it until its door is closed."""
        return self._turns.setdefault(door.module, door) is door

    def gone(self, door: Door) -> None:
        self._doors.discard(door)
        if self._turns.get(door.module) is door:
            del self._turns[door.module]

    def memory(self, module: str, folder: str) -> Memory:
        """Blocking, the first time. Raises OSError."""
        key = (module, folder)
        if key not in self._memories:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            log = self._root / f"{module}-{sha256(folder.encode()).hexdigest()[:16]}.jsonl"
            self._memories[key] = Memory(log, Path(folder))
        return self._memories[key]

    def close(self) -> None:
        for door in list(self._doors):
            door.close()


class Door:
    """Of one worker. Open until the worker's end of the socket is closed, or `close`."""

    def __init__(self, doors: Doors, module: str, sources: tuple[Source, ...]) -> None:
        self.module = module
        self.handle = -1  # the worker's end, by its number
        self._doors = doors
        self._sources = sources
        self._task: asyncio.Task[None] | None = None
        self._theirs: socket.socket | None = None

    @property
    def handles(self) -> tuple[int, ...]:
        """To be inherited by the worker."""
        return (self.handle,) if self._theirs is not None else ()

    def open(self) -> None:
        ours, self._theirs = socket.socketpair()
        self.handle = self._theirs.fileno()
        ours.setblocking(False)
        self._task = asyncio.create_task(self._serve(ours), name=f"sources-{self.module}")
        self._task.add_done_callback(lambda task: self._ended(task, ours))  # also where it never began

    def given(self) -> None:
        """The worker has its end now, or there is none; ours of it is closed."""
        if self._theirs is not None:
            self._theirs.close()
            self._theirs = None

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _ended(self, task: asyncio.Task[None], ours: socket.socket) -> None:
        ours.close()
        self.given()
        self._doors.gone(self)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("the door of a worker's sources broke", extra={"unit": self.module}, exc_info=error)

    async def _serve(self, ours: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                ask = await _next(ours)
            except (EOFError, ConnectionError):
                return
            except MALFORMED as error:
                _logger.error(
                    "a worker's source asked for what is none", extra={"unit": self.module, "why": str(error)}
                )
                return
            answer, connection = await self._answered(ask)
            try:
                async with asyncio.timeout(ANSWER_DEADLINE_S):
                    if connection is None:
                        await loop.sock_sendall(ours, framed(answer))
                    else:
                        socket.send_fds(ours, [framed(answer)], [connection.fileno()])
            except OSError:  # the deadline, too: it does not read, or is gone
                return
            finally:
                if connection is not None:
                    connection.close()

    async def _answered(self, ask: Ask) -> tuple[Answer, socket.socket | None]:
        if isinstance(ask, Begin):
            return Answer("" if self._doors.turn(self) else "another worker of the module is at it"), None
        if not self._doors.turn(self):
            return Answer("it is not this worker's turn"), None
        source = self._sources[ask.source] if 0 <= ask.source < len(self._sources) else None
        try:
            if isinstance(ask, Dial):
                return await self._dialled(source)
            return await asyncio.to_thread(self._done, ask, source), None
        except (OSError, MemoryFull) as error:
            return Answer(str(error)[:500] or type(error).__name__), None

    async def _dialled(self, source: Source | None) -> tuple[Answer, socket.socket | None]:
        if not isinstance(source, Mqtt):
            return Answer("expected a source with a broker"), None
        await asyncio.sleep(DIAL_PAUSE_S)
        host, _, port = source.broker.rpartition(":")
        async with asyncio.timeout(DIAL_DEADLINE_S):
            return Answer(), await _connected(host, int(port))

    def _done(self, ask: Claim | Note | Write, source: Source | None) -> Answer:
        """In a thread."""
        if isinstance(ask, Write):
            return _written(ask, source)
        if not isinstance(source, Directory) or len(ask.files) > MAX_FILES:
            return Answer("expected files of a folder")
        memory = self._doors.memory(self.module, source.path)
        if isinstance(ask, Claim):
            return Answer(fresh=memory.fresh(ask.files))
        # Only what is there is remembered: a worker's words alone must not fill the agent's memory.
        memory.note(file for file in ask.files if _is_there(source, file.name))
        return Answer()


async def _next(ours: socket.socket) -> Ask:
    """Raises EOFError, ConnectionError; MALFORMED for what is no ask."""
    (length,) = LENGTH.unpack(await _exactly(ours, LENGTH.size))
    if length > MAX_ASK_BYTES:
        raise EOFError
    return asks.decode(await _exactly(ours, length))


async def _exactly(ours: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < size:
        part = await loop.sock_recv(ours, min(size - len(data), 65_536))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _written(ask: Write, source: Source | None) -> Answer:
    if not isinstance(source, Directory | Video) or not source.results:
        return Answer("expected a source with a folder for results")
    if not is_name(ask.name) or len(ask.data) > MAX_RESULT_BYTES:
        return Answer(f"expected a file's name and at most {MAX_RESULT_BYTES} bytes")
    stem, _, suffix = ask.name.rpartition(".")
    # As many results as there are files, or a ring of them: whatever a worker says, the disk does not fill.
    known = _is_there(source, stem) if isinstance(source, Directory) else bool(VIDEO_RESULT.fullmatch(stem))
    if suffix != "json" or not known:
        return Answer("expected the name of a file that is there, or of a frame, and .json")
    write_durably(Path(source.results) / ask.name, ask.data, mode=0o644)
    return Answer()


def _is_there(source: Directory, name: str) -> bool:
    """Whether it is a plain file of the folder."""
    try:
        return is_name(name) and stat.S_ISREG((Path(source.path) / name).lstat().st_mode)
    except OSError:
        return False


async def _connected(host: str, port: int) -> socket.socket:
    """Raises OSError."""
    loop = asyncio.get_running_loop()
    last = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        made = socket.socket(family, kind, protocol)
        try:
            made.setblocking(False)
            await loop.sock_connect(made, address)
            with suppress(OSError):
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            os.set_inheritable(made.fileno(), False)
        except BaseException as error:
            made.close()
            if not isinstance(error, OSError):
                raise
            last = error
        else:
            return made
    raise last
