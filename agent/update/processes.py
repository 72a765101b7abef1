"""The kind `process`: a module that a worker process serves. Tried in spare workers, handed over socket by socket.

Holds what lives between two states and may be lost: the spare workers. One of `agent.update.kinds`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from agent.config import UpdateLimits
from agent.installed import Installed, ModuleSet
from agent.runtimes.keeper import Keeper
from agent.runtimes.past import Before
from agent.sandbox.host import WorkerProcess
from agent.slots import Slots
from agent.update.compare import Factors
from agent.update.probation import Judgement, Seen, judge
from modules.manifest import Health

LOOK_S = 1.0
LEAST_LOOK_S = 0.02


class Processes:
    """One keeper's modules."""

    def __init__(self, keeper: Keeper, slots: Slots, limits: UpdateLimits | None = None) -> None:
        self._keeper = keeper
        self._limits = limits or UpdateLimits()
        self._slots = slots
        self._spares: dict[str, WorkerProcess] = {}

    async def try_out(self, trial: Sequence[Installed]) -> None:
        """A spare worker for each. Raises WorkerError, SlotError, EndpointError."""
        await self.discard()
        for module in trial:
            self._spares[module.key] = await self._keeper.spare(module)

    async def activate(self, target: ModuleSet, trial: Sequence[Installed]) -> dict[str, Before]:
        """Raises WorkerError when a spare does not take over."""
        mains = [module for module in trial if not module.candidate]  # a candidate replaces nobody
        before = {module.key: was for module in mains if (was := await self._keeper.record(module.key)) is not None}
        await self._keeper.switch(target, self._spares)
        return before

    async def judge(self, module: Installed, before: Before | None, elapsed_s: float) -> Judgement:
        health = self._health(module)
        if module.candidate:  # it is asked for a part of what is asked for
            enough = math.ceil(health.probation_inferences * module.share)
            health = msgspec.structs.replace(health, probation_inferences=enough)
        return judge(module.name, health, await self._look(module), elapsed_s, before, self._factors(health))

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

    def _factors(self, health: Health) -> Factors:
        """The module's own word, or else this device's."""
        errors, latency = health.error_factor, health.latency_factor
        return Factors(
            self._limits.error_factor if errors is msgspec.UNSET else errors,
            self._limits.latency_factor if latency is msgspec.UNSET else latency,
        )

    async def _look(self, module: Installed) -> Seen:
        stats = await self._keeper.poll(module.key)
        unit = self._keeper.unit(module.key)
        if unit is None:
            return Seen(stats, 1, "it is not kept any more")
        return Seen(stats, unit.restarts, str(unit.failure or ""))

    def _health(self, module: Installed) -> Health:
        return self._slots.open(module.manifest_sha256).manifest.health
