"""What goes into the outbox arrives once and in order, whoever dies on the way; what cannot wait is counted."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator

import msgspec
import pytest

from agent.config import OutboxLimits, StatePaths
from agent.errors import OutboxError, StoreError
from agent.link import Link
from agent.outbox import Outbox
from agent.outbox_rows import MAX_ITEM_BYTES, standing
from agent.store import AgentStore
from modules.messages import MAX_BATCH_ITEMS, Ack, encode
from modules.topics import down
from support.hub import FakeHub
from support.links import make_link, running
from support.mosquitto import Mosquitto
from support.outboxes import sending
from support.waiting import until, until_async

DEVICE = "cam-17"
LIMITS = OutboxLimits(commit_every_s=0.01, lazy_commit_s=0.01, forget_s=0.01, ack_timeout_s=1.0)


async def open_outbox(store: AgentStore, link: Link, limits: OutboxLimits = LIMITS) -> Outbox:
    outbox = Outbox(store, link, DEVICE, limits)
    await outbox.open()
    return outbox


@pytest.fixture
async def hub(broker: Mosquitto) -> AsyncIterator[FakeHub]:
    async with FakeHub(broker) as hub:
        yield hub


@pytest.fixture
async def link(broker: Mosquitto) -> AsyncIterator[Link]:
    async with running(make_link(broker)) as link:
        yield link


@pytest.fixture
async def outbox(agent_store: AgentStore, link: Link) -> AsyncIterator[Outbox]:
    async with sending(await open_outbox(agent_store, link)) as outbox:
        yield outbox


def numbers(count: int, first: int = 0) -> list[bytes]:
    return [b"item %d" % number for number in range(first, first + count)]


async def batches(hub: FakeHub, count: int) -> None:
    await until(lambda: len(hub.batches) >= count, f"{count} batches")


async def arrived(hub: FakeHub, count: int) -> None:
    await until(lambda: len(hub.items("sample")) == count, f"{count} samples")


async def rows(store: AgentStore) -> int:
    found: tuple[int] = await store.run(lambda connection: connection.execute("select count(*) from outbox").fetchone())
    return found[0]


async def test_items_arrive_in_order_and_are_forgotten_after_the_ack(
    outbox: Outbox, hub: FakeHub, agent_store: AgentStore
) -> None:
    for item in numbers(20):
        await outbox.add("sample", item)
    await until(lambda: outbox.waiting()["sample"] == 0, "all to be acknowledged")
    assert hub.items("sample") == numbers(20)

    async def none_left() -> bool:
        return await rows(agent_store) == 0

    await until_async(none_left, "what is acknowledged to be forgotten")


async def test_streams_do_not_wait_for_each_other(outbox: Outbox, hub: FakeHub) -> None:
    await asyncio.gather(outbox.add("sample", b"x"), outbox.add("window", b"x"), outbox.add("event", b"x"))
    await until(lambda: not any(outbox.waiting().values()), "all to be acknowledged")
    assert {stream: hub.items(stream) for stream in ("sample", "window", "event")} == {
        "sample": [b"x"],
        "window": [b"x"],
        "event": [b"x"],
    }


async def test_offers_are_committed_together_and_soon(outbox: Outbox, hub: FakeHub) -> None:
    assert all(outbox.offer("window", item) for item in numbers(2000))
    await until(lambda: len(hub.items("window")) == 2000, "all to arrive")
    assert hub.items("window") == numbers(2000)
    assert max(len(batch.entries) for batch in hub.batches) <= MAX_BATCH_ITEMS


async def test_items_of_half_a_message_go_one_by_one(outbox: Outbox, hub: FakeHub) -> None:
    items = [bytes([number]) * 600_000 for number in range(5)]
    for item in items:
        await outbox.add("sample", item)
    await until(lambda: len(hub.items("sample")) == 5, "all to arrive")
    assert hub.items("sample") == items


async def test_an_item_of_the_greatest_size_fits(outbox: Outbox, hub: FakeHub) -> None:
    await outbox.add("sample", b"x" * MAX_ITEM_BYTES)
    await until(lambda: len(hub.items("sample")) == 1, "it to arrive")


async def test_an_item_too_large_for_a_message_is_refused_and_counted(outbox: Outbox) -> None:
    with pytest.raises(OutboxError, match=f"at most {MAX_ITEM_BYTES} bytes, got {MAX_ITEM_BYTES + 1}") as caught:
        await outbox.add("sample", b"x" * (MAX_ITEM_BYTES + 1))
    assert caught.value.key == "item-too-large"
    assert not outbox.offer("sample", b"x" * (MAX_ITEM_BYTES + 1))
    assert outbox.dropped() == {"sample": 2}


async def test_only_a_few_batches_go_without_an_ack(outbox: Outbox, hub: FakeHub) -> None:
    hub.acking = False
    for number, item in enumerate(numbers(10), 1):
        await outbox.add("event", item)
        await batches(hub, min(number, LIMITS.batches_in_flight))
    assert len({batch.entries[0][0] for batch in hub.batches}) <= LIMITS.batches_in_flight
    hub.acking = True
    await until(lambda: outbox.waiting()["event"] == 0, "all to be acknowledged")
    assert hub.items("event") == numbers(10)


async def test_a_lost_ack_sends_again_and_nothing_counts_twice(outbox: Outbox, hub: FakeHub) -> None:
    hub.acking = False
    await outbox.add("sample", b"once")
    await until(lambda: len(hub.batches) >= 2, "a second try")
    hub.acking = True
    await until(lambda: outbox.waiting()["sample"] == 0, "the ack")
    assert hub.items("sample") == [b"once"]


async def test_what_was_added_offline_arrives_later(agent_store: AgentStore, broker: Mosquitto, hub: FakeHub) -> None:
    link = make_link(broker)
    async with sending(await open_outbox(agent_store, link)) as outbox:
        for item in numbers(50):
            await outbox.add("sample", item)
        assert outbox.waiting()["sample"] == 50
        async with running(link):
            await until(lambda: len(hub.items("sample")) == 50, "all to arrive")
    assert hub.items("sample") == numbers(50)


async def test_a_process_that_starts_again_goes_on_where_it_was(
    state_dir: StatePaths, broker: Mosquitto, hub: FakeHub
) -> None:
    hub.acking = False
    link = make_link(broker)
    async with running(link):
        async with AgentStore(state_dir.database) as store, sending(await open_outbox(store, link)) as outbox:
            for item in numbers(10):
                await outbox.add("sample", item)
            await until(lambda: bool(hub.batches), "a first batch")
        hub.acking = True
        second = make_link(broker, DEVICE)
    async with (
        running(second),
        AgentStore(state_dir.database) as store,
        sending(await open_outbox(store, second)) as outbox,
    ):
        for item in numbers(10, 10):
            await outbox.add("sample", item)
        await until(lambda: outbox.waiting()["sample"] == 0, "all to be acknowledged")
    assert hub.items("sample") == numbers(20)
    assert len({batch.epoch for batch in hub.batches}) == 1


async def test_numbers_never_come_twice_even_when_all_was_sent(
    state_dir: StatePaths, broker: Mosquitto, hub: FakeHub, link: Link
) -> None:
    for round_ in range(3):
        async with AgentStore(state_dir.database) as store, sending(await open_outbox(store, link)) as outbox:
            await outbox.add("sample", b"round %d" % round_)
            await until(lambda: outbox.waiting()["sample"] == 0, "the ack")
    assert [seq for entries in hub.taken.values() for seq, _ in entries] == [1, 2, 3]


async def test_the_broker_killed_while_sending_loses_and_doubles_nothing(
    outbox: Outbox, hub: FakeHub, broker: Mosquitto
) -> None:
    for number in range(120):
        await outbox.add("sample", b"item %d" % number)
        if number in (40, 80):
            await broker.kill()
            await broker.start()
    await until(lambda: outbox.waiting()["sample"] == 0, "all to be acknowledged", 40)
    assert hub.items("sample") == numbers(120)


async def test_the_hub_away_and_back_loses_and_doubles_nothing(outbox: Outbox, broker: Mosquitto) -> None:
    taken: dict[tuple[str, str], list[tuple[int, bytes]]] = {}
    for part in range(3):
        for item in numbers(20, 20 * part):
            await outbox.add("sample", item)
        async with FakeHub(broker) as hub:
            hub.taken = taken  # what it had on its disk
            await arrived(hub, 20 * (part + 1))
            assert hub.items("sample") == numbers(20 * (part + 1))


async def test_beyond_its_bytes_the_oldest_go_and_are_counted(
    agent_store: AgentStore, broker: Mosquitto, hub: FakeHub
) -> None:
    link = make_link(broker)
    limits = msgspec.structs.replace(LIMITS, sample_bytes=10 * (1000 + 16))
    async with sending(await open_outbox(agent_store, link, limits)) as outbox:
        for number in range(30):
            await outbox.add("sample", bytes([number]) * 1000)
        await outbox.add("window", b"other streams are not touched")
        assert outbox.dropped() == {"sample": 20}
        assert outbox.waiting() == {"window": 1, "sample": 10, "blob": 0, "event": 0}
        async with running(link):
            await until(lambda: not any(outbox.waiting().values()), "all to be acknowledged")
    assert hub.items("sample") == [bytes([number]) * 1000 for number in range(20, 30)]
    reopened = await open_outbox(agent_store, link, limits)
    assert reopened.dropped() == {"sample": 20}


async def test_acks_of_another_life_or_of_the_future_are_ignored(outbox: Outbox, hub: FakeHub, link: Link) -> None:
    hub.acking = False
    await outbox.add("sample", b"x")
    await until(lambda: bool(hub.batches), "the batch")
    epoch = hub.batches[0].epoch
    for ack in (Ack("sample", "other", 1), Ack("sample", epoch, 2), Ack("sample", epoch, 0), Ack("window", epoch, 1)):
        await hub.say(down(DEVICE, "ack"), encode(ack))
    before = len(hub.batches)
    await until(lambda: len(hub.batches) > before, "another try")
    assert outbox.waiting()["sample"] == 1


async def test_a_hub_that_lost_its_database_gets_what_is_still_here_once(
    outbox: Outbox, hub: FakeHub, agent_store: AgentStore, broker: Mosquitto
) -> None:
    for item in numbers(5):
        await outbox.add("sample", item)
    await outbox.add("window", b"of another stream")
    await until(lambda: not any(outbox.waiting().values()), "all to be acknowledged")
    (epoch,) = {batch.epoch for batch in hub.batches if batch.stream == "sample"}
    del hub.taken[(epoch, "sample")]  # as a hub whose database is new
    for item in numbers(5, 5):
        await outbox.add("sample", item)
    await until(lambda: outbox.waiting()["sample"] == 0, "all to be acknowledged in a new epoch")
    assert hub.items("sample") == numbers(5, 5)
    assert hub.items("window") == [b"of another stream"]
    assert len({batch.epoch for batch in hub.batches if batch.stream == "window"}) == 1
    reopened = await open_outbox(agent_store, make_link(broker, "cam-18"))
    assert reopened.epoch("sample") == outbox.epoch("sample") == hub.batches[-1].epoch != epoch


async def test_a_loss_that_another_epoch_met_changes_nothing(outbox: Outbox, hub: FakeHub) -> None:
    await outbox.add("sample", b"first")
    await until(lambda: outbox.waiting()["sample"] == 0, "the ack")
    epoch = hub.batches[0].epoch
    await hub.say(down(DEVICE, "ack"), encode(Ack("sample", "0" * 16, 0, lost=True)))
    await outbox.add("sample", b"second")
    await until(lambda: outbox.waiting()["sample"] == 0, "the ack")
    assert {batch.epoch for batch in hub.batches} == {epoch}


async def test_a_disk_that_refuses_keeps_the_items_in_memory(agent_store: AgentStore, link: Link, hub: FakeHub) -> None:
    outbox = await open_outbox(agent_store, link)

    def forbid(connection: sqlite3.Connection) -> None:
        connection.execute("create trigger full before insert on outbox begin select raise(abort, 'disk is full'); end")

    await agent_store.run(forbid)
    with pytest.raises(StoreError, match="disk is full"):
        await outbox.add("sample", b"kept")
    assert outbox.waiting()["sample"] == 1
    await agent_store.run(lambda connection: connection.execute("drop trigger full"))
    async with sending(outbox):
        await outbox.flush()
        await until(lambda: hub.items("sample") == [b"kept"], "it to arrive")


async def test_more_than_memory_may_hold_is_refused_and_counted(agent_store: AgentStore, link: Link) -> None:
    outbox = await open_outbox(agent_store, link)
    taken = [outbox.offer("sample", b"x" * 900_000) for _ in range(12)]
    assert taken.count(False) == outbox.dropped()["sample"] > 0
    await outbox.flush()
    assert outbox.waiting()["sample"] == taken.count(True)


async def test_the_account_of_what_is_held_agrees_with_the_rows(
    agent_store: AgentStore, link: Link, hub: FakeHub
) -> None:
    limits = msgspec.structs.replace(LIMITS, sample_bytes=2000)
    outbox = await open_outbox(agent_store, link, limits)
    async with sending(outbox):
        for part in range(5):
            for item in numbers(10, part * 10):
                outbox.offer("sample", item * 5)
            await outbox.flush()
        await until(lambda: not outbox.waiting()["sample"], "everything to be acknowledged or dropped")
    for item in numbers(60):
        outbox.offer("sample", item * 5)
    await outbox.flush()
    held = outbox._lanes["sample"].held
    assert held == await agent_store.run(lambda connection: standing(connection, "sample"))
    assert 0 < held.size <= 2000
