"""An alert says what else happened when the change began, of what can have to do with it, and nothing else."""

import numpy as np
import pytest

from cloud_hub.blobs import Blobs
from cloud_hub.events import Events
from cloud_hub.monitoring.causes import causes_of
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import executions, rollouts
from support.clock import SetClock
from support.monitoring import LOOK_S, Monitored, build_module
from support.watched import Fleet

HOUR_S = 3600.0


async def record(events: Events, store: Store, kind: str, subject: str, **details: object) -> None:
    async with store.write() as connection:
        await events.record(connection, kind, "ann", subject, **details)


async def roll_out(store: Store, number: str, devices: list[str], module: str = "digits") -> None:
    rollout = {"id": number, "module": module, "version": 4, "target": "all", "plan": {}, "state": "running"}
    part = {"rollout": number, "group_index": 0, "state": "committed", "director_version": 1}
    async with store.write() as connection:
        await connection.execute(rollouts.insert().values(**rollout, reason="", group_index=0, created_at=0.0))
        for device in devices:
            await connection.execute(executions.insert().values(**part, device=device, reason_key="", reason=""))


async def told(store: Store, devices: list[str], since: float) -> list[tuple[str, str]]:
    async with store.read() as connection:
        return [(one.kind, one.text) for one in await causes_of(connection, "digits", devices, since, LOOK_S)]


async def test_only_what_came_shortly_before_and_can_have_to_do_with_it_is_told(
    store: Store, events: Events, clock: SetClock
) -> None:
    await record(events, store, "agent.update-committed", "cam-1", text="long ago")
    clock.advance(3 * HOUR_S)
    await roll_out(store, "r4", ["cam-1", "cam-2"])
    await roll_out(store, "r5", ["cam-9"])
    await record(events, store, "rollout.started", "r4")
    await record(events, store, "rollout.started", "r5")
    await record(events, store, "session.opened", "bob")
    await record(events, store, "alert.opened", "digits")
    clock.advance(600.0)
    await record(events, store, "device.tagged", "cam-1", after={"site": "south"})
    await record(events, store, "device.tagged", "cam-9", after={"site": "south"})
    since = clock() + 60.0
    clock.advance(HOUR_S)
    await record(events, store, "agent.worker-crashed", "cam-1", text="too late")
    assert await told(store, ["cam-1"], since) == [
        ("device.tagged", "tags became {'site': 'south'}"),
        ("rollout.started", "rollout of digits:4"),
    ]
    assert len(await told(store, [], since)) == 3  # of any device: the same on two is told once


async def test_the_same_on_many_devices_is_told_once(store: Store, events: Events, clock: SetClock) -> None:
    devices = [f"cam-{place}" for place in range(5)]
    for device in devices:
        await record(events, store, "agent.update-committed", device, text="director version 7 (mooring-agent 2)")
    assert await told(store, devices, clock()) == [
        ("agent.update-committed", "director version 7 (mooring-agent 2) (and 4 more)")
    ]


@pytest.mark.parametrize("since", [0.0, 10.0])
async def test_where_nothing_happened_or_nobody_knows_since_when_nothing_is_told(
    store: Store, events: Events, since: float
) -> None:
    assert await told(store, [], since) == []
    await record(events, store, "agent.update-committed", "cam-1", text="now")
    assert await told(store, [], since) == []


async def test_an_alert_is_opened_with_what_happened_then(
    store: Store, blobs: Blobs, events: Events, clock: SetClock
) -> None:
    hub = Monitored(store, blobs, events, clock)
    fleet = Fleet(hub, await build_module(store, blobs, _training()), ("cam-1", "cam-2", "cam-3"), 2)
    await fleet.live(3)
    await record(events, store, "agent.update-committed", "cam-2", text="director version 7 (mooring-agent 2)")
    await fleet.live(4, {"cam-2": lambda: fleet.rows(1.2)})
    (alert,) = await fleet.open()
    assert [cause.kind for cause in alert.evidence.causes] == ["agent.update-committed"]
    assert alert.evidence.causes[0].subject == "cam-2"


def _training() -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    return np.random.default_rng(5).normal(size=(3000, 2))
