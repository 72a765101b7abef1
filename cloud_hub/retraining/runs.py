"""What happens to runs: one step at a time, each written down before it is done.

    queued -> collecting -> waiting -> training -> judging -> registering -> building -> signing -> starting -> canary
                 |                        |           |                                     |
              skipped                  failed      refused                               unsigned      -> finished

A run in a state of the hub's is stepped on by `step`; after a crash the same step is taken again, and finds what it had
done. `waiting` and `training` belong to a runner (`desk`). Called by `service` through `room`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from cloud_hub.clock import Clock
from cloud_hub.datasets.book import DatasetBook
from cloud_hub.datasets.wishes import Dataset, NewDataset
from cloud_hub.errors import Conflict, HubError, Unavailable, Unprocessable
from cloud_hub.events import Events
from cloud_hub.retraining import records
from cloud_hub.retraining.candidate import ACTOR, Candidates, signing_command
from cloud_hub.retraining.champion import Champions
from cloud_hub.retraining.plan import DAY_S, RetrainPlan
from cloud_hub.retraining.records import ENDED, Result, Run, RunState
from cloud_hub.rollouts.states import ENDED as ROLLOUT_ENDED
from cloud_hub.rollouts.states import RolloutState
from cloud_hub.store.engine import Store

_log = logging.getLogger(__name__)
Next = tuple[RunState, Result]
Step = Callable[[Run, RetrainPlan], Awaitable[Next]]


class Runs:
    """All runs of the hub."""

    def __init__(
        self, store: Store, events: Events, book: DatasetBook, champions: Champions, candidates: Candidates,
        clock: Clock,
    ) -> None:  # fmt: skip
        self._store, self._events, self._clock = store, events, clock
        self._book, self._champions, self._candidates = book, champions, candidates
        self._steps: Final[dict[RunState, Step]] = {
            RunState.QUEUED: self._queued,
            RunState.COLLECTING: self._collect,
            RunState.JUDGING: self._judge,
            RunState.REGISTERING: self._register,
            RunState.BUILDING: self._build,
            RunState.SIGNING: self._sign,
            RunState.UNSIGNED: self._unsigned,
            RunState.STARTING: self._start,
            RunState.CANARY: self._canary,
        }

    async def step(self, run: Run) -> Run:
        """Takes the next step. What cannot be done ends the run as failed, with the reason."""
        step = self._steps.get(run.state)
        if step is None:
            return run
        try:
            async with self._store.read() as connection:
                plan = (await records.get_plan(connection, run.plan)).plan
            state, result = await step(run, plan)
        except Unavailable as error:
            _log.warning("retraining run %s: %s; trying again", run.id, error.message)
            return run
        except HubError as error:
            state, result = RunState.FAILED, _because(run.result, f"{run.state}: {error.message}")
        except Exception as error:
            _log.exception("retraining run %s: step %s failed", run.id, run.state)
            state, result = RunState.FAILED, _because(run.result, f"{run.state}: {type(error).__name__}: {error}")
        if (state, result) == (run.state, run.result):
            return run
        return await self.move(run, state, result)

    async def move(self, run: Run, state: RunState, result: Result, actor: str = ACTOR, **more: object) -> Run:
        """Writes the state down, if nobody has moved the run meanwhile; else gives what it is now."""
        now = self._clock()
        async with self._store.write() as connection:
            current = await records.get_run(connection, run.id)
            if (current.state, current.runner) != (run.state, run.runner):
                return current
            ended = now if state in ENDED else None
            moved = msgspec.structs.replace(
                current, state=state, result=result, changed_at=now, finished_at=ended, **more
            )  # fmt: skip
            await records.save_run(connection, moved)
            await self._events.record(
                connection, f"retrain.{state}", actor, run.id, plan=run.plan, module=run.module, reason=result.reason,
                version=result.version,
            )  # fmt: skip
        return moved

    async def cancel(self, run_id: str, actor: str, reason: str = "") -> Run:
        """Ends it; a runner that trains is told with its next word. A rollout that was started goes on.

        Raises NotFound `run-not-found`. One that has ended stays as it is.
        """
        async with self._store.read() as connection:
            run = await records.get_run(connection, run_id)
        while run.state not in ENDED:
            result = _because(run.result, f"cancelled by {actor}" + (f": {reason}" if reason else ""))
            run = await self.move(run, RunState.CANCELLED, result, actor)
        return run

    async def _queued(self, run: Run, plan: RetrainPlan) -> Next:
        champion = await self._champions.find(plan)
        _ = champion.onnx  # what cannot be compared in the end is not begun
        return RunState.COLLECTING, msgspec.structs.replace(run.result, champion=champion.model.version)

    async def _collect(self, run: Run, plan: RetrainPlan) -> Next:
        try:
            dataset = await self._book.of_run(run.id) or await self._book.build(_wanted(plan, run), ACTOR, run=run.id)
        except Unprocessable as error:
            if error.key != "dataset-empty":
                raise
            return RunState.SKIPPED, _because(run.result, error.message)
        result = msgspec.structs.replace(
            run.result, dataset=dataset.reference, dataset_name=dataset.name, dataset_version=dataset.version
        )
        if dataset.labelled_rows < plan.data.least_labelled:
            found, least = dataset.labelled_rows, plan.data.least_labelled
            why = f"expected at least {least} labelled rows (data.least_labelled), got {found}"
            return RunState.SKIPPED, _because(result, why)
        return RunState.WAITING, result

    async def _judge(self, run: Run, plan: RetrainPlan) -> Next:
        champion = await self._champions.find(plan, run.result.champion)
        verdict, reference = await self._candidates.judge(run, plan, champion, await self._dataset(run))
        result = msgspec.structs.replace(run.result, verdict=verdict, reference=reference)
        if not verdict.accepted:
            return RunState.REFUSED, _because(result, verdict.why)
        return RunState.REGISTERING, result

    async def _register(self, run: Run, plan: RetrainPlan) -> Next:
        version = await self._candidates.register(run, plan)
        return RunState.BUILDING, msgspec.structs.replace(run.result, version=version)

    async def _build(self, run: Run, plan: RetrainPlan) -> Next:
        champion = await self._champions.find(plan, run.result.champion)
        built = await self._candidates.build(run, champion)
        return RunState.SIGNING, msgspec.structs.replace(run.result, modules=built)

    async def _sign(self, run: Run, plan: RetrainPlan) -> Next:
        if await self._candidates.sign(run):
            return self._signed(run, plan)
        return RunState.UNSIGNED, msgspec.structs.replace(
            run.result, reason="waiting for the publisher's signature", next=signing_command(run)
        )

    async def _unsigned(self, run: Run, plan: RetrainPlan) -> Next:
        if await self._candidates.is_signed(run):
            return self._signed(run, plan)
        return run.state, run.result

    def _signed(self, run: Run, plan: RetrainPlan) -> Next:
        result = msgspec.structs.replace(run.result, reason="", next="")
        if plan.rollout is None:
            version = f"{run.module}:{result.version}"
            command = f"mooring rollout create {version} --target all --start"
            return RunState.FINISHED, msgspec.structs.replace(result, reason=f"{version} is signed", next=command)
        return RunState.STARTING, result

    async def _start(self, run: Run, plan: RetrainPlan) -> Next:
        try:
            rollout = await self._candidates.roll_out(run, plan)
        except Conflict as error:
            if error.key != "device-in-rollout":
                raise
            return run.state, _because(run.result, error.message)  # asked again until the other rollout has ended
        return RunState.CANARY, msgspec.structs.replace(run.result, rollout=rollout, reason="")

    async def _canary(self, run: Run, plan: RetrainPlan) -> Next:
        rollout = await self._candidates.rollout(run.result.rollout)
        if rollout.state not in ROLLOUT_ENDED:
            return run.state, run.result
        ended = f"rollout {rollout.id} {rollout.state}" + (f": {rollout.reason}" if rollout.reason else "")
        good = rollout.state is RolloutState.FINISHED
        return (RunState.FINISHED if good else RunState.FAILED), _because(run.result, ended)

    async def _dataset(self, run: Run) -> Dataset:
        return await self._book.get(run.result.dataset_name, run.result.dataset_version)


def _wanted(plan: RetrainPlan, run: Run) -> NewDataset:
    data = plan.data
    return NewDataset(
        name=plan.name,
        module=plan.module,
        since=run.created_at - data.days * DAY_S,
        target=data.target,
        strata=data.strata,
        labelled_only=data.labelled_only,
        held_out=data.held_out,
        base=data.base,
        base_path=data.base_path,
    )


def _because(result: Result, reason: str) -> Result:
    return msgspec.structs.replace(result, reason=reason[:2000])
