"""Followers of the events: in order, nothing lost in a restart, and told as soon as there is news."""

import asyncio

import pytest

from cloud_hub.config import HubPaths
from cloud_hub.events import Events
from cloud_hub.outward.feed import EventFeed
from cloud_hub.store.engine import Store
from support.clock import SetClock

DEADLINE_S = 30.0


async def record(store: Store, events: Events, *kinds: str) -> None:
    async with store.write() as connection:
        for kind in kinds:
            await events.record(connection, kind, "alice", "digits:1")


async def test_a_feed_gives_events_in_order_from_where_it_was_opened(store: Store, events: Events) -> None:
    await record(store, events, "model.registered")
    feed = EventFeed(store, "tests")
    async with store.write() as connection:
        await feed.open(connection)
    await record(store, events, "module.built", "module.signed", "module.released")
    assert [event.kind for event in await feed.read(limit=2)] == ["module.built", "module.signed"]
    async with store.write() as connection:
        await feed.advance(connection, 3)
        await feed.open(connection)  # a cursor that is there stays where it is
    assert [event.kind for event in await feed.read()] == ["module.released"]


async def test_a_feed_that_was_never_opened_begins_with_the_first_event(store: Store, events: Events) -> None:
    await record(store, events, "model.registered", "module.built")
    feed = EventFeed(store, "tests")
    assert [event.id for event in await feed.read()] == [1, 2]
    async with store.write() as connection:
        await feed.advance(connection, 1)
    assert [event.id for event in await feed.read()] == [2]


async def test_a_cursor_outlives_the_process_and_moves_only_with_its_transaction(
    hub_paths: HubPaths, store: Store, events: Events
) -> None:
    await record(store, events, "model.registered", "module.built")
    feed = EventFeed(store, "tests")
    async with store.write() as connection:
        await feed.advance(connection, 1)

    async def fail_after_advancing() -> None:
        async with store.write() as connection:
            await feed.advance(connection, 2)
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await fail_after_advancing()
    again = await Store.open(hub_paths.database_url, migrate=False)
    try:
        assert [event.id for event in await EventFeed(again, "tests").read()] == [2]
        assert [event.id for event in await EventFeed(again, "another").read()] == [1, 2]
    finally:
        await again.close()


async def test_a_cursor_never_goes_back(store: Store, events: Events) -> None:
    await record(store, events, "model.registered", "module.built")
    feed = EventFeed(store, "tests")
    async with store.write() as connection:
        await feed.advance(connection, 2)
        await feed.advance(connection, 1)
    assert await feed.position() == 2


async def test_a_follower_is_told_after_the_commit_and_not_of_one_that_failed(
    store: Store, clock: SetClock, events: Events
) -> None:
    feed = EventFeed(store, "tests")
    await feed.news(0)  # the first call never waits: there may be events from before
    waiting = asyncio.create_task(feed.news(10 * DEADLINE_S))

    async def fail_after_recording() -> None:
        async with store.write() as connection:
            await events.record(connection, "module.built", "alice", "digits:1")
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await fail_after_recording()
    async with store.write():
        pass  # a transaction without events tells nobody
    await asyncio.sleep(0)
    assert not waiting.done()
    await record(store, events, "module.built")
    await asyncio.wait_for(waiting, DEADLINE_S)
    assert [event.kind for event in await feed.read()] == ["module.built"]


async def test_news_that_came_between_two_waits_are_heard(store: Store, events: Events) -> None:
    feed = EventFeed(store, "tests")
    await feed.news(0)
    await record(store, events, "module.built")
    await asyncio.wait_for(feed.news(10 * DEADLINE_S), DEADLINE_S)
