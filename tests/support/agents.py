"""A real agent as a process, on a state directory that looks as if the device had enrolled."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

import msgspec

from agent.config import AgentConfig, StatePaths
from agent.report import Status, read_status
from modules.messages import ModuleReport
from support.edge import SERVING, UPDATE
from support.mosquitto import Mosquitto
from support.waiting import until

LOG_LINES = 30


def enrolled(config: AgentConfig, paths: StatePaths, broker: Mosquitto) -> AgentConfig:
    """Writes identity and configuration; what enrolment would have left."""
    broker.client(config.device).write(paths.identity, "device")
    paths.server_ca.write_text(broker.server_ca.pem)
    config = msgspec.structs.replace(config, mqtt_port=broker.port, serving=SERVING, update=UPDATE)
    paths.config.write_text(config.to_toml())
    return config


class AgentProcess:
    """`mooring-agent run`. `crash_at` is where it kills itself; see agent.update.engine."""

    def __init__(self, paths: StatePaths) -> None:
        self.paths = paths
        self.log = paths.root / "agent.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, crash_at: str = "") -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "agent.cli", "run", "--state", str(self.paths.root),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "MOORING_CRASH_AT": crash_at},
            )  # fmt: skip

    async def exit_code(self, deadline_s: float = 30.0) -> int:
        """Waits for its end."""
        assert self._process is not None
        try:
            async with asyncio.timeout(deadline_s):
                return await self._process.wait()
        except TimeoutError:
            raise TimeoutError(f"the agent did not end within {deadline_s} s:\n{self.tail()}") from None

    def status(self) -> Status | None:
        """What this process (not one before) has last written."""
        status = read_status(self.paths.status)
        return status if status is not None and self._process and status.pid == self._process.pid else None

    async def serving(self, name: str = "iris") -> str:
        """Waits until the module serves; its address."""
        found: list[str] = []

        def serves() -> bool:
            status = self.status()
            found.extend(m.endpoint for m in (status.report.modules if status else ()) if _serves(m, name))
            return bool(found)

        await self.until(serves, f"{name} to serve")
        return found[-1]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """As `support.waiting.until`, with the agent's last words when it fails."""
        try:
            await until(condition, what)
        except TimeoutError as error:
            raise TimeoutError(f"{error}:\n{self.tail()}") from None

    async def stop(self) -> int:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.terminate()
        return await self.exit_code()

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])


def _serves(module: ModuleReport, name: str) -> bool:
    return module.name == name and module.state == "serving"
