"""A hub whose database was lost or restored from a backup: what devices still hold arrives once, in any order."""

import pytest

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.events import Events
from cloud_hub.monitoring.ingest import MAX_SEQUENCE, Ingest
from cloud_hub.store.engine import Store
from modules.messages import Ack, AgentEvent, Batch, encode
from support.monitoring import Monitored

DEVICE = "edge-a"
LOST = Ack("event", "life", 0, lost=True)


@pytest.fixture
def ingest(store: Store, blobs: Blobs, events: Events, clock: Clock) -> Ingest:
    return Monitored(store, blobs, events, clock).ingest


def batch(previous: int, *numbers: int, acked: int = 0, epoch: str = "life") -> Batch:
    entries = tuple((number, encode(AgentEvent(1.0, "info", "tick", str(number)))) for number in numbers)
    return Batch("event", epoch, previous, entries, acked)


async def kept(events: Events) -> list[str]:
    return sorted(str(event.details["text"]) for event in await events.list(kind="agent.tick"))


async def test_a_batch_beyond_what_was_acknowledged_and_lost_is_refused_as_lost(ingest: Ingest, events: Events) -> None:
    assert await ingest.commit(DEVICE, batch(10, 11, 12, acked=10)) == LOST
    assert await kept(events) == []
    (event,) = await events.list(kind="event.lost")
    assert (event.details["had"], event.details["acknowledged"]) == (0, 10)


async def test_a_lost_epoch_stays_lost_and_is_told_once(ingest: Ingest, events: Events) -> None:
    lost = batch(10, 11, acked=10)
    assert [await ingest.commit(DEVICE, lost) for _ in range(3)] == [LOST] * 3
    # Even a late copy of what was lost: by now the device may have sent the rest under its next epoch.
    assert await ingest.commit(DEVICE, batch(0, *range(1, 12))) == LOST
    assert await kept(events) == []
    assert len(await events.list(kind="event.lost")) == 1


async def test_what_the_device_still_holds_is_taken_under_its_next_epoch(ingest: Ingest, events: Events) -> None:
    await ingest.commit(DEVICE, batch(10, 11, 12, acked=10))
    assert await ingest.commit(DEVICE, batch(0, 11, 12, epoch="next")) == Ack("event", "next", 12)
    assert await ingest.commit(DEVICE, batch(12, 13, acked=12, epoch="next")) == Ack("event", "next", 13)
    assert await kept(events) == ["11", "12", "13"]


async def test_a_restored_backup_that_has_what_was_acknowledged_goes_on(ingest: Ingest, events: Events) -> None:
    await ingest.commit(DEVICE, batch(0, 1, 2, 3))
    assert await ingest.commit(DEVICE, batch(2, 3, 4, acked=2)) == Ack("event", "life", 4)
    assert await kept(events) == ["1", "2", "3", "4"]


async def test_a_gap_alone_is_no_loss(ingest: Ingest) -> None:
    await ingest.commit(DEVICE, batch(0, 1, 2))
    assert await ingest.commit(DEVICE, batch(5, 6, acked=2)) is None
    assert await ingest.commit(DEVICE, batch(2, 3, 4, 5, 6, acked=2)) == Ack("event", "life", 6)


async def test_a_device_that_claims_more_acknowledged_than_sent_is_refused(ingest: Ingest) -> None:
    assert await ingest.commit(DEVICE, batch(3, 4, acked=4)) is None
    assert await ingest.commit(DEVICE, batch(MAX_SEQUENCE + 1, 4, acked=MAX_SEQUENCE + 1)) is None
