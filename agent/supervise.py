"""Keeps the agent's units running: each restarted by its own policy, one that gives up is recorded, the rest go on.

The outermost layer of the agent's process, called by `service`. Not a TaskGroup: when one unit gives up a group would
cancel its healthy peers, and a task that resists cancellation would hold the group past its drain deadline. Being
offline is no failure of a unit: the link waits inside itself.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from agent.backoff import longest_s

log = logging.getLogger(__name__)


class UnitState(Enum):
    """Where a unit stands."""

    WAITING = "waiting"
    RUNNING = "running"
    BACKING_OFF = "backing-off"
    GAVE_UP = "gave-up"
    ENDED = "ended"


@dataclass(frozen=True)
class Restart:
    """After a failure: wait between 0 and min(ceiling_s, first_s * 2**(failures - 1)), full jitter.

    Failures older than `within_s` are forgotten. More than `most` left and the unit gives up (0 = never).
    """

    first_s: float = 1.0
    ceiling_s: float = 60.0
    most: int = 0
    within_s: float = 600.0

    def pause_s(self, failures: int, jitter: float) -> float:
        return jitter * longest_s(self.first_s, self.ceiling_s, failures)


@dataclass(frozen=True)
class Unit:
    """A part of the agent that runs for ever. One that returns has ended: it is not started again."""

    name: str
    run: Callable[[], Awaitable[None]]
    restart: Restart = field(default_factory=Restart)


@dataclass(frozen=True)
class UnitStatus:
    """`failures` are those not yet forgotten; `error` is the most recent one in words."""

    state: UnitState
    failures: int = 0
    error: str = ""


class Supervisor:
    """Runs units until told to stop; never raises for a unit."""

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        drain_s: float = 10.0,
        random: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._units, self._drain_s, self._random, self._clock = tuple(units), drain_s, random, clock
        self._status = {unit.name: UnitStatus(UnitState.WAITING) for unit in self._units}
        if len(self._status) != len(self._units):
            raise ValueError(f"units: expected names that differ, got {[unit.name for unit in self._units]}")

    async def run(self, stop: asyncio.Event) -> None:
        """Returns when `stop` is set and the units were cancelled, at most `drain_s` later.

        What is then still running is named in the log and left to the end of the process.
        """
        tasks = [asyncio.create_task(self._keep(unit), name=f"unit-{unit.name}") for unit in self._units]
        try:
            await stop.wait()
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                _, late = await asyncio.wait(tasks, timeout=self._drain_s)
                for task in late:
                    log.error("did not end in time: task=%s drain_s=%s", task.get_name(), self._drain_s)

    def status(self) -> Mapping[str, UnitStatus]:
        """By unit name, as it stands now."""
        return dict(self._status)

    async def _keep(self, unit: Unit) -> None:
        """One unit's life: records giving up and returns, instead of raising into its peers."""
        failed: deque[float] = deque()
        while True:
            self._set(unit, UnitState.RUNNING, len(failed))
            try:
                await unit.run()
            except Exception as error:
                if not await self._again(unit, failed, error):
                    return
            else:
                self._set(unit, UnitState.ENDED, len(failed))
                return

    async def _again(self, unit: Unit, failed: deque[float], error: Exception) -> bool:
        """Waits as the policy says; False when the unit gives up."""
        policy, now = unit.restart, self._clock()
        failed.append(now)
        while failed and failed[0] < now - policy.within_s:
            failed.popleft()
        text = f"{type(error).__name__}: {error}"
        if policy.most and len(failed) > policy.most:
            self._set(unit, UnitState.GAVE_UP, len(failed), text)
            log.error("unit gives up, the others keep running: unit=%s", unit.name, exc_info=error)
            return False
        pause = policy.pause_s(len(failed), self._random())
        self._set(unit, UnitState.BACKING_OFF, len(failed), text)
        said = "unit failed, starts again: unit=%s failures=%s pause_s=%.1f"
        log.warning(said, unit.name, len(failed), pause, exc_info=error)
        await asyncio.sleep(pause)
        return True

    def _set(self, unit: Unit, state: UnitState, failures: int, error: str = "") -> None:
        error = error or self._status[unit.name].error
        self._status[unit.name] = UnitStatus(state, failures, error)
