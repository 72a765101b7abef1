"""The agent's side of the child that talks to the engine: started on first use, started again when it has ended.

Every ask has a deadline; a child that misses one is killed, and what it ran is found again by its label. Made by
`agent.containers.runtime`; the other side is `agent.containers.engine`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import TypeVar

import msgspec

from agent.containers.protocol import LENGTH, MAX_FRAME_BYTES, Answer, Ask, Failed, Order, Reply, frame
from agent.errors import WorkerError
from agent.sandbox.ending import in_words, reap
from modules.errors import MALFORMED

ENGINE = (sys.executable, "-P", "-m", "agent.containers.engine")
CLOSE_S = 5.0  # for the child to end what it has started
# As the SDK wants it, beside what every program needs. Nothing secret.
_INHERITED = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY")
_Answer = TypeVar("_Answer", bound=Answer)


class EngineError(WorkerError):
    """The container engine did not do what it was asked. Keys: engine-absent, engine-unreachable, engine-refused,
    engine-timeout, image-refused, image-damaged.
    """


class EngineClient:
    """One engine by its address. `close` ends the child and what it has started."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._starting = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._number = 0

    async def ask(self, order: Order, expected: type[_Answer], deadline_s: float) -> _Answer:
        """Raises EngineError."""
        try:
            async with asyncio.timeout(deadline_s):
                answer = await self._asked(order)
        except TimeoutError:
            self._kill()
            text = f"container engine {self._address}: no answer to {type(order).__name__} within {deadline_s:g} s"
            raise EngineError(text, "engine-timeout") from None
        if isinstance(answer, Failed):
            raise EngineError(answer.text, answer.key)
        if not isinstance(answer, expected):
            self._kill()
            raise EngineError(f"container engine: expected {expected.__name__}, got {type(answer).__name__}", "engine")
        return answer

    async def close(self) -> None:
        """Ends the child, which ends its containers first."""
        async with self._starting:
            process, reading = self._process, self._reading
            if process is None or reading is None:
                return
            if self._writer is not None:
                self._writer.write_eof()
            done, _ = await asyncio.wait([reading], timeout=CLOSE_S)
            if not done:
                self._kill()
                await asyncio.wait([reading])
            self._process = None

    async def _asked(self, order: Order) -> Answer:
        writer = await self._started()
        self._number += 1
        number = self._number
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            writer.write(frame(Ask(number, order)))
            await writer.drain()
            answer: Answer = await future
            return answer
        except OSError as error:
            raise EngineError(f"container engine: its child is gone ({error})", "engine-unreachable") from error
        finally:
            self._waiting.pop(number, None)

    async def _started(self) -> asyncio.StreamWriter:
        async with self._starting:
            if self._writer is not None and self._reading is not None and not self._reading.done():
                return self._writer
            if not self._address:
                raise EngineError("this device runs no containers: containers.engine is empty", "engine-absent")
            ours, theirs = socket.socketpair()
            try:
                process = subprocess.Popen(  # noqa: ASYNC220 - a vfork takes a millisecond
                    [*ENGINE, str(theirs.fileno()), self._address],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={name: value for name, value in os.environ.items() if name in _INHERITED},
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise EngineError(f"container engine: no child for it: {error}", "spawn-failed") from error
            finally:
                theirs.close()
            ours.setblocking(False)
            reader, self._writer = await asyncio.open_connection(sock=ours)
            self._process = process
            self._reading = asyncio.create_task(self._read(reader, self._writer, process), name="engine-child")
            return self._writer

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, process: subprocess.Popen[bytes]
    ) -> None:
        """From start to reaped. Who still waits then hears of it."""
        words = "its child has hung up"
        try:
            while True:
                (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                if length > MAX_FRAME_BYTES:
                    break
                reply = msgspec.msgpack.decode(await reader.readexactly(length), type=Reply)
                future = self._waiting.get(reply.number)
                if future is not None and not future.done():
                    future.set_result(reply.answer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        except MALFORMED as error:
            words = f"its child speaks out of turn: {error}"
        finally:
            writer.close()
            code = await self._ended(process)
            key = "engine-absent" if code == 1 else "engine-unreachable"
            text = f"container engine: {words} ({in_words(code)}; 1 is for a missing package: docker)"
            for future in self._waiting.values():
                if not future.done():
                    future.set_result(Failed(key, text))

    async def _ended(self, process: subprocess.Popen[bytes]) -> int:
        """It has CLOSE_S to end its containers, then it is killed."""
        try:
            async with asyncio.timeout(CLOSE_S):
                return await reap(process)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return await reap(process)

    def _kill(self) -> None:
        if self._process is not None and self._reading is not None and not self._reading.done():  # not reaped yet
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
