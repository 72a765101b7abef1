"""Where runners come for work and bring what came of it. Who trains must be heard of, or the run has failed.

Called by the API for runners elsewhere, and by `hub_runner` for the hub's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.datasets.book import DatasetBook
from cloud_hub.errors import Conflict
from cloud_hub.registry import ModelFile, Registry, check_files
from cloud_hub.retraining import records
from cloud_hub.retraining.jobs import Job, TrainedCandidate
from cloud_hub.retraining.records import LOG_CHARS, Run, RunState
from cloud_hub.retraining.runs import Runs
from cloud_hub.store.engine import Store


class Desk:
    def __init__(
        self, store: Store, blobs: Blobs, book: DatasetBook, registry: Registry, runs: Runs, clock: Clock,
        silence_s: float,
    ) -> None:  # fmt: skip
        self._store, self._blobs, self._book, self._registry = store, blobs, book, registry
        self._runs, self._clock, self._silence_s = runs, clock, silence_s

    async def claim(self, runner: str, plans: Collection[str] = (), run_id: str = "") -> Job | None:
        """The oldest run that waits, of these plans or of any; it is the runner's from now on."""
        async with self._store.read() as connection:
            waiting = [run for run in await records.live_runs(connection) if run.state is RunState.WAITING]
        for run in waiting:
            if (plans and run.plan not in plans) or (run_id and run.id != run_id):
                continue
            mine = await self._runs.move(
                run, RunState.TRAINING, run.result, runner, runner=runner, heard_at=self._clock()
            )
            if mine.runner == runner and mine.state is RunState.TRAINING:
                return await self._job(mine)
        return None

    async def heard(self, run_id: str, runner: str, log: str = "") -> bool:
        """The runner is there. Whether it is to go on: not when the run was cancelled, or is somebody else's."""
        async with self._store.write() as connection:
            run = await records.get_run(connection, run_id)
            if run.state is not RunState.TRAINING or run.runner != runner:
                return False
            result = msgspec.structs.replace(run.result, log=log[-LOG_CHARS:])
            await records.save_run(connection, msgspec.structs.replace(run, heard_at=self._clock(), result=result))
        return True

    async def made(self, run_id: str, candidate: TrainedCandidate) -> Run:
        """Raises Conflict `run-not-yours`, BadRequest `files-invalid`, NotFound `blob-not-found`."""
        run = await self._mine(run_id, candidate.runner)
        sizes = {path: (sha256, await self._blobs.size(sha256)) for path, sha256 in candidate.files.items()}
        await check_files(self._blobs, sizes)
        if candidate.reference:
            await self._blobs.size(candidate.reference)
        result = msgspec.structs.replace(
            run.result,
            files=tuple(ModelFile(path, size, sha256) for path, (sha256, size) in sorted(sizes.items())),
            given_reference=candidate.reference,
            training_s=candidate.seconds,
            log=candidate.log[-LOG_CHARS:],
            git_commit=candidate.git_commit,
            mlflow_run=candidate.mlflow_run,
            mlflow_uri=candidate.mlflow_uri,
        )
        return await self._runs.move(run, RunState.JUDGING, result, candidate.runner)

    async def failed(self, run_id: str, runner: str, reason: str, log: str = "") -> Run:
        """Raises Conflict `run-not-yours`."""
        run = await self._mine(run_id, runner)
        result = msgspec.structs.replace(run.result, reason=reason[:2000], log=(log or run.result.log)[-LOG_CHARS:])
        return await self._runs.move(run, RunState.FAILED, result, runner)

    async def silence(self) -> None:
        """Ends runs whose runner has not been heard of."""
        async with self._store.read() as connection:
            training = [run for run in await records.live_runs(connection) if run.state is RunState.TRAINING]
        for run in training:
            if self._clock() - (run.heard_at or run.changed_at) > self._silence_s:
                why = f"runner {run.runner} was not heard of for {self._silence_s:g} s (retraining.silence_s)"
                await self._runs.move(run, RunState.FAILED, msgspec.structs.replace(run.result, reason=why))

    async def let_go(self, runners: Mapping[str, str]) -> None:
        """Ends the runs of these runners, which are no more, with a reason for each: called at the start of a hub."""
        async with self._store.read() as connection:
            training = [run for run in await records.live_runs(connection) if run.state is RunState.TRAINING]
        for run in training:
            if run.runner in runners:
                result = msgspec.structs.replace(run.result, reason=runners[run.runner])
                await self._runs.move(run, RunState.FAILED, result)

    async def _mine(self, run_id: str, runner: str) -> Run:
        async with self._store.read() as connection:
            run = await records.get_run(connection, run_id)
        if run.state is not RunState.TRAINING or run.runner != runner:
            raise Conflict(
                "run-not-yours",
                f"run {run_id} is {run.state} ({run.result.reason or 'no reason given'}) and not with runner {runner}; "
                "what was made is not taken",
            )
        return run

    async def _job(self, run: Run) -> Job:
        async with self._store.read() as connection:
            plan = (await records.get_plan(connection, run.plan)).plan
        dataset = await self._book.get(run.result.dataset_name, run.result.dataset_version)
        return Job(run, plan, dataset, await self._registry.get(run.module, run.result.champion))
