"""The command `logs`: the last lines of a module's worker, or of the agent itself. Called by `agent.commands`.

Only what this device keeps anyway is sent, so a module that is gone has lines as long as its log lies there.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.asked.lines import Picked, kept, pick
from agent.commands import Answer
from agent.logs import KEPT_NAME
from firmware_profiles.profile import NAME_PATTERN
from modules.commands import LOGS, AskLogs, Command, CommandResult, decode_body

SHOWN = 5  # names of others


class LogRequests:
    """`folder` is where logs lie."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock

    async def do(self, command: Command) -> Answer:
        """Raises MessageError."""
        asked = decode_body(command.body, AskLogs)
        if asked.module and not re.fullmatch(NAME_PATTERN, asked.module):
            text = f"expected the name of a module, got {asked.module[:80]!r}"
            return Answer(CommandResult(command.id, "refused", "no-log", text))
        path = self._folder / (f"{asked.module}.log" if asked.module else KEPT_NAME)
        if not path.exists() and not path.with_name(f"{path.name}.1").exists():
            return Answer(CommandResult(command.id, "refused", "no-log", self._without(asked.module)))
        if asked.last_s:
            asked = msgspec.structs.replace(asked, since=max(asked.since, self._clock() - asked.last_s), until=0.0)
        picked = await asyncio.to_thread(_picked, path, asked)
        result = CommandResult(command.id, "done", count=len(picked.lines), found=picked.found)
        return Answer(result, "".join(f"{line}\n" for line in picked.lines).encode())

    def _without(self, module: str) -> str:
        """Why there is no log of the module, or of the agent ("")."""
        if not module:
            return f"the agent (commands.log_bytes is 0): no {LOGS} are kept here"
        others = sorted({path.name.partition(".")[0] for path in self._folder.glob("*.log*")} - {KEPT_NAME[:-4]})
        more = ", ..." if len(others) > SHOWN else ""
        known = f"there are {LOGS} of {', '.join(others[:SHOWN])}{more}" if others else f"no {LOGS} are kept here"
        return f"module {module}: it is not on this device, or has not said anything yet; {known}"


def _picked(path: Path, asked: AskLogs) -> Picked:
    return pick(kept(path), asked)
