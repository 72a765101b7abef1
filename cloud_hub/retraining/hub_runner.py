"""The hub as a runner, where its settings allow it: commands as children of its own, files straight from its blobs.

A command ends with the hub, also with one that is killed; the run has failed then, and says so at the next start.
Called by `room`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import Final

from cloud_hub.blobs import Blobs
from cloud_hub.registry import ModelFile
from cloud_hub.retraining.desk import Desk
from cloud_hub.retraining.jobs import Job, TrainedCandidate
from cloud_hub.retraining.records import Run
from cloud_hub.retraining.runner import Runner

NAME: Final = "hub"
INHERITED: Final = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH")
_log = logging.getLogger(__name__)


class HubCounter:
    """`runner.Counter` without a network."""

    def __init__(self, blobs: Blobs, desk: Desk) -> None:
        self._blobs, self._desk = blobs, desk

    async def dataset_file(self, job: Job, file: ModelFile, target: Path) -> None:
        await self._copy(file.sha256, target)

    async def model_file(self, job: Job, file: ModelFile, target: Path) -> None:
        await self._copy(file.sha256, target)

    async def code_file(self, job: Job, path: str, target: Path) -> None:
        await self._copy(job.plan.training.files[path], target)

    async def keep(self, file: Path) -> str:
        return await self._blobs.put_file(file)

    async def heard(self, job: Job, log: str) -> bool:
        return await self._desk.heard(job.run.id, NAME, log)

    async def made(self, job: Job, candidate: TrainedCandidate) -> Run:
        return await self._desk.made(job.run.id, candidate)

    async def failed(self, job: Job, reason: str, log: str) -> Run:
        return await self._desk.failed(job.run.id, NAME, reason, log)

    async def _copy(self, sha256: str, target: Path) -> None:
        await self._blobs.copy(sha256, target)


def hub_runner(blobs: Blobs, desk: Desk, engine: str) -> Runner:
    """With an engine only plans with an image are run: a command of the plan never has the hub's own machine."""
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return Runner(NAME, HubCounter(blobs, desk), environment, None, engine)


async def keep_training(runner: Runner, desk: Desk, poll_s: float) -> None:
    """One job after the other, until cancelled; looks for one every `poll_s` seconds."""
    begun = False
    while True:
        try:
            if not begun:
                await desk.let_go({NAME: "the hub was ended while it trained; start the run again"})
                begun = True
            job = await desk.claim(NAME)
            if job is not None:
                await _do(runner, desk, job)
        except Exception:
            _log.exception("a retraining run could not be trained; trying the next in %s s", poll_s)
        await asyncio.sleep(poll_s)


async def _do(runner: Runner, desk: Desk, job: Job) -> None:
    if runner.engine and not job.plan.training.image:
        text = "this hub runs training in containers only (retraining.engine): the plan needs an image"
        await desk.failed(job.run.id, NAME, text)
        return
    try:
        await runner.do(job)
    except Exception as error:
        _log.exception("retraining run %s could not be trained", job.run.id)
        with contextlib.suppress(Exception):
            await desk.failed(job.run.id, NAME, f"{type(error).__name__}: {error}")
