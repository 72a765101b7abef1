"""The command `restart`: another worker for a module that serves here, or another life of the agent.

Nothing that runs is changed by it: the same version with the same configuration takes over, as in a hand-over where
there is memory for two, and after a drain where there is not. Called by `agent.commands`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agent.commands import Answer
from agent.errors import AgentError, UpdateError
from agent.runtimes.keeper import Keeper
from agent.runtimes.unit import Unit
from modules.commands import AskRestart, Command, CommandResult, decode_body

# While these go on, the update decides which worker serves, and watches it.
BUSY: Final = frozenset({"trying", "activating", "probation", "committed", "reverting"})


class Restarts:
    """`update` says in which state the update machine is, `check_room` raises UpdateError where there is no memory for
    a second worker of a unit's module, `make_way` ends the agent so that it is started again.
    """

    def __init__(
        self,
        keeper: Keeper,
        update: Callable[[], str],
        check_room: Callable[[Unit], None],
        make_way: Callable[[], None],
    ) -> None:
        self._keeper, self._update, self._check_room, self._make_way = keeper, update, check_room, make_way

    async def do(self, command: Command) -> Answer:
        """Raises MessageError."""
        asked = decode_body(command.body, AskRestart)
        state = self._update()
        if state in BUSY:
            text = f"an update is under way ({state}), and it decides what serves; ask again when it has ended"
            return Answer(CommandResult(command.id, "refused", "updating", text))
        if not asked.module:
            return Answer(CommandResult(command.id, "done", text="the agent starts again"), then=self._make_way)
        unit = self._keeper.unit(asked.module)
        if unit is None:
            text = f"module {asked.module} is not one that serves here"
            return Answer(CommandResult(command.id, "refused", "not-serving", text))
        try:
            how = await self._restart(unit)
        except AgentError as error:
            text = f"{error}; what served before goes on"
            return Answer(CommandResult(command.id, "failed", error.key, text))
        return Answer(CommandResult(command.id, "done", text=how, count=1, found=1))

    async def _restart(self, unit: Unit) -> str:
        """How it was done. Raises WorkerError, SlotError, EndpointError."""
        name, version = unit.module.name, unit.module.version
        try:
            self._check_room(unit)
        except UpdateError:
            await self._keeper.begin_again(name)
            return f"version {version}: its worker drained, and another one is starting (no memory for two at once)"
        await self._keeper.replace(name)
        return f"version {version}: another worker serves, the one before it has drained"
