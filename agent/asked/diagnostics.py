"""The command `diagnostics`: `agent.asked.bundle` in a process of its own, within a deadline.

Called by `agent.commands`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent.commands import Answer
from agent.errors import AgentError
from agent.sandbox.environment import worker_environment
from modules.commands import MAX_RESULT_BYTES, AskDiagnostics, Command, CommandResult, decode_body

DEADLINE_S: Final = 110.0  # within that of a command
EXIT_S: Final = 5.0
_PROGRAM: Final = (sys.executable, "-P", "-m", "agent.asked.bundle")
_KEPT: Final = ("MOORING_RELEASE", "XDG_RUNTIME_DIR", "DOCKER_HOST")


class DiagnosticsError(AgentError):
    """The device could not be looked at."""

    key = "diagnostics"


class Diagnostics:
    """`state` is the agent's state directory."""

    def __init__(self, state: Path) -> None:
        self._state = state

    async def do(self, command: Command) -> Answer:
        """Raises MessageError, DiagnosticsError."""
        asked = decode_body(command.body, AskDiagnostics)
        data = await self._bundle(asked.log_lines)
        return Answer(CommandResult(command.id, "done", count=1, found=1), data)

    async def _bundle(self, log_lines: int) -> bytes:
        environment = worker_environment(os.environ) | {n: os.environ[n] for n in _KEPT if n in os.environ}
        child = await asyncio.create_subprocess_exec(
            *_PROGRAM, str(self._state), str(log_lines), env=environment, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            async with asyncio.timeout(DEADLINE_S):
                data, said = await child.communicate()
        except TimeoutError as error:
            raise DiagnosticsError(f"not done within {DEADLINE_S:g} s; ask again with fewer lines of logs") from error
        finally:
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, 9)
                with suppress(TimeoutError):
                    await asyncio.wait_for(child.wait(), EXIT_S)
        if child.returncode != 0 or not 0 < len(data) <= MAX_RESULT_BYTES:
            words = said.decode(errors="replace").strip().splitlines()
            why = words[-1] if words else f"exit status {child.returncode}, {len(data)} bytes"
            raise DiagnosticsError(f"the device could not be looked at: {why}")
        return data
