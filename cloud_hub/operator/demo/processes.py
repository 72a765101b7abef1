"""Real commands in real processes: started, watched, stopped or killed, and none left behind.

Each child leads a session of its own, so that its workers and its broker can be taken along. Output goes to one log
file per process, whose last lines stand in the error when a process dies early. Used by the demo, and by the system
tests and benchmarks, which need the same fleet.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

STOP_DEADLINE_S = 20.0
ONCE_DEADLINE_S = 60.0
POLL_S = 0.05
LOG_LINES = 15


class ProcessFailed(Exception):
    """A process did not do what it was started for."""


class Service:
    """A command that stays up until it is stopped, and may be started again. As a context it is stopped at the end."""

    def __init__(self, name: str, arguments: list[str], log: Path) -> None:
        self.name = name
        self._arguments = arguments
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Service:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.shield(self.stop())

    @property
    def pid(self) -> int:
        """Raises ProcessFailed when it was never started."""
        if self._process is None:
            raise ProcessFailed(f"{self.name} was not started")
        return self._process.pid

    def tail(self) -> str:
        """The last lines of its log."""
        if not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-LOG_LINES:])

    async def start(self) -> None:
        with self._log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raises ProcessFailed when the process is gone."""
        if self._process is None or self._process.returncode is not None:
            status = None if self._process is None else self._process.returncode
            raise ProcessFailed(f"{self.name} ended with status {status}:\n{self.tail()}")

    async def ended(self) -> None:
        """Returns when the process has ended by itself. Raises ProcessFailed when it was never started."""
        if self._process is None:
            raise ProcessFailed(f"{self.name} was not started")
        await self._process.wait()

    async def stop(self) -> None:
        """Ask, wait, then insist; the whole session goes."""
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_DEADLINE_S)
        await self.kill()

    async def kill(self) -> None:
        """As a power cut would: SIGKILL to the process and to everything it started."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()


def command(name: str) -> str:
    """The console script beside this interpreter, as a user would call it."""
    return str(Path(sys.executable).with_name(name))


async def once(arguments: list[str], deadline_s: float = ONCE_DEADLINE_S) -> str:
    """Run a command to its end and return what it printed. Raises ProcessFailed when its status is not 0."""
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), deadline_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode(errors="replace")
    if process.returncode != 0:
        last = "\n".join(text.splitlines()[-LOG_LINES:])
        raise ProcessFailed(f"{Path(arguments[0]).name} {arguments[1]} ended with {process.returncode}:\n{last}")
    return text


async def until(what: str, ready: Callable[[], bool], deadline_s: float, *services: Service) -> None:
    """Wait until `ready()`. Raises ProcessFailed at the deadline, or as soon as one of `services` is gone."""
    end = asyncio.get_running_loop().time() + deadline_s
    while not ready():
        for service in services:
            service.check()
        if asyncio.get_running_loop().time() > end:
            logs = "\n".join(f"--- {service.name}\n{service.tail()}" for service in services)
            raise ProcessFailed(f"{what}: not so after {deadline_s:.0f} s\n{logs}")
        await asyncio.sleep(POLL_S)
