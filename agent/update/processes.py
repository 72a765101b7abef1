"""The kind `process`: a module that a worker process serves. Tried in spare workers, handed over socket by socket.

Holds what lives between two states and may be lost: the spare workers. One of `agent.update.kinds`.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.installed import Installed, ModuleSet
from agent.runtimes.keeper import Keeper
from agent.sandbox.host import WorkerProcess
from agent.slots import Slots
from agent.update.probation import Before, Judgement, Seen, judge
from modules.manifest import Health

LOOK_S = 1.0
LEAST_LOOK_S = 0.02


class Processes:
    """One keeper's modules."""

    def __init__(self, keeper: Keeper, slots: Slots) -> None:
        self._keeper = keeper
        self._slots = slots
        self._spares: dict[str, WorkerProcess] = {}

    async def try_out(self, trial: Sequence[Installed]) -> None:
        """A spare worker for each. Raises WorkerError, SlotError, EndpointError."""
        await self.discard()
        for module in trial:
            self._spares[module.name] = await self._keeper.spare(module)

    async def activate(self, target: ModuleSet, trial: Sequence[Installed]) -> dict[str, Before]:
        """Raises WorkerError when a spare does not take over."""
        await self._keeper.switch(target, self._spares)
        return {}

    async def judge(self, module: Installed, before: Before | None, elapsed_s: float) -> Judgement:
        return judge(module.name, self._health(module), await self._look(module), elapsed_s)

    async def revert(self, current: ModuleSet) -> None:
        await self.discard()
        await self._keeper.switch(current, {})

    async def commit(self, current: ModuleSet) -> None:
        """New policies, modes and removals take effect here."""
        await self._keeper.switch(current, {})

    async def discard(self) -> None:
        while self._spares:
            _, worker = self._spares.popitem()
            await self._keeper.drop(worker)

    def trial_deadline_s(self, module: Installed) -> float:
        return 2 * self._health(module).load_deadline_s  # the golden inputs have as long as loading

    def probation_deadline_s(self, module: Installed) -> float:
        health = self._health(module)
        return max(health.probation_deadline_s, health.probation_s)

    def look_every_s(self, module: Installed) -> float:
        return max(LEAST_LOOK_S, min(LOOK_S, self._health(module).probation_s / 5))

    async def _look(self, module: Installed) -> Seen:
        stats = await self._keeper.poll(module.name)
        unit = self._keeper.unit(module.name)
        if unit is None:
            return Seen(stats, 1, "it is not kept any more")
        return Seen(stats, unit.restarts, str(unit.failure or ""))

    def _health(self, module: Installed) -> Health:
        return self._slots.open(module.manifest_sha256).manifest.health
