"""The worker process: `python -m agent.sandbox.worker FD`. Reads orders from the inherited socket, answers in order.

This file is the loop and nothing else; what the orders do is `session`'s. It ends with its parent: at the end of the
stream, on Stop, and by the kernel's signal when the parent dies. Started by `agent.sandbox.host`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

from agent.errors import AgentError
from agent.sandbox.confine import die_with_parent, memory_words
from agent.sandbox.protocol import (
    Asked,
    BlobTaken,
    Broken,
    Drain,
    Drained,
    FrameError,
    Hold,
    Notice,
    Order,
    Ping,
    Pong,
    SampleTaken,
    SelfTest,
    Serve,
    Serving,
    SetPolicy,
    Start,
    Stop,
    WindowClosed,
    frame,
    read_order,
)
from modules.errors import ManifestError, ModuleError

if TYPE_CHECKING:
    from agent.sandbox.session import Session

log = logging.getLogger("agent.sandbox.worker")

MAX_UNSENT_SAMPLES = 4 * 1024 * 1024  # bytes the parent has not read yet; beyond, samples are dropped and counted
MAX_UNSENT = 64 * 1024 * 1024  # beyond, windows are too: the parent has been away for very long
REPLY_DEADLINE_S = 60.0
_START_KEYS = frozenset({"confine-failed", "bad-manifest", "format-refused", "out-of-memory"})


class Worker:
    """The loop over orders."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._session: Session | None = None

    async def run(self) -> None:
        """Until Stop or the end of the stream."""
        while True:
            try:
                order = await read_order(self._reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            except FrameError as error:
                log.error("the parent sent what is no order: %s", error)
                return
            if isinstance(order, Stop):
                return
            notice = await self._answered(order)
            if notice is not None:
                self._writer.write(frame(notice))
                async with asyncio.timeout(REPLY_DEADLINE_S):
                    await self._writer.drain()

    async def _answered(self, order: Order) -> Notice | None:
        try:
            return await self._done(order)
        except ManifestError as error:
            return Broken("bad-manifest", str(error))
        except (AgentError, ModuleError) as error:
            if error.key == "out-of-memory" or _memory_ran_out(error):
                return Broken("out-of-memory", f"{error} ({memory_words()})")
            return Broken(_order_key(order, error.key), str(error))
        except MemoryError:
            text = f"{type(order).__name__}: expected the module's memory_mib to be enough ({memory_words()})"
            return Broken("out-of-memory", text)
        except Exception as error:
            log.exception("order %s failed", type(order).__name__)
            return Broken(_order_key(order, "internal"), f"{type(error).__name__}: {error}"[:1000])

    async def _done(self, order: Order) -> Notice | None:
        if isinstance(order, Start):
            if self._session is not None:
                raise AgentError("expected Start once, got it twice", "internal")
            from agent.sandbox.session import Session

            self._session = Session(order, self._send)
            return self._session.ready
        session = self._session
        if session is None:
            raise AgentError(f"expected Start first, got {type(order).__name__}", "internal")
        match order:
            case SelfTest():
                return session.self_test()
            case Serve():
                await session.serve()
                return Serving()
            case Drain(deadline_s=deadline_s):
                return Drained(await session.drain(deadline_s))
            case SetPolicy(sampling=sampling):
                session.set_policy(sampling)
                return None
            case Hold(requests=requests, sources=sources):
                session.hold(requests, sources)
                return None
            case Asked():
                return await session.asked(order)
            case Ping():
                return Pong(session.stats())
            case _:
                raise AgentError(f"expected an order, got {type(order).__name__}", "internal")

    def _send(self, notice: WindowClosed | SampleTaken | BlobTaken) -> bool:
        """Queued for the parent, or False: it does not read, and what was seen must not fill the memory."""
        unsent = self._writer.transport.get_write_buffer_size()
        if unsent > (MAX_UNSENT_SAMPLES if isinstance(notice, SampleTaken) else MAX_UNSENT):
            return False
        try:
            self._writer.write(frame(notice))
        except FrameError as error:
            log.error("a notice is too large: %s", error)
            return False
        return True


def _memory_ran_out(error: BaseException | None) -> bool:
    """Whether that is what lies behind it: scripts and libraries put words of their own around it."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _order_key(order: Order, key: str) -> str:
    """The keys of Broken: what went wrong in a self-test that is no mismatch is a golden that failed."""
    if isinstance(order, SelfTest):
        return key if key in ("golden-mismatch", "out-of-memory") else "golden-failed"
    if isinstance(order, Start):
        return key if key in _START_KEYS else "load-failed"
    return "internal"


async def _run(channel: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=channel)
    await Worker(reader, writer).run()


def quiet_libraries() -> None:
    """Before they are imported: no telemetry, and no threads of theirs from before the confinement."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ["OPENBLAS_NUM_THREADS"] = "1"


def work(channel: int) -> NoReturn:
    """Until Stop or the end of the stream; then the process ends. Called by `agent.sandbox.zygote`, too."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    parent = socket.socket(fileno=channel)
    parent.setblocking(False)
    asyncio.run(_run(parent))
    sys.stderr.flush()
    os._exit(0)  # a module's thread that never ends must not keep the process


def main(arguments: list[str]) -> None:
    die_with_parent(os.getppid())
    quiet_libraries()
    work(int(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
