"""How a child process ended: waited for without a thread, and said in words. For workers and decoders of patches."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from typing import Protocol


class Child(Protocol):
    """A process that somebody waits for. Its number is nobody else's before `release`."""

    pid: int

    @property
    def companions(self) -> tuple[int, ...]:
        """Processes that are there for it alone."""

    async def ended(self) -> int:
        """The exit code, negative for a signal. Called once."""

    def release(self) -> None:
        """Nobody sends it anything any more."""


class Spawned:
    """A child of our own."""

    companions: tuple[int, ...] = ()

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self._process = process

    async def ended(self) -> int:
        return await reap(self._process)

    def release(self) -> None:
        """Reaped already."""


async def reap(process: subprocess.Popen[bytes]) -> int:
    """The exit code, waited for without a thread: a pidfd is readable once the process has ended."""
    handle = os.pidfd_open(process.pid)
    try:
        await readable(handle)
    finally:
        os.close(handle)
    return process.wait()


async def readable(handle: int) -> None:
    """Waits until there is something to read, or for a pidfd, until its process has ended."""
    loop = asyncio.get_running_loop()
    now = asyncio.Event()
    loop.add_reader(handle, now.set)
    try:
        await now.wait()
    finally:
        loop.remove_reader(handle)


def in_words(code: int | None) -> str:
    if code is None:
        return "no exit code yet"
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
