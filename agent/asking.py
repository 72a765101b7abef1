"""The command `samples`: rows of a module's ring, sent as samples. Called by `agent.commands`."""

from __future__ import annotations

import msgspec

from agent.errors import WorkerError
from agent.installed import key_of
from agent.runtimes.keeper import Keeper
from agent.runtimes.unit import Unit
from modules.commands import Command, CommandResult, decode_asked


class SampleRequests:
    """What runs now is asked; a module that does not serve has nobody who could answer."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    async def do(self, command: Command) -> CommandResult:
        """Raises WorkerError, MessageError."""
        asked = decode_asked(command.body)
        unit = self._unit(asked.module, asked.version)
        if unit is None or unit.state != "serving":
            return CommandResult(command.id, "refused", "not-serving", f"module {asked.module} does not serve here now")
        if asked.version and asked.version != unit.module.version:
            text = f"module {asked.module}: expected version {asked.version}, got {unit.module.version}"
            return CommandResult(command.id, "refused", "other-version", text)
        try:
            done = await unit.ask_samples(command.id, asked)
        except WorkerError as error:
            return CommandResult(command.id, "failed", error.key, str(error))
        return msgspec.convert(msgspec.structs.asdict(done) | {"id": command.id}, CommandResult)

    def _unit(self, module: str, version: int) -> Unit | None:
        """The version that serves, or the candidate beside it where its version is asked for."""
        beside = self._keeper.unit(key_of(module, candidate=True))
        if beside is not None and version and beside.module.version == version:
            return beside
        return self._keeper.unit(module)
