"""Batches of several devices share a transaction; what is wrong with one of them stays with it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import numpy as np
import pytest
from sqlalchemy import event, func, insert, select, text

from cloud_hub.blobs import Blobs
from cloud_hub.events import Events
from cloud_hub.monitoring.ingest import Ingest
from cloud_hub.monitoring.looks import Group, look_start, series
from cloud_hub.monitoring.settings import MonitoringSettings
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices, look_scopes, looks, windows
from modules.messages import Ack, Batch
from modules.windows import Window, encode_window
from support.clock import SetClock
from support.monitoring import LOOK_S, Built, Monitored, build_module, make_window

RANDOM = np.random.default_rng(7)
ROWS = 10


@pytest.fixture
def hub(store: Store, blobs: Blobs, events: Events, clock: SetClock) -> Monitored:
    return Monitored(store, blobs, events, clock)


@pytest.fixture
async def built(store: Store, blobs: Blobs) -> Built:
    return await build_module(store, blobs, RANDOM.normal(size=(300, 2)))


def window(built: Built, end: float, name: str = "") -> Window:
    return msgspec.structs.replace(make_window(built, RANDOM.normal(size=(ROWS, 2)), end), id=name)


def batch(*items: Window, epoch: str = "life", first: int = 1) -> Batch:
    return Batch("window", epoch, first - 1, tuple(enumerate(map(encode_window, items), first)))


async def rows_of(store: Store, scope: str = "*") -> int:
    async with store.read() as connection:
        query = select(func.sum(looks.c.rows)).where(looks.c.device == scope)
        return (await connection.execute(query)).scalar_one() or 0


async def kept(store: Store) -> int:
    async with store.read() as connection:
        return int((await connection.execute(select(func.count()).select_from(windows))).scalar_one())


async def add_device(store: Store, name: str, tags: dict[str, str], report: bytes = b"", retired: bool = False) -> None:
    row = {"id": name, "profile": "edge", "tags": tags, "certificate": "", "created_at": 0.0, "director_version": 1}
    row |= {"retired_at": 1.0 if retired else None, "report_counter": 1, "report": report}
    async with store.write() as connection:
        await connection.execute(insert(devices).values(**row))


@asynccontextmanager
async def together(
    store: Store, ingest: Ingest, jobs: dict[str, Batch]
) -> AsyncIterator[list[asyncio.Task[Ack | None]]]:
    """Commits under way that wait for one transaction: the writer is busy until the block ends."""
    async with store.write():
        first = asyncio.create_task(ingest.commit("edge-first", Batch("event", "life", 0, ((1, b"nonsense"),))))
        while not store._turn._waiters:  # noqa: ASYNC110 - until it has the turn, and waits for the writer
            await asyncio.sleep(0)
        tasks = [asyncio.create_task(ingest.commit(name.partition("#")[0], sent)) for name, sent in jobs.items()]
        while len(ingest._waiting) < len(jobs):  # noqa: ASYNC110
            await asyncio.sleep(0)
        yield tasks
    await first


async def test_batches_that_come_while_the_writer_is_busy_share_one_transaction(hub: Monitored, built: Built) -> None:
    commits: list[object] = []
    event.listen(hub.store._writer.sync_engine, "commit", commits.append)
    jobs = {f"edge-{i}": batch(window(built, hub.clock() - i)) for i in range(20)}
    async with together(hub.store, hub.ingest, jobs) as tasks:
        pass
    assert await asyncio.gather(*tasks) == [Ack("window", "life", 1)] * 20
    assert len(commits) == 3, "that of the test, that of the first batch, and that of the twenty"
    assert await rows_of(hub.store) == 20 * ROWS
    assert await rows_of(hub.store, "edge-7") == ROWS


async def test_a_batch_that_cannot_be_stored_does_not_keep_the_others_from_it(hub: Monitored, built: Built) -> None:
    trigger = "CREATE TRIGGER full BEFORE INSERT ON windows WHEN NEW.device = 'edge-b' "
    async with hub.store.write() as connection:
        await connection.execute(text(trigger + "BEGIN SELECT RAISE(ABORT, 'on purpose'); END"))
    jobs = {name: batch(window(built, hub.clock())) for name in ("edge-a", "edge-b", "edge-c")}
    async with together(hub.store, hub.ingest, jobs) as tasks:
        pass
    a, b, c = await asyncio.gather(*tasks, return_exceptions=True)
    assert a == c == Ack("window", "life", 1)
    assert "on purpose" in str(b)
    assert await rows_of(hub.store) == 2 * ROWS
    async with hub.store.write() as connection:
        await connection.execute(text("DROP TRIGGER full"))
    assert await hub.ingest.commit("edge-b", jobs["edge-b"]) == Ack("window", "life", 1), "it sends it again"
    assert await rows_of(hub.store) == 3 * ROWS


async def test_copies_of_a_batch_in_one_transaction_count_once(hub: Monitored, built: Built) -> None:
    same, more = batch(window(built, hub.clock())), batch(window(built, hub.clock()), first=2)
    jobs = {"edge-a#1": same, "edge-a#2": same, "edge-a#3": more, "edge-a#4": same}
    async with together(hub.store, hub.ingest, jobs) as tasks:
        pass
    acks = await asyncio.gather(*tasks)
    assert [ack.upto if ack else 0 for ack in acks] == [1, 1, 2, 2]
    assert (await rows_of(hub.store), await kept(hub.store)) == (2 * ROWS, 2)


async def test_a_batch_that_follows_one_of_the_same_transaction_is_taken(hub: Monitored, built: Built) -> None:
    first, second = batch(window(built, hub.clock())), batch(window(built, hub.clock()), first=2)
    async with together(hub.store, hub.ingest, {"edge-a#1": second, "edge-a#2": first}) as tasks:
        pass
    assert await asyncio.gather(*tasks) == [None, Ack("window", "life", 1)], "in the order in which they came"
    assert await hub.ingest.commit("edge-a", second) == Ack("window", "life", 2)


async def test_a_retired_device_among_others_counts_no_more(hub: Monitored, built: Built) -> None:
    await add_device(hub.store, "edge-b", {}, retired=True)
    jobs = {name: batch(window(built, hub.clock())) for name in ("edge-a", "edge-b", "edge-c")}
    async with together(hub.store, hub.ingest, jobs) as tasks:
        pass
    assert await asyncio.gather(*tasks) == [Ack("window", "life", 1), None, Ack("window", "life", 1)]
    assert (await rows_of(hub.store), await rows_of(hub.store, "edge-b")) == (2 * ROWS, 0)


async def test_whoever_gives_up_waiting_takes_nobody_along(hub: Monitored, built: Built) -> None:
    jobs = {f"edge-{i}": batch(window(built, hub.clock())) for i in range(4)}
    async with together(hub.store, hub.ingest, jobs) as tasks:
        tasks[0].cancel()  # the one that would have committed for all
        tasks[2].cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [done[1], done[3]] == [Ack("window", "life", 1)] * 2
    assert all(isinstance(done[i], asyncio.CancelledError) for i in (0, 2))
    for name, sent in jobs.items():
        assert await hub.ingest.commit(name, sent) == Ack("window", "life", 1)
    assert await rows_of(hub.store) == 4 * ROWS


async def test_a_hub_that_died_between_commit_and_acknowledgement_acknowledges_again(
    hub: Monitored, built: Built, blobs: Blobs, events: Events, clock: SetClock
) -> None:
    jobs = {f"edge-{i}": batch(window(built, hub.clock())) for i in range(3)}
    await asyncio.gather(*(hub.ingest.commit(name, sent) for name, sent in jobs.items()))  # nobody hears the answers
    again = Monitored(hub.store, blobs, events, clock).ingest
    acks = await asyncio.gather(*(again.commit(name, sent) for name, sent in jobs.items()))
    assert acks == [Ack("window", "life", 1)] * 3
    assert (await rows_of(hub.store), await kept(hub.store)) == (3 * ROWS, 3)


async def test_a_window_with_an_id_counts_once_whatever_epoch_it_comes_in(hub: Monitored, built: Built) -> None:
    one, other = window(built, hub.clock(), "w-1"), window(built, hub.clock(), "w-2")
    await hub.ingest.commit("edge-a", batch(one, one))
    assert await hub.ingest.commit("edge-a", batch(one, other, epoch="next")) == Ack("window", "next", 2)
    assert await rows_of(hub.store) == 2 * ROWS
    await hub.ingest.commit("edge-b", batch(one))
    assert await rows_of(hub.store) == 3 * ROWS, "another device's window of that name is another window"


async def test_windows_without_an_id_are_told_apart_by_their_numbers(hub: Monitored, built: Built) -> None:
    one = window(built, hub.clock())
    await hub.ingest.commit("edge-a", batch(one, one))
    assert await rows_of(hub.store) == 2 * ROWS


async def test_windows_count_for_the_groups_of_their_device(
    store: Store, blobs: Blobs, events: Events, clock: SetClock, built: Built
) -> None:
    hub = Monitored(store, blobs, events, clock)
    report = b'{"device":"x","agent_version":"0.2.0","profile":{"name":"edge","os":"linux"},"rest":[]}'
    await add_device(store, "edge-a", {"site": "lyon", "line": "3"}, report)
    await add_device(store, "edge-b", {"site": "lyon"}, b'{"agent_version": "a=b c", "profile": 3}')
    heard: list[set[Group]] = []
    settings = MonitoringSettings(group_by=("site", "line", "agent", "os"))
    ingest = Ingest(store, events, hub.references, clock, LOOK_S, lambda groups: heard.append(set(groups)), settings)
    await ingest.commit("edge-a", batch(window(built, clock())))
    await ingest.commit("edge-b", batch(window(built, clock())))
    found = {scope: await rows_of(store, scope) for scope in ("*", "site=lyon", "line=3", "agent=0.2.0", "os=linux")}
    assert found == {"*": 20, "site=lyon": 20, "line=3": 10, "agent=0.2.0": 10, "os=linux": 10}
    assert {group.device for group in heard[0]} == {"edge-a", "*", "site=lyon", "line=3", "agent=0.2.0", "os=linux"}
    assert {group.scope for group in heard[1]} == {"device:edge-b", "fleet", "group:site=lyon"}
    async with store.read() as connection:
        known = (await connection.execute(select(look_scopes.c.device, look_scopes.c.rows))).all()
    assert dict(tuple(row) for row in known)["site=lyon"] == 2 * ROWS


async def test_a_device_whose_clock_is_ahead_does_not_hide_the_newest_looks_of_the_others(
    hub: Monitored, built: Built
) -> None:
    now = hub.clock()
    await hub.send("edge-a", *(window(built, now - LOOK_S * i) for i in range(3)))
    await hub.send("edge-ahead", *(window(built, now + LOOK_S * i) for i in range(1, 60)))
    watched = await hub.references.get(built.manifest_sha256)
    assert watched is not None
    async with hub.store.read() as connection:
        found = await series(connection, watched.layout, Group(built.manifest_sha256, "*"), limit=2)
    newest = look_start(now, LOOK_S)
    assert found.starts == (newest - LOOK_S, newest)
    assert found.rows.tolist() == [ROWS, 60 * ROWS]


async def test_a_device_that_sends_more_than_it_may_keeps_the_rest_and_is_told_of(
    store: Store, blobs: Blobs, events: Events, clock: SetClock, built: Built
) -> None:
    hub = Monitored(store, blobs, events, clock)
    settings = MonitoringSettings(device_mib_per_day=8 / 1024)
    ingest = Ingest(store, events, hub.references, clock, LOOK_S, lambda _: None, settings)
    items = [window(built, clock() - i) for i in range(12)]
    ack = await ingest.commit("edge-a", batch(*items))
    assert ack is not None
    assert 0 < ack.upto < 12, "as many as there is room for"
    for _ in range(3):
        assert await ingest.commit("edge-a", batch(*items[ack.upto :], first=ack.upto + 1)) == ack, "and no further"
    assert await ingest.commit("edge-a", batch(*items[: ack.upto])) == ack, "an answer that was lost is given again"
    assert await ingest.commit("edge-b", batch(*items[:3])) == Ack("window", "life", 3), "others have room of their own"
    (told,) = await events.list(kind="window.held")
    assert told.subject == "edge-a"
    assert told.details["entries"] == 12 - ack.upto
    clock.advance(86_400)
    assert await ingest.commit("edge-a", batch(*items[ack.upto :], first=ack.upto + 1)) == Ack("window", "life", 12)
    assert await rows_of(store, "edge-a") == 12 * ROWS
