"""Retraining in one value: what `service` builds, and `Rooms.retraining` is; and its work beside the API."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.datasets.book import DatasetBook
from cloud_hub.events import Events
from cloud_hub.packaging import Packaging
from cloud_hub.registry import Registry
from cloud_hub.retraining import records
from cloud_hub.retraining.candidate import Candidates
from cloud_hub.retraining.champion import Champions
from cloud_hub.retraining.desk import Desk
from cloud_hub.retraining.hub_runner import hub_runner, keep_training
from cloud_hub.retraining.records import KnownPlan, Run
from cloud_hub.retraining.runs import Runs
from cloud_hub.retraining.settings import RetrainingSettings
from cloud_hub.retraining.triggers import Triggers
from cloud_hub.rollouts.controller import Controller
from cloud_hub.store.engine import Store
from cloud_hub.trust.image import ImageRepository

TICK_S: Final = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retraining:
    store: Store
    blobs: Blobs
    settings: RetrainingSettings
    triggers: Triggers
    runs: Runs
    desk: Desk

    async def plan(self, name: str) -> KnownPlan:
        """Raises NotFound `plan-not-found`."""
        async with self.store.read() as connection:
            return await records.get_plan(connection, name)

    async def plans(self) -> list[KnownPlan]:
        async with self.store.read() as connection:
            return await records.plans(connection)

    async def run(self, run_id: str) -> Run:
        """Raises NotFound `run-not-found`."""
        async with self.store.read() as connection:
            return await records.get_run(connection, run_id)

    async def history(
        self, plan: str = "", state: str = "", limit: int = 100, after: tuple[float, str] | None = None
    ) -> list[Run]:
        """Newest first, behind the time and id of `after`."""
        async with self.store.read() as connection:
            return await records.runs(connection, plan, state, limit, after)

    async def tick(self) -> None:
        """Starts what is due, ends what is silent, and takes every run as far as it goes by now."""
        await self.triggers.tick()
        await self.desk.silence()
        async with self.store.read() as connection:
            live = await records.live_runs(connection)
        await asyncio.gather(*(self._take_on(run) for run in live))

    async def _take_on(self, run: Run) -> None:
        while (after := await self.runs.step(run)).state is not run.state:
            run = after

    async def work(self, tick_s: float = TICK_S) -> None:
        """Until cancelled, every `tick_s` seconds. With `commands` the hub is a runner, too."""
        tasks = [asyncio.create_task(self._keep_ticking(tick_s), name="retraining-ticks")]
        if self.settings.commands:
            runner = hub_runner(self.blobs, self.desk, self.settings.engine)
            tasks.append(asyncio.create_task(keep_training(runner, self.desk, tick_s), name="retraining-runner"))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _keep_ticking(self, tick_s: float) -> None:
        opened = False
        while True:
            try:
                if not opened:
                    await self.triggers.open()
                    opened = True
                await self.tick()
            except Exception:
                _log.exception("retraining could not be seen to; trying again in %s s", tick_s)
            await asyncio.sleep(tick_s)


def retraining(
    settings: RetrainingSettings,
    store: Store,
    blobs: Blobs,
    events: Events,
    clock: Clock,
    book: DatasetBook,
    registry: Registry,
    packaging: Packaging,
    image: ImageRepository,
    controller: Controller,
) -> Retraining:
    candidates = Candidates(store, blobs, registry, packaging, image, controller)
    runs = Runs(store, events, book, Champions(store, blobs, registry), candidates, clock)
    desk = Desk(store, blobs, book, registry, runs, clock, settings.silence_s)
    return Retraining(store, blobs, settings, Triggers(store, events, clock), runs, desk)
