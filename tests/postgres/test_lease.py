"""The lease: one of several processes at a time, by the database's clock, and nothing of a holder that lost it."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import insert, select, update

from cloud_hub.errors import Unavailable
from cloud_hub.replicas.lease import WORK, Lease
from cloud_hub.replicas.settings import ReplicasSettings
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import leases, model_counters
from support.waiting import until, until_async

LONG_S = 300.0
SHORT_S = 3.0


@pytest.fixture
async def other(database: str) -> AsyncIterator[Store]:
    """The database as another process has it."""
    store = await Store.open(database, migrate=False)
    yield store
    await store.close()


def lease(store: Store, name: str, lease_s: float = LONG_S) -> Lease:
    return Lease(store, ReplicasSettings(name, (), lease_s))


def is_held(one: Lease) -> bool:
    return one.held


class Kept:
    """A lease that is kept, and the work that runs in it."""

    def __init__(self, held: Lease, store: Store) -> None:
        self.lease = held
        self._store = store
        self.running = 0
        self.begun = 0
        self.refused: list[str] = []
        self.write = asyncio.Event()
        self._tasks = [asyncio.create_task(held.keep()), asyncio.create_task(held.run(self._work, "work"))]

    async def _work(self) -> None:
        self.running += 1
        self.begun += 1
        try:
            while True:
                await self.write.wait()
                self.write.clear()
                await self._store_a_row()
        finally:
            self.running -= 1

    async def _store_a_row(self) -> None:
        try:
            async with self._store.write() as connection:
                await connection.execute(insert(model_counters).values(name=f"row-{self.begun}", version=1))
        except Unavailable as error:
            self.refused.append(error.key)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def names(store: Store) -> list[str]:
    async with store.read() as connection:
        return list((await connection.execute(select(model_counters.c.name))).scalars())


async def token(store: Store) -> int:
    async with store.read() as connection:
        return int((await connection.execute(select(leases.c.token).where(leases.c.name == WORK))).scalar_one())


async def take_away(store: Store) -> None:
    """As another does whose turn it is, before the holder has noticed."""
    async with store.aside() as connection:
        change = update(leases).where(leases.c.name == WORK)
        await connection.execute(change.values(holder="c", token=leases.c.token + 1))


async def test_one_of_two_has_it_and_the_other_takes_over_when_it_is_given_back(store: Store, other: Store) -> None:
    first = Kept(lease(store, "a"), store)
    await until(lambda: first.running == 1, "the first to work")
    second = Kept(lease(other, "b", SHORT_S), other)
    await asyncio.wait_for(second.lease._try(), 20)
    assert not is_held(second.lease)
    await first.end()
    assert first.running == 0
    await until(lambda: second.running == 1, "the second to take over")
    assert is_held(second.lease)
    assert await token(store) == 2
    await second.end()


async def test_it_ends_by_the_database_clock_when_its_holder_is_gone(store: Store, other: Store) -> None:
    gone = lease(store, "a", SHORT_S)
    await gone._try()
    assert is_held(gone)
    second = Kept(lease(other, "b", SHORT_S), other)
    await until(lambda: second.running == 1, "the second to take over")
    assert not is_held(gone)  # by its own clock, before it could be taken
    await second.end()


async def test_a_holder_that_cannot_renew_stops_its_work_before_another_may_begin(store: Store, other: Store) -> None:
    first = Kept(lease(store, "a", SHORT_S), store)
    await until(lambda: first.running == 1, "the first to work")
    first.lease._store = Broken()  # type: ignore[assignment]
    second = Kept(lease(other, "b", SHORT_S), other)
    await until(lambda: second.running == 1, "the second to take over")
    assert first.running == 0
    await first.end()
    await second.end()


class Broken:
    """A database that is away."""

    def aside(self) -> object:
        raise Unavailable("database-unreachable", "away")


async def test_what_an_old_holder_would_write_is_refused(store: Store, other: Store) -> None:
    first = Kept(lease(store, "a"), store)
    await until(lambda: first.running == 1, "the first to work")
    first.write.set()

    async def has_written() -> bool:
        return await names(store) == ["row-1"]

    await until_async(has_written, "the first to write")
    await take_away(other)
    first.write.set()
    await until(lambda: first.refused == ["lease-lost"], "the second write to be refused")
    assert await names(store) == ["row-1"]
    await first.end()


async def test_a_new_holder_waits_for_the_transaction_that_the_old_one_has_begun(store: Store, other: Store) -> None:
    first = lease(store, "a", SHORT_S)
    await first._try()
    second = lease(other, "b", SHORT_S)
    async with store.write() as connection:
        await first._check(1)(connection)
        assert await first._renew() == 1  # a renewal does not wait
        async with other.aside() as aside:
            await aside.execute(update(leases).values(until=0.0))  # its time is over
        taking = asyncio.create_task(second._take())
        done, _ = await asyncio.wait({taking}, timeout=0.3)
        assert not done
        await connection.execute(insert(model_counters).values(name="last", version=1))
    assert await asyncio.wait_for(taking, 20) == 2
    assert await names(other) == ["last"]


async def test_many_that_ask_at_once_for_the_first_lease_leave_one_with_it(store: Store, other: Store) -> None:
    all_ = [lease(one, name) for one, name in ((store, "a"), (other, "b"))]
    await asyncio.gather(*(one._try() for one in all_))
    assert [one.held for one in all_].count(True) == 1


async def test_a_process_that_was_started_again_takes_its_own_lease_back(store: Store, other: Store) -> None:
    await lease(store, "a")._try()
    again = lease(other, "a")
    await again._try()
    assert again.held
    assert await token(store) == 2


async def test_work_that_fails_begins_anew(store: Store) -> None:
    held = lease(store, "a", SHORT_S)
    begun = 0

    async def fail() -> None:
        nonlocal begun
        begun += 1
        raise ValueError("on purpose")

    tasks = [asyncio.create_task(held.keep()), asyncio.create_task(held.run(fail, "work"))]
    await until(lambda: begun == 2, "the work to begin again")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_hub_of_one_process_needs_none(store: Store) -> None:
    alone = lease(store, "")
    await alone.keep()
    assert alone.held
    ran: list[bool] = []

    async def work() -> None:
        ran.append(True)

    await alone.run(work, "work")
    assert ran == [True]
    async with store.read() as connection:
        assert (await connection.execute(select(leases))).all() == []
