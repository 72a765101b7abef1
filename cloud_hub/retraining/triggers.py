"""When plans are run: after alerts, at intervals, by hand; one run of a plan at a time.

What is due stands in the plan's row before anything is done about it, so that a hub that was down starts what it owes.
Called by `room` at every tick.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.chain import Event
from cloud_hub.clock import Clock
from cloud_hub.errors import Conflict, NotFound
from cloud_hub.events import Events
from cloud_hub.outward.feed import EventFeed
from cloud_hub.retraining import records
from cloud_hub.retraining.candidate import ACTOR
from cloud_hub.retraining.plan import RetrainPlan
from cloud_hub.retraining.records import KnownPlan, Run
from cloud_hub.store.engine import Store

FEED: Final = "retraining"
OPENED: Final = frozenset({"alert.opened", "alert.reopened"})
PAGE: Final = 200


class Triggers:
    def __init__(self, store: Store, events: Events, clock: Clock) -> None:
        self._store, self._events, self._clock = store, events, clock
        self._feed = EventFeed(store, FEED)

    async def open(self) -> None:
        """From now on alerts are heard; those of before the first start are not."""
        async with self._store.write() as connection:
            await self._feed.open(connection)

    async def put(self, plan: RetrainPlan, actor: str) -> KnownPlan:
        """Makes the plan, or puts it in the place of the one of that name; a run under way goes on with the new one."""
        async with self._store.write() as connection:
            new = await records.put_plan(connection, plan, actor, self._clock())
            kind = "retrain-plan.created" if new else "retrain-plan.changed"
            await self._events.record(connection, kind, actor, plan.name, module=plan.module)
            return await records.get_plan(connection, plan.name)

    async def stop(self, name: str, actor: str) -> KnownPlan:
        """No further run starts, by itself or by hand. Raises NotFound `plan-not-found`."""
        async with self._store.write() as connection:
            await records.get_plan(connection, name)
            await records.change_plan(connection, name, stopped_at=self._clock(), due_at=None, due_why="")
            await self._events.record(connection, "retrain-plan.stopped", actor, name)
            return await records.get_plan(connection, name)

    async def start(self, name: str, why: str, actor: str) -> Run:
        """A run by hand, now. Raises NotFound `plan-not-found`, Conflict (`plan-stopped`, `run-under-way`)."""
        async with self._store.write() as connection:
            known = await records.get_plan(connection, name)
            if known.stopped_at is not None:
                raise Conflict("plan-stopped", f"plan {name} was stopped; create it again to run it")
            return await self._start(connection, known, why, actor)

    async def tick(self) -> None:
        """Hears alerts, and starts what is due."""
        await self._hear()
        now = self._clock()
        async with self._store.read() as connection:
            followed = await records.plans(connection, followed=True)
        for known in followed:
            due = _due(known)
            if due is not None and due[0] <= now:
                await self._start_due(known.plan.name, due[1])

    async def _start_due(self, name: str, why: str) -> None:
        async with self._store.write() as connection:
            try:
                known = await records.get_plan(connection, name)
            except NotFound:
                return
            if known.stopped_at is None and not await records.live_runs(connection, name):
                await self._start(connection, known, why, ACTOR)

    async def _start(self, connection: AsyncConnection, known: KnownPlan, why: str, actor: str) -> Run:
        live = await records.live_runs(connection, known.plan.name)
        if live:
            raise Conflict("run-under-way", f"plan {known.plan.name}: run {live[0].id} is {live[0].state}; wait for it")
        now = self._clock()
        run = await records.add_run(connection, known.plan, why, actor, now)
        await records.change_plan(connection, known.plan.name, last_run_at=now, due_at=None, due_why="")
        said = {"plan": run.plan, "module": run.module, "why": why}
        await self._events.record(connection, "retrain.queued", actor, run.id, **said)
        return run

    async def _hear(self) -> None:
        while events := await self._feed.read(PAGE):
            async with self._store.write() as connection:
                followed = await records.plans(connection, followed=True)
                for event in events:
                    for known in followed:
                        await self._note(connection, known, event)
                await self._feed.advance(connection, events[-1].id)

    async def _note(self, connection: AsyncConnection, known: KnownPlan, event: Event) -> None:
        """The first alert sets the time; further ones change nothing until the run has started."""
        if event.kind not in OPENED or event.details.get("module") != known.plan.module:
            return
        kind = str(event.details.get("alert_kind", ""))
        if kind not in known.plan.when.alerts:
            return
        current = await records.get_plan(connection, known.plan.name)
        if current.due_at is None:
            why = f"{kind} alert {event.details.get('alert', '')} on {event.details.get('scope', '')}"
            due = self._clock() + known.plan.when.settle_s
            await records.change_plan(connection, known.plan.name, due_at=due, due_why=why)


def _due(known: KnownPlan) -> tuple[float, str] | None:
    """When the next run may start, and why."""
    when, found = known.plan.when, []
    last = known.last_run_at
    if known.due_at is not None:
        found.append((known.due_at if last is None else max(known.due_at, last + when.pause_s), known.due_why))
    if when.every_s:
        start = known.created_at if last is None else last
        found.append((start + max(when.every_s, when.pause_s if last is not None else 0.0), "on schedule"))
    return min(found) if found else None
