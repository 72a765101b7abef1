"""The agent's side of the process that forks workers: starts it when the first worker is wanted, asks it for each.

A worker that cannot be forked is started as a program of its own, see `agent.sandbox.host`: every failure here is a
NoFork, never the module's. When the zygote dies its workers die with it, and are started again like any others; after
MAX_DEATHS it is not tried any more. Made by `agent.runtimes.process`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from agent.errors import AgentError
from agent.sandbox import birth
from agent.sandbox.birth import Answer, Born, Ended, Fork, NotBorn, Ready, Reap
from agent.sandbox.ending import readable
from agent.sandbox.environment import worker_environment
from agent.sandbox.namespaces import Namespaces, NoNamespaces
from modules.errors import MALFORMED

READY_DEADLINE_S = 60.0  # a cold disk, a small processor: the libraries are a hundred megabytes
FORK_DEADLINE_S = 15.0
TOLD_DEADLINE_S = 5.0  # from a worker's end to its exit code
MAX_DEATHS = 3
ZYGOTE = (sys.executable, "-P", "-m", "agent.sandbox.zygote")

_logger = logging.getLogger(__name__)


class NoFork(AgentError):
    """No worker can be forked, now or ever; the message says why."""

    key = "no-fork"


class Forked:
    """A worker that was forked: what `host` needs to know of it. Its number is nobody else's until `release`."""

    def __init__(self, pid: int, handle: int, zygote: _Zygote, namespaces: Namespaces | None) -> None:
        self.pid = pid
        self._handle = handle
        self._zygote = zygote
        self._namespaces = namespaces

    @property
    def companions(self) -> tuple[int, ...]:
        """Processes that are there for it alone."""
        return (self._namespaces.pid,) if self._namespaces is not None else ()

    async def ended(self) -> int:
        """The exit code, as `subprocess` has it. SIGKILL where nobody is left to tell: its parent died before it."""
        await readable(self._handle)
        os.close(self._handle)
        if self._namespaces is not None:
            await self._namespaces.close()
        return await self._zygote.code(self.pid)

    def release(self) -> None:
        self._zygote.release(self.pid)


@dataclass
class _Zygote:
    """One process, and what it has not said yet."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    asked: deque[asyncio.Future[tuple[Answer, int]]] = field(default_factory=deque)
    codes: dict[int, asyncio.Future[int]] = field(default_factory=dict)
    dead: bool = False

    def ask(self, order: Fork | None, files: Sequence[int] = ()) -> asyncio.Future[tuple[Answer, int]]:
        """The answer and the file that came with it (-1: none). None asks nothing, and waits for the first word."""
        answer: asyncio.Future[tuple[Answer, int]] = asyncio.get_running_loop().create_future()
        self.asked.append(answer)
        if order is not None:
            socket.send_fds(self.control, [birth.encode(order)], files)
        return answer

    def hear(self) -> None:
        """Called when there is something to read."""
        try:
            data, files, _, _ = socket.recv_fds(self.control, birth.MAX_BYTES, 1)
            if not data:
                raise OSError("it has ended")
            self._take(birth.answers.decode(data), files)
        except BlockingIOError:
            return
        except (OSError, *MALFORMED) as error:
            self.end(str(error))

    def _take(self, answer: Answer, files: list[int]) -> None:
        if isinstance(answer, Ended):
            if (code := self.codes.get(answer.pid)) is not None and not code.done():
                code.set_result(answer.code)
            return
        asked = self.asked.popleft() if self.asked else None
        if isinstance(answer, Born):
            self.codes[answer.pid] = asyncio.get_running_loop().create_future()
        if asked is not None and not asked.done():
            asked.set_result((answer, files[0] if files else -1))
            return
        for handle in files:
            os.close(handle)
        if isinstance(answer, Born):  # nobody waits for it any more
            with contextlib.suppress(ProcessLookupError):
                os.killpg(answer.pid, signal.SIGKILL)
            self.release(answer.pid)

    async def code(self, pid: int) -> int:
        told = self.codes.get(pid)
        try:
            async with asyncio.timeout(TOLD_DEADLINE_S):
                return await told if told is not None else -signal.SIGKILL
        except TimeoutError:
            return -signal.SIGKILL

    def release(self, pid: int) -> None:
        self.codes.pop(pid, None)
        with contextlib.suppress(OSError):
            self.control.send(birth.encode(Reap(pid)))

    def end(self, why: str) -> None:
        """Kills it, and with it its workers. Idempotent."""
        if self.dead:
            return
        self.dead = True
        asyncio.get_running_loop().remove_reader(self.control)
        self.control.close()
        self.process.kill()
        self.process.wait()
        for asked in self.asked:
            if not asked.done():
                asked.set_exception(NoFork(f"the process that forks workers is gone: {why}"))
        for code in self.codes.values():
            if not code.done():
                code.set_result(-signal.SIGKILL)


class Nursery:
    """`fork` starts the zygote where there is none. `close` ends it."""

    def __init__(self, program: tuple[str, ...] = ZYGOTE) -> None:
        """Only tests give another `program`."""
        self._program = program
        self._zygote: _Zygote | None = None
        self._starting = asyncio.Lock()
        self._deaths = 0
        self._off = ""
        self._flat = ""  # why no worker can be forked into namespaces

    @property
    def pid(self) -> int:
        """Of the zygote; 0 while there is none."""
        return self._zygote.process.pid if self._zygote is not None and not self._zygote.dead else 0

    async def fork(self, files: Sequence[int], wrapper: tuple[str, ...] = ()) -> Forked:
        """A worker that has `files` by the same numbers, in the namespaces that `wrapper` makes. Raises NoFork.

        The first of the files is its channel, the second takes what it prints.
        """
        if wrapper and self._flat:
            raise NoFork(self._flat)
        zygote = await self._ready()
        namespaces = await self._namespaces(wrapper) if wrapper else None
        try:
            return await self._asked(zygote, files, namespaces)
        except BaseException:
            if namespaces is not None:
                await namespaces.close()
            raise

    async def _asked(self, zygote: _Zygote, files: Sequence[int], namespaces: Namespaces | None) -> Forked:
        order = Fork(tuple(files), namespaces is not None)
        more = (namespaces.inside,) if namespaces is not None else ()
        try:
            async with asyncio.timeout(FORK_DEADLINE_S):
                answer, handle = await zygote.ask(order, (*files, *more))
        except (OSError, TimeoutError) as error:
            why = str(error) or "no answer in time"
            zygote.end(why)
            raise NoFork(f"the process that forks workers: {why}") from error
        if isinstance(answer, Born) and handle >= 0:
            return Forked(answer.pid, handle, zygote, namespaces)
        why = answer.why if isinstance(answer, NotBorn) else f"it said {type(answer).__name__}"
        if namespaces is not None:
            self._stay_flat(why)
        raise NoFork(why)

    async def _namespaces(self, wrapper: tuple[str, ...]) -> Namespaces:
        try:
            return await Namespaces.open(wrapper)
        except NoNamespaces as error:
            self._stay_flat(str(error))
            raise NoFork(str(error)) from error

    def _stay_flat(self, why: str) -> None:
        """Whatever keeps a worker out of namespaces now will do so the next time."""
        self._flat = f"no worker can be forked into namespaces: {why}"
        _logger.warning("workers in namespaces are started one by one", extra={"why": why})

    async def _ready(self) -> _Zygote:
        async with self._starting:
            if self._off:
                raise NoFork(self._off)
            if self._zygote is not None and not self._zygote.dead:
                return self._zygote
            if self._zygote is not None:
                self._deaths += 1
                _logger.warning("the process that forks workers died", extra={"deaths": self._deaths})
            if self._deaths >= MAX_DEATHS:
                self._give_up(f"the process that forks workers died {self._deaths} times")
            self._zygote = await self._start()
            return self._zygote

    async def _start(self) -> _Zygote:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - a vfork takes a millisecond; no thread, no child watcher
                [*self._program, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=worker_environment(os.environ),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            self._give_up(f"cannot start a process: {error}")
        finally:
            theirs.close()
        zygote = _Zygote(process, ours)
        asyncio.get_running_loop().add_reader(ours, zygote.hear)
        try:
            async with asyncio.timeout(READY_DEADLINE_S):
                ready, _ = await zygote.ask(None)
        except BaseException as error:
            zygote.end("it did not become ready")
            if isinstance(error, TimeoutError | NoFork):
                self._give_up(f"the process that forks workers did not become ready: {error}")
            raise
        if not isinstance(ready, Ready) or ready.refused:
            zygote.end("refused")
            self._give_up(ready.refused if isinstance(ready, Ready) else f"it said {type(ready).__name__} first")
        return zygote

    def _give_up(self, why: str) -> NoReturn:
        self._off = why
        _logger.warning("workers are started one by one", extra={"why": why})
        raise NoFork(why)

    def close(self) -> None:
        """What it has forked ends with it."""
        if self._zygote is not None:
            self._zygote.end("the agent stops")
        self._off = "the agent stops"
