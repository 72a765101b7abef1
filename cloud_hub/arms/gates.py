"""Answers the gates of rollouts: compares the candidate with what ran before, and looks at alerts. Run by `service`.

What the two say becomes one word, and while a group soaks the word is never fine. The controller takes the answer in
and acts on it; an answer that comes twice, or late, changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from datetime import UTC, datetime
from typing import Final

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.arms.alert_gate import look
from cloud_hub.arms.compare import Comparison, MeasuredDifference
from cloud_hub.arms.comparisons import Comparisons, Question
from cloud_hub.clock import Clock
from cloud_hub.errors import HubError
from cloud_hub.rollouts import reading, records
from cloud_hub.rollouts.controller import Controller
from cloud_hub.rollouts.gate import Answer, CompareGate, GateState, GateWord, together
from cloud_hub.rollouts.states import ExecutionState, Rollout, RolloutState
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import executions

LONGEST_PAUSE_S: Final = 60.0
SHORTEST_PAUSE_S: Final = 1.0
MOST_OF_A_KIND: Final = 10_000  # of which a comparison reads some hundred, by a hash of their ids
MOST_ASKED_BEFORE: Final = 500
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
            if rollout.plan.gated and rollout.gate is not None and rollout.gate.group == rollout.group_index:
                await self._answer(rollout, rollout.gate)

    async def _answer(self, rollout: Rollout, state: GateState) -> None:
        now = self._clock()
        answer = together(await self._answers(rollout))
        soaks_until = state.since + rollout.plan.soak_s
        if now < soaks_until:
            # What is fine now need not be at the end; what is worse now is worse.
            answer = together([answer, Answer("waiting", f"the group soaks until {in_utc(soaks_until)}")])
        taken = msgspec.structs.replace(state, word=answer.word, reason=answer.reason, at=now)
        await self._controller.answer_gate(rollout.id, taken)

    async def _answers(self, rollout: Rollout) -> list[Answer]:
        plan, answers = rollout.plan, []
        async with self._store.read() as connection:
            last = max(await records.counts(connection, rollout.id), default=0)
            if plan.alert_gate is not None:
                answers.append(await look(connection, rollout, plan.alert_gate))
        # Behind the last group nobody is left to compare with.
        if plan.gate is not None and rollout.group_index < last:
            answers.append(Answer(*await self._word(rollout, plan.gate)))
        return answers

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
    """Devices that are verified, and those that wait (the control), as many as are read; and the version before."""
    taking_part: list[str] = []
    for state in (ExecutionState.VERIFIED, ExecutionState.WAITING):
        query = select(executions.c.device).where(executions.c.rollout == rollout.id, executions.c.state == str(state))
        found = await connection.execute(query.order_by(executions.c.device).limit(MOST_OF_A_KIND))
        taking_part += found.scalars()
    return taking_part, gate.baseline or await _version_before(connection, rollout)


async def _version_before(connection: AsyncConnection, rollout: Rollout) -> int:
    """What most of the verified devices ran before, of some that say so; 0 for none."""
    query = select(executions.c.previous).where(
        executions.c.rollout == rollout.id, executions.c.state == str(ExecutionState.VERIFIED)
    )
    rows = (await connection.execute(query.limit(MOST_ASKED_BEFORE))).scalars()
    before = Counter(previous["version"] for previous in rows if previous)
    before.pop(rollout.version, None)
    common = before.most_common(1)
    return int(common[0][0]) if common else 0


def in_utc(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")


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
