"""The operator's machine as a runner of retraining: files over the hub's API. Used by `mooring retrain`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from cloud_hub.operator.datasets import check_digest
from cloud_hub.retraining.jobs import Job, TrainedCandidate
from cloud_hub.retraining.records import Run

if TYPE_CHECKING:
    from cloud_hub.operator.client import HubClient
    from cloud_hub.registry import ModelFile


class HttpCounter:
    """`cloud_hub.retraining.runner.Counter` over HTTP; digests are checked."""

    def __init__(self, hub: HubClient, name: str) -> None:
        self._hub, self._name = hub, name

    async def dataset_file(self, job: Job, file: ModelFile, target: Path) -> None:
        await self._hub.download_dataset_file(job.dataset.name, job.dataset.version, file.path, target)
        await asyncio.to_thread(check_digest, target, file.sha256)

    async def model_file(self, job: Job, file: ModelFile, target: Path) -> None:
        await self._hub.download_model_file(job.champion.name, job.champion.version, file.path, target)
        await asyncio.to_thread(check_digest, target, file.sha256)

    async def code_file(self, job: Job, path: str, target: Path) -> None:
        await self._hub.download_plan_file(job.plan.name, path, target)
        await asyncio.to_thread(check_digest, target, job.plan.training.files[path])

    async def keep(self, file: Path) -> str:
        return (await self._hub.upload(file)).sha256

    async def heard(self, job: Job, log: str) -> bool:
        return await self._hub.tell_retraining(job.run.id, self._name, log)

    async def made(self, job: Job, candidate: TrainedCandidate) -> Run:
        return await self._hub.hand_in(job.run.id, candidate)

    async def failed(self, job: Job, reason: str, log: str) -> Run:
        return await self._hub.fail_retraining(job.run.id, self._name, reason, log)
