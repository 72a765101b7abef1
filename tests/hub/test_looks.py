"""Windows merge into looks exactly, in any order."""

import itertools

import numpy as np
import pytest
from sqlalchemy import select

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.events import Events
from cloud_hub.monitoring.looks import FLEET, TICK, Group, latest_of, look_start, moment_ticks, series
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import looks
from modules.windows import Window
from support.monitoring import LOOK_S, Built, Monitored, build_module, make_window

RANDOM = np.random.default_rng(11)


def test_a_look_holds_its_own_end_and_not_its_start() -> None:
    assert [look_start(end, 60.0) for end in (60.0, 60.001, 119.9, 120.0)] == [0.0, 60.0, 60.0, 60.0]


def test_moments_are_kept_as_whole_ticks_also_when_they_are_wild() -> None:
    moments = np.array([1.5, -2.0, np.nan, np.inf, -1e30], np.float32)
    assert (moment_ticks(moments) * TICK).tolist() == [1.5, -2.0, 0.0, 2.0**30, -(2.0**30)]


async def test_looks_do_not_depend_on_the_order_or_grouping_of_windows(
    store: Store, blobs: Blobs, events: Events, clock: Clock
) -> None:
    built = await build_module(store, blobs, RANDOM.normal(size=(500, 3)))
    now = clock()
    windows = [
        make_window(built, RANDOM.normal(size=(7 + i, 3)) * 10.0 ** (i - 2), now - 200 + 37 * i) for i in range(5)
    ]
    seen = set()
    for number, order in enumerate(itertools.islice(itertools.permutations(windows), 0, 120, 24)):
        hub = Monitored(store, blobs, events, clock)
        device = f"edge-{number}"
        for window in order:
            await hub.send(device, window)
        seen.add(await _stored(store, device))
    hub = Monitored(store, blobs, events, clock)
    await hub.send("edge-at-once", *windows)
    seen.add(await _stored(store, "edge-at-once"))
    assert len(seen) == 1


async def test_the_fleet_is_the_sum_of_its_devices(store: Store, blobs: Blobs, events: Events, clock: Clock) -> None:
    built = await build_module(store, blobs, RANDOM.normal(size=(500, 2)))
    hub = Monitored(store, blobs, events, clock)
    for device in ("edge-a", "edge-b", "edge-c"):
        await hub.send(device, *(_window(built, clock() - 60 * i) for i in range(3)))
    watched = await hub.references.get(built.manifest_sha256)
    assert watched is not None
    async with store.read() as connection:
        parts = [
            await series(connection, watched.layout, Group(built.manifest_sha256, device))
            for device in ("edge-a", "edge-b", "edge-c")
        ]
        fleet = await series(connection, watched.layout, Group(built.manifest_sha256, FLEET))
    assert (fleet.counts == sum(part.counts for part in parts)).all()
    assert (fleet.moments == sum(part.moments for part in parts)).all()
    assert len(fleet) == 3


async def test_only_the_latest_looks_are_read_oldest_first(
    store: Store, blobs: Blobs, events: Events, clock: Clock
) -> None:
    built = await build_module(store, blobs, RANDOM.normal(size=(100, 2)))
    hub = Monitored(store, blobs, events, clock)
    await hub.send("edge-a", *(_window(built, clock() - LOOK_S * i) for i in range(6)))
    watched = await hub.references.get(built.manifest_sha256)
    assert watched is not None
    async with store.read() as connection:
        found = await series(connection, watched.layout, Group(built.manifest_sha256, "edge-a"), limit=4)
    newest = look_start(clock(), LOOK_S)
    assert found.starts == tuple(newest - LOOK_S * i for i in (3, 2, 1, 0))


async def test_summaries_count_predictions_errors_and_latency(
    store: Store, blobs: Blobs, events: Events, clock: Clock
) -> None:
    built = await build_module(store, blobs, RANDOM.normal(size=(100, 2)))
    hub = Monitored(store, blobs, events, clock)
    await hub.send("edge-a", _window(built, clock()), _window(built, clock() - 1))
    (summary,) = await hub.reports.looks(built.name, 1, "edge-a")
    assert (summary.windows, summary.rows, summary.errors) == (2, 40, 0)
    assert summary.latency_p50_ms == summary.latency_p99_ms == 1.024
    assert await hub.reports.looks(built.name, 2, "edge-a") == []


def _window(built: Built, end: float) -> Window:
    return make_window(built, RANDOM.normal(size=(20, 2)), end)


async def _stored(store: Store, device: str) -> tuple[object, ...]:
    columns = (looks.c.start, looks.c.windows, looks.c.rows, looks.c.counts, looks.c.moments, looks.c.latency)
    async with store.read() as connection:
        rows = await connection.execute(select(*columns).where(looks.c.device == device).order_by(looks.c.start))
        return tuple(tuple(row) for row in rows)


async def test_looks_of_many_devices_read_at_once_are_those_of_each(
    store: Store, blobs: Blobs, events: Events, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_hub.monitoring.looks.MAX_LOOKS", 4)
    built = await build_module(store, blobs, RANDOM.normal(size=(100, 2)))
    hub = Monitored(store, blobs, events, clock)
    for device, past in (("edge-few", 2), ("edge-full", 4), ("edge-old", 9)):
        await hub.send(device, *(_window(built, clock() - LOOK_S * i) for i in range(past)))
    watched = await hub.references.get(built.manifest_sha256)
    assert watched is not None
    scopes = ("edge-few", "edge-full", "edge-old", "edge-never", FLEET)
    async with store.read() as connection:
        together = await latest_of(connection, watched.layout, built.manifest_sha256, scopes)
        for scope in set(scopes) - {"edge-never"}:
            alone = await series(connection, watched.layout, Group(built.manifest_sha256, scope), limit=4)
            assert together[scope].starts == alone.starts
            assert (together[scope].counts == alone.counts).all()
    assert {scope: len(found) for scope, found in together.items()} == {
        "edge-few": 2, "edge-full": 4, "edge-old": 4, FLEET: 4,
    }  # fmt: skip
