"""Does what the hub asks beside the desired state: each command once, before its end, and not again after a power cut.

That a command has begun is written down before it is done; one that was begun and not ended when the agent stopped is
answered as interrupted, because nobody knows how far it came. Results go through the outbox, so the hub gets each,
also weeks later; what one brings goes with it where it is small, else before it as pieces of a blob. Kinds are the
caller's (`Doer`); one that nobody knows, or that this device's settings leave out, is refused. `run` is a unit of the
supervisor.

For tests of power cuts, `crash_at` ("command:begun", "command:done", "command:told") kills this process with SIGKILL
when a command is written down as begun, when it is done, and when its result is on the disk but not that it has ended.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from agent.errors import AgentError, OutboxError, StoreError
from agent.outbox import Outbox
from agent.store import AgentStore
from modules.commands import MAX_INLINE_BYTES, RESTART, VERSION, Command, CommandResult
from modules.errors import ModuleError
from modules.messages import AgentEvent, encode
from modules.packed import pack
from modules.pieces import cut

MARKS_KEY = "commands.marks"
MAX_MARKS = 256
MAX_WAITING = 64  # the hub sends again what it has no answer to
DEADLINE_S = 120.0
DEADLINES_S = {RESTART: 900.0}  # a worker may take long to load
MAX_TEXT = 400
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """A result with what it brings, and what is done once both are on the disk."""

    result: CommandResult
    brings: bytes = b""
    then: Callable[[], object] | None = None


Doer = Callable[[Command], Awaitable[CommandResult | Answer]]


class Mark(msgspec.Struct, frozen=True):
    """A command that has begun at a time, and whether it has ended."""

    at: float
    ended: bool = False


class Commands:
    """`hear` may be called at any time; `kinds` says who does what, `left_out` what this device does not do of it."""

    def __init__(
        self,
        store: AgentStore,
        outbox: Outbox,
        kinds: Mapping[str, Doer],
        clock: Callable[[], float] = time.time,
        left_out: Collection[str] = (),
        crash_at: str = "",
    ) -> None:
        self._store, self._outbox, self._kinds, self._clock = store, outbox, kinds, clock
        self._left_out, self._crash_at = frozenset(left_out), crash_at
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
            await self._end(Answer(CommandResult(id_, "failed", "interrupted", text)))
        while True:
            command = await self._waiting.get()
            if command.id not in self._marks:
                await self._once(command)

    async def _once(self, command: Command) -> None:
        await self._mark(command.id, ended=False)
        self._crash("command:begun")
        done = await self._done(command)
        answer = done if isinstance(done, Answer) else Answer(done)
        self._crash("command:done")
        result = msgspec.structs.replace(answer.result, id=command.id, text=answer.result.text[:MAX_TEXT])
        await self._end(Answer(result, answer.brings))
        if answer.then is not None:
            answer.then()

    async def _done(self, command: Command) -> CommandResult | Answer:
        """The result, whatever happens."""
        now = self._clock()
        if now >= command.expires_at:
            late = f"it ended {now - command.expires_at:.0f} s ago by this device's clock"
            return CommandResult(command.id, "expired", "expired", late)
        do = self._kinds.get(command.kind)
        if do is None or command.version > VERSION:
            text = f"this agent knows {', '.join(sorted(self._kinds))} in version {VERSION}"
            return CommandResult(command.id, "refused", "unknown-command", f"{text}, got {command.kind[:32]!r}")
        if command.kind in self._left_out:
            text = f"this device's own settings refuse {command.kind} (commands.refuse in agent.toml)"
            return CommandResult(command.id, "refused", "not-allowed", text)
        deadline_s = DEADLINES_S.get(command.kind, DEADLINE_S)
        try:
            async with asyncio.timeout(deadline_s):
                return await do(command)
        except TimeoutError:
            return CommandResult(command.id, "failed", "deadline", f"not done within {deadline_s:g} s")
        except (AgentError, ModuleError) as error:
            return CommandResult(command.id, "failed", error.key, str(error))
        except Exception as error:
            _logger.exception("a command failed", extra={"command": command.id, "kind": command.kind})
            return CommandResult(command.id, "failed", "internal", type(error).__name__)

    async def _end(self, answer: Answer) -> None:
        """On the disk with all that it has offered to the outbox, before it counts as ended."""
        result = answer.result
        level: Literal["info", "warning"] = "info" if result.outcome == "done" else "warning"
        text = f"command {result.id}: {result.outcome} {result.text}".strip()
        try:
            result = await self._with(result, answer.brings)
            await self._outbox.add("event", encode(AgentEvent(self._clock(), level, "command", text, command=result)))
        except OutboxError as error:
            _logger.warning("the result of a command is lost", extra={"command": result.id, "why": str(error)})
        self._crash("command:told")
        await self._mark(result.id, ended=True)

    async def _with(self, result: CommandResult, brings: bytes) -> CommandResult:
        """With what it brings, or with the digest of it once its pieces are on the disk. Raises OutboxError."""
        if not brings:
            return result
        packed = await asyncio.to_thread(pack, brings)
        sha256 = hashlib.sha256(packed).hexdigest()
        named = msgspec.structs.replace(result, sha256=sha256, size=len(packed))
        if len(packed) <= MAX_INLINE_BYTES:
            return msgspec.structs.replace(named, data=packed)
        for piece in cut(sha256, packed):
            await self._outbox.add("blob", piece)
        return named

    def _crash(self, moment: str) -> None:
        if self._crash_at == moment:
            os.kill(os.getpid(), signal.SIGKILL)

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
