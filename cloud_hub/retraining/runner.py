"""Does one job: fetches what it needs, runs the command, keeps telling that it is there, hands the candidate in.

The same at the operator's (`mooring retrain run`, `mooring retrain work`) and in the hub (`hub_runner`); where files
come from and go to is the `Counter`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import msgspec

from cloud_hub.datasets.wishes import ABOUT as DATASET_ABOUT
from cloud_hub.registry import ModelFile
from cloud_hub.retraining.container import in_container
from cloud_hub.retraining.executing import (
    REFERENCE,
    Folders,
    Log,
    TrainingFailed,
    about,
    candidate_files,
    execute,
)
from cloud_hub.retraining.jobs import Job, TrainedCandidate
from cloud_hub.retraining.records import Run

HEARD_EVERY_S: Final = 10.0
GIT_DEADLINE_S: Final = 5.0


class ToldOff(Exception):
    """The hub wants no more of the run: it was cancelled, or is somebody else's."""


class Counter(Protocol):
    """What a runner asks of the hub."""

    async def dataset_file(self, job: Job, file: ModelFile, target: Path) -> None: ...
    async def model_file(self, job: Job, file: ModelFile, target: Path) -> None: ...
    async def code_file(self, job: Job, path: str, target: Path) -> None: ...
    async def keep(self, file: Path) -> str: ...
    async def heard(self, job: Job, log: str) -> bool: ...
    async def made(self, job: Job, candidate: TrainedCandidate) -> Run: ...
    async def failed(self, job: Job, reason: str, log: str) -> Run: ...


@dataclass(frozen=True)
class Runner:
    """`place` is where commands of plans without files start; None: only plans with files. `engine` is the address of
    the container engine for plans with an image. `environment` is what commands inherit.
    """

    name: str
    counter: Counter
    environment: Mapping[str, str]
    place: Path | None = None
    engine: str = ""
    said: Callable[[bytes], None] = field(default=lambda _: None)

    async def do(self, job: Job) -> Run:
        """The run afterwards: with the candidate handed in, or failed; as it was where the hub ended it.

        A cancellation, and what the hub refuses, ends the command and fails the run.
        """
        log, started = Log(), time.monotonic()
        root = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="mooring-retrain-"))
        try:
            async with self._present(job, log) as told_off:
                folders = await self._fetch(job, root)
                await self._execute(job, folders, log, told_off)
                candidate = await self._collect(folders, log, time.monotonic() - started)
            return await self.counter.made(job, candidate)
        except ToldOff:
            return job.run
        except TrainingFailed as error:
            return await self.counter.failed(job, str(error), log.text)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await asyncio.shield(self.counter.failed(job, f"runner {self.name} was stopped", log.text))
            raise
        except Exception as error:
            with contextlib.suppress(Exception):
                await self.counter.failed(job, f"runner {self.name}: {error}", log.text)
            raise
        finally:
            await asyncio.to_thread(shutil.rmtree, root, True)

    async def _fetch(self, job: Job, root: Path) -> Folders:
        training = job.plan.training
        if not training.files and self.place is None:
            raise TrainingFailed("the plan has no files, and this runner no folder of its own to run commands in")
        work = root / "code" if training.files or self.place is None else self.place
        folders = Folders(root, work)
        for folder in (root / "code", folders.dataset, folders.base_model, folders.output):
            folder.mkdir()
        for path in training.files:
            await self.counter.code_file(job, path, _below(root / "code", path))
        for file in job.dataset.files:
            await self.counter.dataset_file(job, file, _below(folders.dataset, file.path))
        for file in job.champion.files:
            await self.counter.model_file(job, file, _below(folders.base_model, file.path))
        about_it = msgspec.json.format(msgspec.json.encode(job.dataset), indent=2)
        (folders.dataset / DATASET_ABOUT).write_bytes(about_it + b"\n")
        return folders

    async def _execute(self, job: Job, folders: Folders, log: Log, told_off: asyncio.Event) -> None:
        training = job.plan.training
        environment = folders.environment(self.environment, job.run.id, job.plan.name)
        command = training.command
        if training.image:
            if not self.engine:
                raise TrainingFailed("the plan has an image, and this runner no container engine (--engine)")
            command = in_container(self.engine, training, folders, job.run.id, job.plan.name)
        work = asyncio.create_task(
            execute(command, folders, environment, training.deadline_s, log, self.said), name="training"
        )
        watch = asyncio.create_task(told_off.wait(), name="told-off")
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ToldOff
            await work
        finally:
            watch.cancel()
            work.cancel()
            await asyncio.wait({work, watch})

    async def _collect(self, folders: Folders, log: Log, seconds: float) -> TrainedCandidate:
        files = candidate_files(folders)
        said = about(folders)
        reference = folders.output / REFERENCE
        return TrainedCandidate(
            runner=self.name,
            files={path: await self.counter.keep(file) for path, file in files.items()},
            reference=await self.counter.keep(reference) if reference.is_file() else "",
            seconds=round(seconds, 3),
            log=log.text,
            git_commit=said.git_commit or await head_of(folders.work),
            mlflow_run=said.mlflow_run,
            mlflow_uri=said.mlflow_uri or (self.environment.get("MLFLOW_TRACKING_URI", "") if said.mlflow_run else ""),
        )

    @asynccontextmanager
    async def _present(self, job: Job, log: Log) -> AsyncIterator[asyncio.Event]:
        """The hub hears of the runner inside; the event is set when it wants no more of it."""
        told_off = asyncio.Event()

        async def tell() -> None:
            while True:
                await asyncio.sleep(HEARD_EVERY_S)
                with contextlib.suppress(OSError, TimeoutError):
                    if not await self._heard(job, log):
                        told_off.set()
                        return

        task = asyncio.create_task(tell(), name="heard")
        try:
            yield told_off
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _heard(self, job: Job, log: Log) -> bool:
        """A hub that does not answer now may do so later: the training goes on."""
        try:
            return await self.counter.heard(job, log.text)
        except asyncio.CancelledError:
            raise
        except Exception:
            return True


def _below(folder: Path, path: str) -> Path:
    """Raises TrainingFailed for a path that leads out of the folder."""
    target = folder / path
    if not target.resolve().is_relative_to(folder.resolve()):
        raise TrainingFailed(f"{path[:200]}: expected a path inside its folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


async def head_of(folder: Path) -> str:
    """The commit checked out there; empty outside a repository or without git."""
    try:
        process = await asyncio.create_subprocess_exec(
            "git", "-C", str(folder), "rev-parse", "HEAD", stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL, env={"PATH": os.environ.get("PATH", "")},
        )  # fmt: skip
        text, _ = await asyncio.wait_for(process.communicate(), GIT_DEADLINE_S)
    except (OSError, TimeoutError):
        return ""
    return text.decode().strip() if process.returncode == 0 else ""
