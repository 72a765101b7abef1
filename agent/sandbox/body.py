"""What a worker is made of, as `agent.sandbox.host` sees it: what can be killed, and whose end can be waited for.

A process of ours stands here; a container is `agent.containers.body`'s. The orders go over the channel, whatever the
body is.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Protocol

from agent.sandbox.cage import NO_CAGE, Cage
from agent.sandbox.cgroup import kernel_kills
from agent.sandbox.ending import Child


class Body(Protocol):
    """One life. `pid` leads a process group, or is -1 where no process of it can be named."""

    @property
    def pid(self) -> int: ...

    @property
    def out_of_memory(self) -> bool:
        """Whether it was killed for want of memory; known once `ended` has returned."""

    @property
    def memory(self) -> str:
        """The most memory that it took and what it might take, in words, as far as known once `ended` has returned."""

    def kill(self) -> None:
        """At once, with all that it has started. Not waited for, and never called after `ended` has returned."""

    async def ended(self) -> int:
        """Returns the exit code, or minus the signal, once it is gone and nothing of it is left."""

    def weigh(self, weight: int) -> None:
        """Its share of the processors, where that can be set."""

    def cap(self, percent: int) -> None:
        """The most of the processors, where that can be set (100: one of them, 0: no limit)."""


class ProcessBody:
    """A child process in a cage. `pid` is that of its process group, which begins with a wrapper if there is one."""

    def __init__(self, process: Child, cage: Cage = NO_CAGE) -> None:
        self.pid = process.pid
        self.out_of_memory = False
        self.memory = ""
        self._kills = kernel_kills()
        self._process = process
        self._cage = cage

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def ended(self) -> int:
        code = _unwrapped(await self._process.ended(), self._cage)
        self.kill()  # children of its own, if any, were in the same group
        self._process.release()
        if self._cage.cgroup is not None:
            self.out_of_memory = self._cage.cgroup.oom_kills() > 0
            self.memory = self._cage.cgroup.memory()
            self._cage.cgroup.remove()
        elif code == -signal.SIGKILL and kernel_kills() > self._kills:
            self.out_of_memory = True  # this one or another: somebody had to go, and nobody else says why it went
        return code

    def cap(self, percent: int) -> None:
        if self._cage.cgroup is not None:
            self._cage.cgroup.cap(percent)

    def weigh(self, weight: int) -> None:
        if self._cage.cgroup is not None:
            self._cage.cgroup.weigh(weight)


def _unwrapped(code: int, cage: Cage) -> int:
    """A wrapper that outlives the worker says a signal as shells do."""
    return 128 - code if cage.command and 128 < code < 128 + signal.NSIG else code
