"""What devices send is committed exactly once; what cannot be used is told and never holds up the stream."""

import asyncio
from typing import Any

import msgspec
import numpy as np
import pytest
from sqlalchemy import func, insert, select

from cloud_hub.blobs import Blobs
from cloud_hub.chain import Event
from cloud_hub.clock import Clock
from cloud_hub.events import Events
from cloud_hub.monitoring.ingest import Ingest
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices, looks, samples, windows
from modules.messages import MAX_BATCH_ITEMS, Ack, AgentEvent, Batch, encode
from modules.windows import Window, encode_window, pack_counts
from support.monitoring import LOOK_S, Built, Monitored, build_module, make_sample, make_window

RANDOM = np.random.default_rng(5)
DEVICE = "edge-a"


@pytest.fixture
def hub(store: Store, blobs: Blobs, events: Events, clock: Clock) -> Monitored:
    return Monitored(store, blobs, events, clock)


@pytest.fixture
async def built(store: Store, blobs: Blobs) -> Built:
    return await build_module(store, blobs, RANDOM.normal(size=(300, 2)))


def window(built: Built, end: float, rows: int = 10) -> Window:
    return make_window(built, RANDOM.normal(size=(rows, 2)), end)


def batch(first: int, *bodies: bytes, previous: int | None = None, epoch: str = "life") -> Batch:
    before = first - 1 if previous is None else previous
    return Batch("window", epoch, before, tuple(enumerate(bodies, first)))


async def counted(store: Store) -> int:
    """Rows in the fleet's looks."""
    async with store.read() as connection:
        query = select(func.sum(looks.c.rows)).where(looks.c.device == "*")
        return (await connection.execute(query)).scalar_one() or 0


async def number_of(store: Store, table: Any) -> int:
    async with store.read() as connection:
        return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())


async def refusals(events: Events, kind: str = "window.refused") -> list[Event]:
    return await events.list(kind=kind)


async def test_a_batch_is_acknowledged_up_to_its_last_entry(hub: Monitored, built: Built) -> None:
    bodies = [encode_window(window(built, hub.clock() - i)) for i in range(3)]
    assert await hub.ingest.commit(DEVICE, batch(1, *bodies)) == Ack("window", "life", 3)
    assert await counted(hub.store) == 30


async def test_a_batch_that_comes_twice_counts_once(hub: Monitored, built: Built) -> None:
    same = batch(1, encode_window(window(built, hub.clock())))
    assert await hub.ingest.commit(DEVICE, same) == await hub.ingest.commit(DEVICE, same) == Ack("window", "life", 1)
    assert await counted(hub.store) == 10
    assert await number_of(hub.store, windows) == 1


async def test_the_same_batch_many_times_at_once_counts_once(hub: Monitored, built: Built) -> None:
    same = batch(1, *(encode_window(window(built, hub.clock() - i)) for i in range(4)))
    acks = await asyncio.gather(*(hub.ingest.commit(DEVICE, same) for _ in range(8)))
    assert set(acks) == {Ack("window", "life", 4)}
    assert await counted(hub.store) == 40
    assert await number_of(hub.store, windows) == 4


async def test_an_overlapping_batch_adds_only_what_is_new(hub: Monitored, built: Built) -> None:
    bodies = [encode_window(window(built, hub.clock() - i)) for i in range(5)]
    await hub.ingest.commit(DEVICE, batch(1, *bodies[:3]))
    assert await hub.ingest.commit(DEVICE, batch(2, *bodies[1:])) == Ack("window", "life", 5)
    assert await counted(hub.store) == 50


async def test_a_batch_that_follows_entries_not_here_is_not_taken(hub: Monitored, built: Built) -> None:
    body = encode_window(window(built, hub.clock()))
    assert await hub.ingest.commit(DEVICE, batch(5, body)) is None
    assert await counted(hub.store) == 0


async def test_entries_that_the_device_had_to_drop_do_not_stop_its_stream(hub: Monitored, built: Built) -> None:
    body = encode_window(window(built, hub.clock()))
    await hub.ingest.commit(DEVICE, batch(1, body))
    assert await hub.ingest.commit(DEVICE, batch(9, body, previous=1)) == Ack("window", "life", 9)


async def test_a_new_epoch_starts_anew(hub: Monitored, built: Built) -> None:
    body = encode_window(window(built, hub.clock()))
    await hub.ingest.commit(DEVICE, batch(1, body))
    assert await hub.ingest.commit(DEVICE, batch(1, body, epoch="next")) == Ack("window", "next", 1)
    assert await counted(hub.store) == 20


async def test_an_empty_batch_says_where_the_stream_stands(hub: Monitored, built: Built) -> None:
    await hub.ingest.commit(DEVICE, batch(1, encode_window(window(built, hub.clock()))))
    assert await hub.ingest.commit(DEVICE, batch(2)) == Ack("window", "life", 1)


async def test_a_batch_longer_than_allowed_is_taken_up_to_the_limit(hub: Monitored) -> None:
    bodies = [encode(AgentEvent(1.0, "info", "tick", str(i))) for i in range(MAX_BATCH_ITEMS + 5)]
    long = Batch("event", "life", 0, tuple(enumerate(bodies, 1)))
    assert await hub.ingest.commit(DEVICE, long) == Ack("event", "life", MAX_BATCH_ITEMS)


@pytest.mark.parametrize(
    "wrong",
    [
        Batch("window", "", 0, ()),
        Batch("window", "e" * 64, 0, ()),
        Batch("window", "life", -1, ()),
        Batch("window", "life", 0, ((1, b""), (1, b""))),
        Batch("window", "life", 0, ((0, b""),)),
        Batch("window", "life", 0, ((2**63, b""),)),
    ],
)
async def test_what_is_no_batch_is_not_taken(hub: Monitored, wrong: Batch) -> None:
    assert await hub.ingest.commit(DEVICE, wrong) is None


async def test_a_malformed_entry_is_told_and_the_ones_around_it_are_kept(hub: Monitored, built: Built) -> None:
    good = [encode_window(window(built, hub.clock() - i)) for i in range(2)]
    assert await hub.ingest.commit(DEVICE, batch(1, good[0], b"\xc1", good[1])) == Ack("window", "life", 3)
    assert await counted(hub.store) == 20
    (event,) = await refusals(hub.events)
    assert (event.subject, event.details["key"], event.details["count"]) == (DEVICE, "malformed", 1)


async def test_a_batch_of_nothing_but_nonsense_is_one_event(hub: Monitored) -> None:
    assert await hub.ingest.commit(DEVICE, batch(1, *[b"\xc1"] * 100)) == Ack("window", "life", 100)
    (event,) = await refusals(hub.events)
    assert event.details["count"] == 100


def _spoilt(built: Built, now: float) -> dict[str, Window]:
    good = window(built, now)
    change = msgspec.structs.replace
    cells = built.profile.cells
    return {
        "no such manifest": change(good, manifest_sha256="0" * 64),
        "another module's name": change(good, module="other"),
        "another reference": change(good, reference_sha256="1" * 64),
        "end before start": change(good, start=now, end=now - 1),
        "two days ahead": change(good, start=now + 2 * 86_400 - 1, end=now + 2 * 86_400),
        "clock never set": change(good, start=0.0, end=10.0),
        "no number": change(good, end=float("nan")),
        "too few cells": change(good, counts=pack_counts([1] * (cells - 1))),
        "more rows counted than there were": change(good, counts=pack_counts([2**62] * cells)),
        "negative rows": change(good, rows=-1),
        "moments cut short": change(good, moments=b"\0\0\0\0"),
        "latency of another shape": change(good, latency=pack_counts([1])),
    }


@pytest.mark.parametrize(
    ("what", "key"),
    [
        ("no such manifest", "unknown-module"),
        ("another module's name", "module"),
        ("another reference", "reference"),
        ("end before start", "clock"),
        ("two days ahead", "clock"),
        ("clock never set", "clock"),
        ("no number", "clock"),
        ("too few cells", "counts"),
        ("more rows counted than there were", "counts"),
        ("negative rows", "counts"),
        ("moments cut short", "counts"),
        ("latency of another shape", "counts"),
    ],
)
async def test_a_window_that_cannot_be_counted_is_kept_out_and_told(
    hub: Monitored, built: Built, what: str, key: str
) -> None:
    spoilt = encode_window(_spoilt(built, hub.clock())[what])
    good = encode_window(window(built, hub.clock()))
    assert await hub.ingest.commit(DEVICE, batch(1, spoilt, good)) == Ack("window", "life", 2)
    assert await counted(hub.store) == 10
    (event,) = await refusals(hub.events)
    assert event.details["key"] == key


async def test_a_window_a_little_ahead_of_the_hubs_clock_is_counted(hub: Monitored, built: Built) -> None:
    await hub.ingest.commit(DEVICE, batch(1, encode_window(window(built, hub.clock() + 600))))
    assert await counted(hub.store) == 10


async def test_samples_are_stored_once_with_what_they_carry(hub: Monitored, built: Built) -> None:
    sample = make_sample(built, "p-1", hub.clock(), np.array([1.0, 2.0]))
    same = Batch("sample", "life", 0, ((1, encode(sample)),))
    await asyncio.gather(*(hub.ingest.commit(DEVICE, same) for _ in range(3)))
    async with hub.store.read() as connection:
        (row,) = (await connection.execute(select(samples))).all()
    assert (row.device, row.prediction_id, row.probability, row.body) == (DEVICE, "p-1", 0.5, encode(sample))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"manifest_sha256": "0" * 64}, "unknown-module"),
        ({"module": "other"}, "malformed"),
        ({"probability": 0.0}, "malformed"),
        ({"prediction_id": "x" * 201}, "malformed"),
        ({"at": float("inf")}, "clock"),
    ],
)
async def test_a_sample_that_cannot_be_used_is_told_and_skipped(
    hub: Monitored, built: Built, change: dict[str, object], key: str
) -> None:
    sample = msgspec.structs.replace(make_sample(built, "p-1", hub.clock(), np.array([1.0, 2.0])), **change)
    assert await hub.send(DEVICE, sample) == Ack("sample", "life", 1)
    assert await number_of(hub.store, samples) == 0
    assert [event.details["key"] for event in await refusals(hub.events, "sample.refused")] == [key]


async def test_a_sample_larger_than_the_limit_is_told_and_skipped(hub: Monitored, built: Built) -> None:
    assert await hub.send(DEVICE, make_sample(built, "p-1", hub.clock(), np.zeros(70_000))) == Ack("sample", "life", 1)
    (event,) = await refusals(hub.events, "sample.refused")
    assert event.details["key"] == "too-large"


async def test_events_of_a_device_stand_in_the_trail_under_its_name(hub: Monitored) -> None:
    bodies = [
        encode(AgentEvent(3.0, "error", "disk-full", "no room", "digits")),
        encode(AgentEvent(4.0, "info", "?!", "")),
    ]
    await hub.send(DEVICE, *bodies, stream="event")
    other, full = await hub.events.list(subject=DEVICE)
    assert (full.kind, full.actor) == ("agent.disk-full", "device:edge-a")
    assert (full.details["text"], full.details["device_time"]) == ("no room", 3.0)
    assert other.kind == "agent.other"


async def test_a_retired_device_that_is_still_connected_counts_no_more(hub: Monitored, built: Built) -> None:
    row = {"id": DEVICE, "profile": "edge", "tags": {}, "certificate": "", "created_at": 0.0, "retired_at": 1.0}
    async with hub.store.write() as connection:
        await connection.execute(insert(devices).values(**row, director_version=1, report_counter=0))
    assert await hub.ingest.commit(DEVICE, batch(1, encode_window(window(built, hub.clock())))) is None
    assert await number_of(hub.store, windows) == 0


async def test_streams_of_different_devices_do_not_meet(hub: Monitored, built: Built) -> None:
    same = batch(1, encode_window(window(built, hub.clock())))
    await asyncio.gather(hub.ingest.commit("edge-a", same), hub.ingest.commit("edge-b", same))
    assert await counted(hub.store) == 20


async def test_alerts_hear_of_groups_only_once_their_counts_are_here(hub: Monitored, built: Built) -> None:
    heard: list[Any] = []
    ingest = Ingest(hub.store, hub.events, hub.references, hub.clock, LOOK_S, heard.append)
    same = batch(1, encode_window(window(built, hub.clock())))
    await ingest.commit(DEVICE, same)
    await ingest.commit(DEVICE, same)
    assert heard == [{(built.manifest_sha256, DEVICE), (built.manifest_sha256, "*")}]
