"""When plans are run: alerts and intervals, one run at a time, never too soon."""

import msgspec
import pytest

from cloud_hub.errors import Conflict, NotFound
from cloud_hub.events import Events
from cloud_hub.retraining import records
from cloud_hub.retraining.plan import Judging, RetrainPlan, Training, When
from cloud_hub.retraining.records import Run, RunState
from cloud_hub.retraining.triggers import Triggers
from cloud_hub.store.engine import Store
from support.clock import SetClock

HOUR = 3600.0
PLAN = RetrainPlan("nightly", "digits", Training(("train",)), Judging(("accuracy > champion",)))


@pytest.fixture
async def triggers(store: Store, events: Events, clock: SetClock) -> Triggers:
    found = Triggers(store, events, clock)
    await found.open()
    return found


async def runs(store: Store) -> list[Run]:
    async with store.read() as connection:
        return await records.runs(connection)


async def end(store: Store, clock: SetClock) -> None:
    async with store.write() as connection:
        for run in await records.live_runs(connection):
            ended = msgspec.structs.replace(run, state=RunState.REFUSED, finished_at=clock())
            await records.save_run(connection, ended)


async def alert(
    store: Store, events: Events, kind: str = "drift", module: str = "digits", name: str = "opened"
) -> None:
    async with store.write() as connection:
        await events.record(
            connection, f"alert.{name}", "hub", module, alert=7, alert_kind=kind, module=module, scope="fleet"
        )


def when(**values: object) -> RetrainPlan:
    return msgspec.structs.replace(PLAN, when=msgspec.convert(values, When))


async def test_an_alert_of_the_module_starts_a_run_once_it_has_settled(
    triggers: Triggers, store: Store, events: Events, clock: SetClock
) -> None:
    await triggers.put(when(alerts=["drift"], settle_s=HOUR), "alice")
    await alert(store, events)
    await triggers.tick()
    assert await runs(store) == []
    clock.advance(HOUR / 2)
    await alert(store, events)
    await triggers.tick()
    clock.advance(HOUR / 2)
    await triggers.tick()
    await triggers.tick()
    (run,) = await runs(store)
    assert (run.state, run.why) == (RunState.QUEUED, "drift alert 7 on fleet")


async def test_other_alerts_start_nothing(triggers: Triggers, store: Store, events: Events, clock: SetClock) -> None:
    await triggers.put(when(alerts=["drift"], settle_s=0.0), "alice")
    await alert(store, events, kind="quality")
    await alert(store, events, module="faces")
    await alert(store, events, name="resolved")
    clock.advance(HOUR)
    await triggers.tick()
    assert await runs(store) == []


async def test_alerts_during_a_run_and_in_the_pause_after_it_wait_and_are_not_lost(
    triggers: Triggers, store: Store, events: Events, clock: SetClock
) -> None:
    await triggers.put(when(alerts=["drift"], settle_s=0.0, pause_s=10 * HOUR), "alice")
    await alert(store, events)
    await triggers.tick()
    await alert(store, events)
    await triggers.tick()
    assert len(await runs(store)) == 1
    clock.advance(HOUR)
    await end(store, clock)
    again = Triggers(store, events, clock)  # the hub was started anew
    await again.open()
    await again.tick()
    assert len(await runs(store)) == 1
    clock.advance(9 * HOUR)
    await again.tick()
    assert len(await runs(store)) == 2


async def test_a_schedule_runs_again_and_again(triggers: Triggers, store: Store, clock: SetClock) -> None:
    await triggers.put(when(every_s=24 * HOUR, pause_s=0.0), "alice")
    for count in (1, 2):
        clock.advance(23.9 * HOUR)
        await triggers.tick()
        assert len(await runs(store)) == count - 1
        clock.advance(0.2 * HOUR)
        await triggers.tick()
        assert len(await runs(store)) == count
        await end(store, clock)
    assert {run.why for run in await runs(store)} == {"on schedule"}


async def test_a_plan_has_one_run_at_a_time_and_none_when_it_is_stopped(
    triggers: Triggers, store: Store, clock: SetClock, events: Events
) -> None:
    await triggers.put(PLAN, "alice")
    run = await triggers.start("nightly", "by hand", "alice")
    with pytest.raises(Conflict, match=f"run {run.id} is queued"):
        await triggers.start("nightly", "by hand", "alice")
    await end(store, clock)
    await triggers.stop("nightly", "alice")
    with pytest.raises(Conflict, match="was stopped"):
        await triggers.start("nightly", "by hand", "alice")
    await triggers.put(PLAN, "alice")
    assert (await triggers.start("nightly", "by hand", "alice")).state is RunState.QUEUED
    with pytest.raises(NotFound, match="no retraining plan weekly"):
        await triggers.start("weekly", "", "alice")
    kinds = [event.kind for event in await events.list()]
    assert kinds[::-1] == [
        "retrain-plan.created", "retrain.queued", "retrain-plan.stopped", "retrain-plan.changed", "retrain.queued",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"training": {"command": []}},
        {"training": {"command": ["x"], "files": {"../x": "0" * 64}}},
        {"training": {"command": ["x"], "image": "python:3"}},
        {"judging": {"accept": []}},
        {"judging": {"accept": ["good"]}},
        {"when": {"alerts": ["clone-suspected"]}},
        {"data": {"held_out": 0.0}},
        {"rollout": {"target": "==="}},
        {"rollout": {"target": "all", "groups": ["some"]}},
        {"name": "No Name"},
        {"unknown": 1},
    ],
)
def test_a_plan_that_says_nonsense_is_refused(wrong: dict[str, object]) -> None:
    good = msgspec.to_builtins(PLAN)
    assert msgspec.convert(good, RetrainPlan) == PLAN
    with pytest.raises((msgspec.ValidationError, Exception), match=r"expected|Invalid|unknown|Expected"):
        msgspec.convert(good | wrong, RetrainPlan)
