"""The agent as a module: tried out in an environment of its own, started on trial, kept or taken back.

The update machine sees a kind of module like any other. What differs: a new agent serves nobody until this process
makes way for it. So activating only arms the launcher; probation, which is written down first, begins with the old
agent asking for its own end, and goes on in the new one. The launcher takes back what cannot stay up.
Called by `agent.update.steps` through `agent.update.kinds`.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from agent import __version__
from agent.installed import Installed, ModuleSet
from agent.release.environment import CHECK_DEADLINE_S, UNPACK_DEADLINE_S, Environments
from agent.release.launcher import running
from agent.release.pointer import load, save, settled, tried
from agent.runtimes.past import Before
from agent.slots import Slots
from agent.update.probation import Judgement, Verdict
from modules.manifest import Health
from modules.messages import ModuleReport

STEADY_S = 60.0  # up this long, an agent's earlier starts are forgiven
TRIAL_MARGIN_S = 120.0  # beside probation: starting, and the old agent's own end

_logger = logging.getLogger(__name__)


class AgentReleases:
    """`online` is set while the hub is reached. `restart` asks this process to make way; it returns at once."""

    def __init__(
        self, state: Path, environments: Environments, slots: Slots, online: asyncio.Event, restart: Callable[[], None]
    ) -> None:
        self._state, self._environments, self._slots = state, environments, slots
        self._online, self._restart = online, restart

    async def run(self) -> None:
        """A unit of the supervisor: says once that this agent stays up."""
        await asyncio.sleep(STEADY_S)
        pointer = load(self._state)
        if pointer.boots and not pointer.trial:
            save(self._state, replace(pointer, boots=0))
        await asyncio.Event().wait()

    async def try_out(self, trial: Sequence[Installed]) -> None:
        """Raises UpdateError (release-unpack, release-check), SlotError."""
        for module in trial:
            slot = self._slots.open(module.manifest_sha256)
            version = await self._environments.build(release_of(module), slot.path)
            _logger.info("agent release fits", extra={"version": version, "release": release_of(module)})

    async def activate(self, target: ModuleSet, trial: Sequence[Installed]) -> Mapping[str, Before]:
        """Arms the launcher; nothing ends here. Raises OSError."""
        for module in trial:
            trial_s = round(self.probation_deadline_s(module) + TRIAL_MARGIN_S)
            pointer = tried(load(self._state), release_of(module), trial_s, self._online.is_set())
            save(self._state, pointer)
        return {}

    async def judge(self, module: Installed, before: Before | None, elapsed_s: float) -> Judgement:
        """Healthy is an agent that runs for the whole probation and reaches the hub, if the one before it did."""
        release, pointer = release_of(module), load(self._state)
        if running() != release:
            if pointer.trial == release:
                self._restart()
                return Judgement(Verdict.WAITING)
            return _unhealthy(f"the new agent did not stay: {pointer.why or 'it was taken back'}", "agent-ended")
        health = self._health(module)
        reached = self._online.is_set() or not pointer.online
        if elapsed_s >= health.probation_s and reached:
            return Judgement(Verdict.HEALTHY)
        if elapsed_s >= health.probation_deadline_s:
            return _unhealthy("the new agent did not reach the hub, and the one before it had", "agent-offline")
        return Judgement(Verdict.WAITING)

    async def revert(self, current: ModuleSet) -> None:
        """Raises OSError."""
        self._settle(current)

    async def commit(self, current: ModuleSet) -> None:
        """Raises OSError."""
        release = self._settle(current)
        await self._environments.prune({release, running()})

    async def discard(self) -> None:
        """A release that was built stays until another is committed: it is complete, or not marked as such."""

    def trial_deadline_s(self, module: Installed) -> float:
        return UNPACK_DEADLINE_S + CHECK_DEADLINE_S

    def probation_deadline_s(self, module: Installed) -> float:
        health = self._health(module)
        return max(health.probation_deadline_s, health.probation_s)

    def look_every_s(self, module: Installed) -> float:
        return self._health(module).probation_s / 5

    def reports(self, modules: ModuleSet) -> tuple[ModuleReport, ...]:
        """One for each release in the set, of which there is one at most."""
        return tuple(
            ModuleReport(
                name=module.name,
                version=module.version,
                manifest_sha256=module.manifest_sha256,
                release_counter=module.release_counter,
                deployment=module.deployment,
                state="serving" if running() == release_of(module) else "starting",
                verified=module.verified,
                execution=f"agent {__version__}",
            )
            for module in modules.modules
        )

    def _settle(self, modules: ModuleSet) -> str:
        """What runs from now on, written down; a restart is asked for where that changes what runs.

        Where it was written down already the launcher has had its say: an agent that runs in the place of a release
        which cannot stay up would be started in vain again and again.
        """
        release = next((release_of(module) for module in modules.modules if module.serves), "")
        pointer, is_running = load(self._state), running() == release
        if (pointer.current, pointer.trial) != (release, ""):
            save(self._state, settled(pointer, release))
            if not is_running:
                self._restart()
        if is_running:
            signal.alarm(0)
        return release

    def _health(self, module: Installed) -> Health:
        return self._slots.open(module.manifest_sha256).manifest.health


def release_of(module: Installed) -> str:
    """The release's name: its slot's."""
    return module.manifest_sha256[:32]


def _unhealthy(text: str, key: str) -> Judgement:
    return Judgement(Verdict.UNHEALTHY, key, f"agent release: {text}")
