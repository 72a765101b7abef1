"""What one device can fill in the hub is bounded: events in the trail that is kept for ever, epochs, lost answers."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from cloud_hub.blobs import Blobs
from cloud_hub.events import Events
from cloud_hub.limits import Rate
from cloud_hub.monitoring.allowance import EVENTS, Allowance
from cloud_hub.monitoring.ingest import MAX_EPOCHS, Ingest
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import streams
from modules.messages import MAX_BATCH_ITEMS, Ack, AgentEvent, Batch, encode
from support.clock import SetClock
from support.monitoring import Monitored

DEVICE, OTHER = "edge-a", "edge-b"


@pytest.fixture
def ingest(store: Store, blobs: Blobs, events: Events, clock: SetClock) -> Ingest:
    return Monitored(store, blobs, events, clock).ingest


def flood(first: int, count: int, epoch: str = "life") -> Batch:
    body = encode(AgentEvent(1.0, "info", "tick", "x"))
    return Batch("event", epoch, first - 1, tuple((number, body) for number in range(first, first + count)))


async def epochs(store: Store, device: str = DEVICE) -> int:
    async with store.read() as connection:
        query = select(func.count()).select_from(streams).where(streams.c.device == device)
        return int((await connection.execute(query)).scalar_one())


async def recorded(events: Events, kind: str) -> int:
    found, after = 0, 0
    while page := sorted(await events.list(kind=kind, after=after, limit=1000), key=lambda event: event.id):
        found, after = found + len(page), page[-1].id
        if len(page) < 1000:
            break
    return found


def test_an_allowance_fills_again_with_time_and_tells_what_it_did_not_go_for(clock: SetClock) -> None:
    allowance = Allowance(clock)
    taken = sum(allowance.allows(DEVICE) for _ in range(int(EVENTS.burst) + 100))
    assert taken == EVENTS.burst
    assert allowance.allows(OTHER), "others have their own"
    clock.advance(1 / EVENTS.per_s + 1)
    assert allowance.allows(DEVICE)
    assert (allowance.missed(DEVICE), allowance.missed(DEVICE)) == (100, 0)


async def test_a_flood_of_events_is_acknowledged_counted_and_not_kept(
    ingest: Ingest, events: Events, clock: SetClock
) -> None:
    ingest._allowance = Allowance(clock, rate=Rate(per_s=0.1, burst=20.0))
    assert await ingest.commit(DEVICE, flood(1, MAX_BATCH_ITEMS)) == Ack("event", "life", MAX_BATCH_ITEMS)
    assert await ingest.commit(DEVICE, flood(MAX_BATCH_ITEMS + 1, 10)) == Ack("event", "life", MAX_BATCH_ITEMS + 10)
    assert await recorded(events, "agent.tick") == 20
    clock.advance(100.0)
    await ingest.commit(DEVICE, flood(MAX_BATCH_ITEMS + 11, 1))
    (told,) = await events.list(kind="device.flooded")
    assert (told.subject, told.details["not_recorded"]) == (DEVICE, MAX_BATCH_ITEMS + 10 - 20)
    await ingest.commit(OTHER, flood(1, 1))
    assert [event.subject for event in await events.list(kind="agent.tick", limit=1)] == [OTHER]


async def test_nonsense_is_bounded_as_well(ingest: Ingest, events: Events, clock: SetClock) -> None:
    ingest._allowance = Allowance(clock, rate=Rate(per_s=0.1, burst=3.0))
    for number in range(1, 10):
        await ingest.commit(DEVICE, Batch("event", "life", number - 1, ((number, b"nonsense"),)))
    assert await recorded(events, "event.refused") == 3


async def test_a_device_cannot_fill_the_table_with_epochs(ingest: Ingest, store: Store, clock: SetClock) -> None:
    for number in range(3 * MAX_EPOCHS):
        clock.advance(1.0)
        await ingest.commit(DEVICE, flood(1, 1, epoch=f"life-{number}"))
    assert await epochs(store) == MAX_EPOCHS
    await ingest.commit(OTHER, flood(1, 1))
    assert await epochs(store, OTHER) == 1


async def test_the_epoch_that_was_heard_of_last_stays(ingest: Ingest, clock: SetClock) -> None:
    await ingest.commit(DEVICE, flood(1, 5, epoch="mine"))
    for number in range(2 * MAX_EPOCHS):
        clock.advance(1.0)
        await ingest.commit(DEVICE, flood(1, 1, epoch=f"life-{number}"))
        await ingest.commit(DEVICE, flood(6 + number, 1, epoch="mine"))
    last = 5 + 2 * MAX_EPOCHS
    assert await ingest.commit(DEVICE, flood(last, 1, epoch="mine")) == Ack("event", "mine", last)


async def test_an_answer_that_says_lost_may_be_lost_itself(ingest: Ingest, events: Events) -> None:
    # The hub came back from a backup; its answer did not reach the device, which asks again, with more by now.
    lost = Ack("event", "life", 0, lost=True)
    ahead = Batch("event", "life", 10, flood(11, 1).entries, acked=10)
    more = Batch("event", "life", 10, flood(11, 3).entries, acked=10)
    assert [await ingest.commit(DEVICE, batch) for batch in (ahead, more, ahead)] == [lost, lost, lost]
    assert await ingest.commit(DEVICE, flood(11, 3, epoch="next")) is None, "it follows what is not here"
    again = Batch("event", "next", 0, flood(11, 3).entries)
    assert await ingest.commit(DEVICE, again) == Ack("event", "next", 13)
    assert await ingest.commit(DEVICE, again) == Ack("event", "next", 13), "and an ack that was lost is given again"
    assert await recorded(events, "agent.tick") == 3
