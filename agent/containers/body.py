"""A container as a worker's body: it is killed by its first process's handle where we may, else by the engine.

The engine tells how it ended and removes it. Made by `agent.containers.runtime` for `agent.sandbox.host`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from agent.containers.client import EngineClient, EngineError
from agent.containers.protocol import End, Ended, Running
from agent.sandbox.ending import readable

_logger = logging.getLogger(__name__)


class ContainerBody:
    """A running container. `gone` is called once, when nothing of it is left."""

    def __init__(
        self, name: str, running: Running, engine: EngineClient, call_s: float, gone: Callable[[], None]
    ) -> None:
        self.pid = running.pid if running.pid > 0 else -1
        self.out_of_memory = False
        self.memory = ""
        self.last = ""  # the end of what it printed, where the engine has it
        self._name = name
        self._container = running.container
        self._engine = engine
        self._call_s = call_s
        self._gone = gone
        self._handle = _opened(running)
        self._killing: asyncio.Task[Ended] | None = None
        self._over = asyncio.create_task(self._watch(), name=f"container-{name}")

    def kill(self) -> None:
        """The first process's end is that of all others in its namespace."""
        if self._over.done():
            return
        try:
            if self._handle >= 0:
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
                return
        except ProcessLookupError:
            return
        except PermissionError:
            pass  # of another user; the engine may
        self._end()

    async def ended(self) -> int:
        return await asyncio.shield(self._over)

    def weigh(self, weight: int) -> None:
        """Its share is fixed when it is made: asking the engine costs more than it would give."""

    def cap(self, percent: int) -> None:
        """As its share: fixed."""

    async def _watch(self) -> int:
        try:
            if self._handle >= 0:
                await readable(self._handle)
            else:  # it ended before we looked, or it is not among this machine's processes
                await asyncio.sleep(0)
            ended = await self._end()
        except EngineError as error:  # what is left is found by its label later
            _logger.warning("container not removed", extra={"unit": self._name, "why": str(error), "key": error.key})
            ended = Ended(128 + signal.SIGKILL, out_of_memory=False)
        finally:
            if self._handle >= 0:
                os.close(self._handle)
            self._gone()
        self.out_of_memory, self.last = ended.out_of_memory, ended.last
        # The engine says a signal as shells do.
        return 128 - ended.code if 128 < ended.code < 128 + signal.NSIG else ended.code

    def _end(self) -> asyncio.Task[Ended]:
        if self._killing is None:
            ask = self._engine.ask(End(self._container), Ended, self._call_s)
            self._killing = asyncio.create_task(ask, name=f"end-{self._name}")
        return self._killing


def _opened(running: Running) -> int:
    """-1 where it has ended already, or where that number is somebody else's: an engine elsewhere."""
    try:
        handle = os.pidfd_open(running.pid) if running.pid > 0 else -1
    except OSError:
        return -1
    try:
        ours = running.container in Path(f"/proc/{running.pid}/cgroup").read_text()
    except OSError:
        ours = False
    if handle >= 0 and not ours:
        _logger.warning("no process of the container's here: agent and engine must share a machine's process numbers")
        os.close(handle)
        return -1
    return handle
