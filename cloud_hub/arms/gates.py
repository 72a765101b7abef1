"""Answers the gates of rollouts: compares what the verified devices run with what ran before. Run by `service`.

The controller takes the answer in and acts on it; an answer that comes twice, or late, changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Final

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.arms.compare import Comparison, MeasuredDifference
from cloud_hub.arms.comparisons import Comparisons, Question
from cloud_hub.clock import Clock
from cloud_hub.errors import HubError
from cloud_hub.rollouts import reading
from cloud_hub.rollouts.controller import Controller
from cloud_hub.rollouts.gate import CompareGate, GateState, GateWord
from cloud_hub.rollouts.states import ExecutionState, Rollout, RolloutState
from cloud_hub.store.engine import Store, among
from cloud_hub.store.tables import executions

LONGEST_PAUSE_S: Final = 60.0
SHORTEST_PAUSE_S: Final = 1.0
_WORDS: Final[dict[str, GateWord]] = {"fine": "fine", "worse": "worse", "undecided": "undecided"}
_log = logging.getLogger(__name__)


class Gates:
    """`tick` asks for every rollout that waits; `run` does so for ever."""

    def __init__(
        self, store: Store, comparisons: Comparisons, controller: Controller, clock: Clock, look_s: float
    ) -> None:
        self._store = store
        self._comparisons = comparisons
        self._controller = controller
        self._clock = clock
        self._pause_s = min(max(look_s / 8, SHORTEST_PAUSE_S), LONGEST_PAUSE_S)

    async def run(self) -> None:
        while True:
            try:
                await self.tick()
            except Exception:
                # The rollouts keep waiting; the next round asks again.
                _log.exception("gates could not be answered; trying again in %s s", self._pause_s)
            await asyncio.sleep(self._pause_s)

    async def tick(self) -> None:
        """One round. A rollout whose gate cannot be answered keeps waiting, up to the gate's deadline."""
        async with self._store.read() as connection:
            running = await reading.newest(connection, str(RolloutState.RUNNING), 1000)
        for rollout in running:
            if rollout.plan.gate is not None and rollout.gate is not None and rollout.gate.group == rollout.group_index:
                await self._answer(rollout, rollout.plan.gate, rollout.gate)

    async def _answer(self, rollout: Rollout, gate: CompareGate, state: GateState) -> None:
        now = self._clock()
        word, reason = await self._word(rollout, gate)
        answer = msgspec.structs.replace(state, word=word, reason=reason, at=now)
        await self._controller.answer_gate(rollout.id, answer)

    async def _word(self, rollout: Rollout, gate: CompareGate) -> tuple[GateWord, str]:
        async with self._store.read() as connection:
            taking_part, baseline = await _who(connection, rollout, gate)
        if not baseline:
            return "undecided", "no device ran another version before; name one as the baseline"
        question = Question(
            rollout.module,
            rollout.version,
            baseline,
            frozenset(taking_part),
            margins=gate.margins,
            alpha=gate.alpha,
        )
        try:
            comparison = await self._comparisons.ask(question)
        except HubError as error:
            _log.warning("a gate cannot be answered", extra={"rollout": rollout.id, "key": error.key})
            return "undecided", error.message
        return _WORDS[comparison.verdict], in_words(comparison)


async def _who(connection: AsyncConnection, rollout: Rollout, gate: CompareGate) -> tuple[list[str], int]:
    """Devices that are verified, and those that wait (the control); and the version before."""
    wanted = (str(ExecutionState.VERIFIED), str(ExecutionState.WAITING))
    query = select(executions.c.device, executions.c.previous).where(
        executions.c.rollout == rollout.id, among(executions.c.state, wanted)
    )
    rows = (await connection.execute(query)).all()
    before = Counter(row.previous["version"] for row in rows if row.previous)
    before.pop(rollout.version, None)
    common = before.most_common(1)
    return [row.device for row in rows], gate.baseline or (common[0][0] if common else 0)


def in_words(comparison: Comparison) -> str:
    """The verdict and what it rests on, in a sentence."""
    judged = [difference for difference in comparison.differences if difference.role != "answers"]
    against = f"version {comparison.candidate} against {comparison.baseline}, {comparison.design}"
    if not judged:
        return f"{against}: nothing has been counted of both yet"
    worst = [d for d in judged if d.word == "worse"] or [d for d in judged if d.word == "undecided"] or judged
    return f"{against}: " + "; ".join(_one(difference) for difference in worst[:3])


def _one(difference: MeasuredDifference) -> str:
    if difference.low is None or difference.high is None:
        return f"{difference.name} is not yet known ({difference.units} looks of devices)"
    span = f"{difference.low:+.3g} to {difference.high:+.3g}, margin {difference.margin:.3g}"
    return f"{difference.name} {difference.word}: {difference.difference:+.3g} ({span})"
