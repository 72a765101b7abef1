"""Does what the hub asks beside the desired state: each command once, before its end, and not again after a power cut.

That a command has begun is written down before it is done; one that was begun and not ended when the agent stopped is
answered as interrupted, because nobody knows how far it came. Results go through the outbox, so the hub gets each, also
weeks later. Kinds are the caller's (`Doer`); one that nobody knows is refused. `run` is a unit of the supervisor.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import msgspec

from agent.errors import AgentError, OutboxError, StoreError
from agent.outbox import Outbox
from agent.store import AgentStore
from modules.commands import VERSION, Command, CommandResult
from modules.errors import ModuleError
from modules.messages import AgentEvent, encode

MARKS_KEY = "commands.marks"
MAX_MARKS = 256
MAX_WAITING = 64  # the hub sends again what it has no answer to
DEADLINE_S = 120.0
MAX_TEXT = 400

Doer = Callable[[Command], Awaitable[CommandResult]]
_logger = logging.getLogger(__name__)


class Mark(msgspec.Struct, frozen=True):
    """A command that has begun at a time, and whether it has ended."""

    at: float
    ended: bool = False


class Commands:
    """`hear` may be called at any time; `kinds` says who does what."""

    def __init__(
        self, store: AgentStore, outbox: Outbox, kinds: Mapping[str, Doer], clock: Callable[[], float] = time.time
    ) -> None:
        self._store, self._outbox, self._kinds, self._clock = store, outbox, kinds, clock
        self._waiting: asyncio.Queue[Command] = asyncio.Queue(MAX_WAITING)
        self._marks: dict[str, Mark] = {}

    def hear(self, command: Command) -> None:
        """From the link; never waits and never raises."""
        try:
            self._waiting.put_nowait(command)
        except asyncio.QueueFull:
            _logger.warning("a command is left out, too many wait", extra={"command": command.id})

    async def run(self) -> None:
        """Until cancelled. Raises StoreError when nothing can be written down: then nothing is done either."""
        self._marks = await self._store.get(MARKS_KEY, dict[str, Mark]) or {}
        for id_ in [id_ for id_, mark in self._marks.items() if not mark.ended]:
            text = "the agent ended while it was doing this; ask again"
            await self._end(CommandResult(id_, "failed", "interrupted", text))
        while True:
            command = await self._waiting.get()
            if command.id not in self._marks:
                await self._once(command)

    async def _once(self, command: Command) -> None:
        await self._mark(command.id, ended=False)
        result = await self._done(command)
        await self._end(msgspec.structs.replace(result, id=command.id, text=result.text[:MAX_TEXT]))

    async def _done(self, command: Command) -> CommandResult:
        """The result, whatever happens."""
        now = self._clock()
        if now >= command.expires_at:
            late = f"it ended {now - command.expires_at:.0f} s ago by this device's clock"
            return CommandResult(command.id, "expired", "expired", late)
        do = self._kinds.get(command.kind)
        if do is None or command.version > VERSION:
            text = f"this agent knows {', '.join(sorted(self._kinds))} in version {VERSION}"
            return CommandResult(command.id, "refused", "unknown-command", f"{text}, got {command.kind[:32]!r}")
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await do(command)
        except TimeoutError:
            return CommandResult(command.id, "failed", "deadline", f"not done within {DEADLINE_S:g} s")
        except (AgentError, ModuleError) as error:
            return CommandResult(command.id, "failed", error.key, str(error))
        except Exception as error:
            _logger.exception("a command failed", extra={"command": command.id, "kind": command.kind})
            return CommandResult(command.id, "failed", "internal", type(error).__name__)

    async def _end(self, result: CommandResult) -> None:
        """On the disk with all that it has offered to the outbox, before it counts as ended."""
        level: Literal["info", "warning"] = "info" if result.outcome == "done" else "warning"
        text = f"command {result.id}: {result.outcome} {result.text}".strip()
        try:
            await self._outbox.add("event", encode(AgentEvent(self._clock(), level, "command", text, command=result)))
        except OutboxError as error:
            _logger.warning("the result of a command is lost", extra={"command": result.id, "why": str(error)})
        await self._mark(result.id, ended=True)

    async def _mark(self, id_: str, ended: bool) -> None:
        self._marks[id_] = Mark(self._clock(), ended)
        over = max(0, len(self._marks) - MAX_MARKS)
        for old in sorted(self._marks, key=lambda known: self._marks[known].at)[:over]:
            del self._marks[old]
        try:
            await self._store.put(MARKS_KEY, self._marks)
        except StoreError:
            if not ended:
                del self._marks[id_]  # it has not begun: the hub asks again
            raise
