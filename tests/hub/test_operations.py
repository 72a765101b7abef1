"""Long operations over the lives of processes: whose they are, what silence means, and when they are forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cloud_hub.errors import NotFound, Unavailable
from cloud_hub.events import Events
from cloud_hub.operations import book, room
from cloud_hub.operations.book import New, OperationState, Outcome
from cloud_hub.operations.room import SILENT_S, Operations
from cloud_hub.store.engine import Store
from support.clock import SetClock
from support.waiting import until_async

DEADLINE_S = 30.0
KEEP_S = 3600.0
NEW = New("modules_build_module", "POST /modules", "token:alice", "alice")


@asynccontextmanager
async def opened(
    store: Store, events: Events, clock: SetClock, alone: bool = True, most: int = 2
) -> AsyncIterator[Operations]:
    async with Operations(store, events, clock, most, 10, KEEP_S, alone) as operations:
        yield operations


async def nothing() -> Outcome:
    return Outcome(200, "application/json", b"{}")


async def for_ever() -> Outcome:
    await asyncio.Event().wait()
    raise AssertionError


async def left_behind(store: Store, clock: SetClock, number: str = "op-1") -> None:
    """What a process that was killed leaves."""
    async with store.write() as connection:
        await book.add(connection, number, NEW, "another process", clock())


async def becomes(operations: Operations, number: str, state: OperationState) -> None:
    async def is_so() -> bool:
        return bool((await operations.get(number)).state == state)

    await until_async(is_so, f"{number} to be {state}", DEADLINE_S)


async def test_what_was_left_behind_is_interrupted_at_the_start_of_a_hub_that_is_alone(
    store: Store, events: Events, clock: SetClock
) -> None:
    await left_behind(store, clock)
    async with opened(store, events, clock) as operations:
        assert (await operations.get("op-1")).state == OperationState.INTERRUPTED


async def test_what_another_process_is_at_goes_on_until_it_is_silent(
    store: Store, events: Events, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "BEAT_S", 0.02)
    await left_behind(store, clock)
    async with opened(store, events, clock, alone=False) as operations:
        mine = await operations.begin(NEW, for_ever)
        await becomes(operations, mine, OperationState.RUNNING)
        assert (await operations.get("op-1")).state == OperationState.WAITING
        clock.advance(SILENT_S + 1)
        await becomes(operations, "op-1", OperationState.INTERRUPTED)
        assert (await operations.get(mine)).state == OperationState.RUNNING


async def test_a_cancellation_reaches_the_process_that_is_at_it(
    store: Store, events: Events, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "BEAT_S", 0.02)
    ended = asyncio.Event()

    async def work() -> Outcome:
        try:
            return await for_ever()
        finally:
            ended.set()

    async with opened(store, events, clock) as one, opened(store, events, clock, alone=False) as other:
        number = await one.begin(NEW, work)
        await becomes(one, number, OperationState.RUNNING)
        await other.cancel(number, "bob")
        await asyncio.wait_for(ended.wait(), DEADLINE_S)
        assert (await one.get(number)).state == OperationState.CANCELLED


async def test_an_end_is_an_end(store: Store, events: Events, clock: SetClock) -> None:
    async with opened(store, events, clock) as operations:
        number = await operations.begin(NEW, nothing)
        await becomes(operations, number, OperationState.DONE)
        async with store.write() as connection:
            assert not await book.end(connection, number, OperationState.FAILED, clock())
            assert not await book.note(connection, number, clock(), doing="more")
            assert await book.interrupt(connection, "x", clock() + 1, clock()) == 0
        assert (await operations.get(number)).state == OperationState.DONE


async def test_what_has_ended_is_forgotten_after_a_while(
    store: Store, events: Events, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "BEAT_S", 0.02)
    async with opened(store, events, clock) as operations:
        number = await operations.begin(NEW, nothing)
        await becomes(operations, number, OperationState.DONE)
        clock.advance(KEEP_S + 1)

        async def is_gone() -> bool:
            try:
                await operations.get(number)
            except NotFound:
                return True
            return False

        await until_async(is_gone, "the operation to be forgotten", DEADLINE_S)


async def test_no_more_work_is_done_at_a_time_than_was_said(store: Store, events: Events, clock: SetClock) -> None:
    at_once, most = 0, 0
    go_on = asyncio.Event()

    async def work() -> Outcome:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await go_on.wait()
        at_once -= 1
        return await nothing()

    async with opened(store, events, clock, most=2) as operations:
        numbers = [await operations.begin(NEW, work) for _ in range(6)]
        await becomes(operations, numbers[1], OperationState.RUNNING)
        assert (await operations.get(numbers[2])).state == OperationState.WAITING
        go_on.set()
        for number in numbers:
            await becomes(operations, number, OperationState.DONE)
    assert most == 2


async def test_a_hub_that_stops_begins_nothing_more(store: Store, events: Events, clock: SetClock) -> None:
    async with opened(store, events, clock) as operations:
        number = await operations.begin(NEW, for_ever)
    assert (await operations.get(number)).state == OperationState.INTERRUPTED
    with pytest.raises(Unavailable, match="the hub is stopping"):
        await operations.begin(NEW, nothing)


async def test_only_the_newest_of_an_owner_are_kept(
    store: Store, events: Events, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "KEPT_EACH", 3)
    others = New("modules_build_module", "POST /modules", "token:bob", "bob")
    async with opened(store, events, clock) as operations:
        for new in (others, NEW, NEW, NEW, NEW, NEW):
            number = await operations.begin(new, nothing)
            await becomes(operations, number, OperationState.DONE)
        assert len(await operations.page("token:alice", "", 0, 100)) == 4  # the new one, and those that were left
        assert len(await operations.page("token:bob", "", 0, 100)) == 1
