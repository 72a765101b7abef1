"""The agent's side of one worker process: spawn it, talk to it over its socket pair, end it.

Every order has a deadline. Any surprise (a frame that is none, an answer nobody asked for, a deadline missed) kills
the whole process group: a worker is cheap to start again, a confused one is not worth saving. Made by
`agent.runtimes.process`, kept by `agent.runtimes.keeper`; the other side is `agent.sandbox.worker`. Every WorkerError
carries the worker's own key (load-failed, golden-mismatch, ...) or worker-timeout, worker-exited, out-of-memory,
spawn-failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from agent.errors import WorkerError
from agent.rings import RingFile
from agent.sandbox.blackbox import BlackBox
from agent.sandbox.body import Body, ProcessBody
from agent.sandbox.cage import NO_CAGE, Cage
from agent.sandbox.cgroup import CgroupError
from agent.sandbox.ending import Child, Spawned, in_words
from agent.sandbox.environment import worker_environment
from agent.sandbox.log import LogPipe, RotatingLog
from agent.sandbox.nursery import NoFork, Nursery
from agent.sandbox.protocol import (
    Asked,
    AskedDone,
    BlobTaken,
    Broken,
    Drain,
    Drained,
    FrameError,
    Hold,
    Notice,
    Order,
    Passed,
    Ping,
    Pong,
    Ready,
    SampleTaken,
    SelfTest,
    Serve,
    Serving,
    SetPolicy,
    Start,
    Stats,
    Stop,
    WindowClosed,
    frame,
    read_notice,
)
from modules.commands import AskSamples
from modules.manifest import Resources, SamplingPolicy
from modules.messages import Stream

SERVE_DEADLINE_S = 10.0
SELF_TEST_DEADLINE_S = 60.0
ASK_DEADLINE_S = 60.0  # it ends by itself long before
# What the interpreter, C++ and the runtimes say when they get no memory.
_NO_MEMORY = (
    "MemoryError",
    "std::bad_alloc",
    "Cannot allocate memory",
    "CUDA out of memory",
    "Failed to allocate memory",
)
MAX_WORDS = 500  # of what a worker says about itself: it goes into the device's report
MAX_KEY = 64
MAX_STAGES_BYTES = 4096  # the same, as values
LAST_WORDS_S = 1.0  # somebody else may hold the pipe open
EXIT_DEADLINE_S = 5.0  # from SIGKILL to reaped; only a process stuck in the kernel takes longer

# No current folder on the import path: it may be a module's.
WORKER = (sys.executable, "-P", "-m", "agent.sandbox.worker")

OnItem = Callable[[Stream, bytes], object]  # must not block and not raise: Outbox.offer
_logger = logging.getLogger(__name__)
_Reply = TypeVar("_Reply", bound=Notice)


class WorkerEnded(WorkerError):
    """A worker that ended by itself, with what is known of its end. `request` is what was under way, where recorded."""

    def __init__(self, text: str, key: str, worker: WorkerProcess, memory: str) -> None:
        super().__init__(text, key)
        self.exit_code = worker.exit_code
        self.lines = tuple(worker.last_lines())
        self.request = worker.under_way
        self.memory = memory


class WorkerProcess:
    """One worker. `exited` is set once its body is gone and reaped; then `exit_code` says how."""

    def __init__(self, name: str, body: Body, channel: socket.socket, on_item: OnItem) -> None:
        self.name = name
        self.pid = body.pid
        self.exit_code: int | None = None
        self.exited = asyncio.Event()
        self.ready: Ready | None = None
        self.output: LogPipe | None = None
        self.box: BlackBox | None = None
        self.ring: RingFile | None = None
        self.under_way = ""  # the prediction that it ended in, where that was recorded
        self.resources = Resources()  # what it may take; the runtime says another
        self._body = body
        self._channel = channel
        self._on_item = on_item
        self._expected: deque[tuple[type[object], asyncio.Future[Notice]]] = deque()
        self._fault = ""
        self._writer: asyncio.StreamWriter | None = None
        self._opened = asyncio.Event()
        self._watching = asyncio.create_task(self._watch(), name=f"worker-{name}-{body.pid}")

    async def start(self, order: Start, deadline_s: float) -> Ready:
        """Load. Raises WorkerError."""
        said = await self._ask(order, Ready, deadline_s)
        self.ready = msgspec.structs.replace(
            said,
            confinement=said.confinement[:MAX_WORDS],
            execution=said.execution[:MAX_WORDS],
            stages=said.stages if len(msgspec.msgpack.encode(said.stages)) <= MAX_STAGES_BYTES else (),
        )
        return self.ready

    async def self_test(self, deadline_s: float = SELF_TEST_DEADLINE_S) -> Passed:
        """The golden cases. Raises WorkerError."""
        return await self._ask(SelfTest(), Passed, deadline_s)

    async def serve(self) -> None:
        """Accept connections. Raises WorkerError."""
        await self._ask(Serve(), Serving, SERVE_DEADLINE_S)

    async def drain(self, deadline_s: float) -> Drained:
        """Finish what is under way; cut it off after `deadline_s`. Raises WorkerError."""
        return await self._ask(Drain(deadline_s), Drained, deadline_s + SERVE_DEADLINE_S)

    async def ping(self, deadline_s: float) -> Stats:
        """Raises WorkerError, also when the answer does not come in time (the worker is then killed)."""
        return (await self._ask(Ping(), Pong, deadline_s)).stats

    async def set_policy(self, sampling: SamplingPolicy) -> None:
        """From the next prediction on; not answered. Raises WorkerError."""
        if self.ring is not None and not self.exited.is_set():
            self.ring.grow(sampling)
        try:
            await self._send(SetPolicy(sampling), SERVE_DEADLINE_S)
        except TimeoutError:
            self._kill()
            text = f"worker of {self.name}: it took no order within {SERVE_DEADLINE_S:g} s; it was killed"
            raise WorkerError(text, "worker-timeout") from None

    async def hold(self, requests: bool, sources: bool) -> None:
        """What the module does not do for now; not answered. Raises WorkerError."""
        try:
            await self._send(Hold(requests, sources), SERVE_DEADLINE_S)
        except TimeoutError:
            self._kill()
            text = f"worker of {self.name}: it took no order within {SERVE_DEADLINE_S:g} s; it was killed"
            raise WorkerError(text, "worker-timeout") from None

    async def ask_samples(self, id_: str, asked: AskSamples) -> AskedDone:
        """Rows of its ring, as samples that have come before this returns. Raises WorkerError."""
        return await self._ask(Asked(id_, asked), AskedDone, ASK_DEADLINE_S)

    def cap(self, percent: int) -> None:
        """What it may take of the processors, where that can be set (100: one of them, 0: no limit)."""
        self._body.cap(percent)

    def lend(self, ring: RingFile | None) -> None:
        """The file of its last predictions, which is free for others at its end."""
        self.ring = ring
        if ring is not None and self.exited.is_set():
            ring.close()

    def keep(self, box: BlackBox | None) -> None:
        """The page that it writes on, to be read at its end."""
        self.box = box
        if box is not None and self.exited.is_set():
            box.close()

    def weigh(self, weight: int) -> None:
        """Its share of the processors, where that can be set."""
        self._body.weigh(weight)

    async def stop(self, deadline_s: float) -> None:
        """End it: asked politely, then killed. Returns once it is reaped; never raises for a worker that is gone."""
        try:
            with contextlib.suppress(WorkerError, TimeoutError):
                await self._send(Stop(), deadline_s)
                async with asyncio.timeout(deadline_s):
                    await self.exited.wait()
        finally:
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL to the process group, and reap."""
        self._kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_DEADLINE_S):
                await asyncio.shield(self._watching)

    async def _ask(self, order: Order, expected: type[_Reply], deadline_s: float) -> _Reply:
        answer: asyncio.Future[Notice] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(deadline_s):
                await self._opened.wait()
                self._expected.append((expected, answer))
                await self._send(order, deadline_s)
                notice = await answer
        except TimeoutError:
            self._kill()
            text = (
                f"worker of {self.name}: expected {expected.__name__} within {deadline_s:g} s, got none; it was killed"
            )
            raise WorkerError(text, "worker-timeout") from None
        finally:
            answer.cancel()  # nobody waits any more
        if isinstance(notice, Broken):
            notice = Broken(notice.key[:MAX_KEY], notice.text[: 2 * MAX_WORDS])
            raise WorkerError(f"worker of {self.name}: {notice.text}", notice.key)
        assert isinstance(notice, expected)  # noqa: S101 - _take lets nothing else through
        return notice

    async def _send(self, order: Order, deadline_s: float) -> None:
        if self._writer is None or self.exited.is_set():
            raise self._gone()
        try:
            async with asyncio.timeout(deadline_s):
                self._writer.write(frame(order))
                await self._writer.drain()
        except TimeoutError:
            raise  # an OSError by birth, but a deadline by meaning
        except OSError:  # the channel goes first; how it ended is known a little later
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_DEADLINE_S):
                    await self.exited.wait()
            raise self._gone() from None

    async def _watch(self) -> None:
        """The channel's reader from spawn to reaped; whatever ends it ends the worker."""
        reader, self._writer = await asyncio.open_connection(sock=self._channel)
        self._opened.set()
        try:
            while True:
                self._take(await read_notice(reader))
        except FrameError as error:
            self._fault = f" after it spoke out of turn ({error})"
        except (asyncio.IncompleteReadError, OSError):
            pass  # it ended, or is about to
        finally:
            self._kill()
            self.exit_code = await self._body.ended()
            await self._hear_out()
            if self.box is not None:
                self.under_way = self.box.read()
                self.box.close()
            if self.ring is not None:
                self.ring.close()
            self.exited.set()
            self._writer.close()
            for _, answer in self._expected:
                if not answer.done():
                    answer.set_exception(self._gone())

    async def _hear_out(self) -> None:
        """What it said last is still in the pipe."""
        if self.output is not None:
            self.output.finish()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self.output.ended.wait()

    def _take(self, notice: Notice) -> None:
        if isinstance(notice, WindowClosed):
            self._on_item("window", notice.window)
        elif isinstance(notice, SampleTaken):
            self._on_item("sample", notice.sample)
        elif isinstance(notice, BlobTaken):
            self._on_item("blob", notice.piece)
        elif self._expected and isinstance(notice, (self._expected[0][0], Broken)):
            answer = self._expected.popleft()[1]
            if not answer.done():
                answer.set_result(notice)
        else:
            raise FrameError(f"worker of {self.name}: nobody asked for {type(notice).__name__}")

    def _kill(self) -> None:
        if self.exited.is_set():
            return  # its number may be somebody else's by now
        self._body.kill()

    def _said_out_of_memory(self) -> str:
        """A library that gets no memory ends the process by itself: what it said then, or nothing."""
        lines = self.last_lines() if self.exit_code not in (None, 0, -signal.SIGKILL) else []
        return next((line for line in reversed(lines) if any(word in line for word in _NO_MEMORY)), "")[:MAX_WORDS]

    def last_lines(self) -> list[str]:
        """What it has printed last."""
        tail = self.output.tail if self.output is not None else b""
        return [line.strip() for line in tail.decode(errors="replace").splitlines() if line.strip()]

    def _gone(self) -> WorkerError:
        known = f" ({self._body.memory})" if self._body.memory else ""
        if self._body.out_of_memory:
            text = f"worker of {self.name}: it was killed for want of memory{known}"
            return WorkerEnded(text, "out-of-memory", self, self._body.memory)
        if said := self._said_out_of_memory():
            text = f"worker of {self.name}: it ended with {in_words(self.exit_code)} for want of memory: {said}{known}"
            return WorkerEnded(text, "out-of-memory", self, self._body.memory)
        text = f"worker of {self.name}: it ended with {in_words(self.exit_code)}{self._fault}"
        return WorkerEnded(text, "worker-exited", self, self._body.memory)


async def spawn(
    name: str,
    listen: tuple[int, ...],
    log: Path,
    on_item: OnItem,
    program: tuple[str, ...] = WORKER,
    cage: Cage = NO_CAGE,
    nursery: Nursery | None = None,
) -> WorkerProcess:
    """A fresh worker that waits for its Start; `listen` are the fds it inherits. Raises WorkerError.

    It is forked where there is a `nursery` that can, and else started as `program`, which gets the channel's fd as its
    last argument; only tests give another than ours.
    """
    ours, theirs, out, into = _channels(name)
    try:
        process = await _child(theirs.fileno(), into, listen, program, cage, nursery)
    except OSError as error:
        ours.close()
        os.close(out)
        if cage.cgroup is not None:
            cage.cgroup.remove()
        raise WorkerError(f"worker of {name}: cannot start a process: {error}", "spawn-failed") from error
    except BaseException:
        ours.close()
        os.close(out)
        raise
    finally:
        theirs.close()
        os.close(into)
    with contextlib.suppress(OSError):  # gone already, which the channel will tell
        resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
    ours.setblocking(False)
    worker = WorkerProcess(name, ProcessBody(process, cage), ours, on_item)
    try:
        if cage.cgroup is not None:  # before its Start: nothing of the module's has run yet
            for pid in (process.pid, *process.companions):
                cage.cgroup.admit(pid)
        output = worker.output = LogPipe(RotatingLog(log))
        printed = os.fdopen(out, "rb", buffering=0)
        await asyncio.get_running_loop().connect_read_pipe(lambda: output, printed)
    except CgroupError as error:
        os.close(out)
        await worker.kill()
        raise WorkerError(f"worker of {name}: {error}", "spawn-failed") from error
    except BaseException:
        await worker.kill()  # nobody else knows of it yet
        raise
    return worker


async def _child(
    channel: int, into: int, listen: tuple[int, ...], program: tuple[str, ...], cage: Cage, nursery: Nursery | None
) -> Child:
    """Raises OSError."""
    if nursery is not None and cage.forkable:
        try:
            return await nursery.fork((channel, into, *listen), cage.wrapper)
        except NoFork as error:
            _logger.info("worker started as a program of its own", extra={"why": str(error)})
    process = subprocess.Popen(  # noqa: ASYNC220 - a vfork takes a millisecond; no thread, no child watcher
        [*cage.command, *program, str(channel)],
        stdin=subprocess.DEVNULL,
        stdout=into,
        stderr=into,
        pass_fds=(channel, *listen),
        env=worker_environment(os.environ),
        cwd="/",
        start_new_session=True,
    )
    return Spawned(process)


def _channels(name: str) -> tuple[socket.socket, socket.socket, int, int]:
    """Both ends for orders, and both of the pipe for what it prints. Raises WorkerError."""
    try:
        ours, theirs = socket.socketpair()
        try:
            return ours, theirs, *os.pipe()
        except OSError:
            ours.close()
            theirs.close()
            raise
    except OSError as error:
        raise WorkerError(f"worker of {name}: cannot open a channel to it: {error}", "spawn-failed") from error
