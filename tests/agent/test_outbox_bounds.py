"""What the outbox gives up when there is too much, and in which order it sends what it has."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from agent.config import OutboxLimits, StatePaths
from agent.errors import StoreError
from agent.outbox import Outbox
from agent.outbox_lane import LEAST_BATCH_BYTES, MOST_BATCH_BYTES, Bounds, Lane
from agent.store import MAX_WAL_BYTES, AgentStore
from support.hub import FakeHub
from support.links import make_link, running
from support.mosquitto import Mosquitto
from support.outboxes import sending
from support.waiting import until, until_async

DEVICE = "cam-17"
LIMITS = OutboxLimits(commit_every_s=0.01, lazy_commit_s=0.01, forget_s=0.01, tidy_every_s=0.0, ack_timeout_s=1.0)
ENTRY = 16
MIB = 1024 * 1024


class Seconds:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def offline(agent_store: AgentStore, broker: Mosquitto) -> Outbox:
    return await opened(agent_store, broker)


async def opened(store: AgentStore, broker: Mosquitto, clock: Seconds | None = None, **changed: float) -> Outbox:
    limits = msgspec.structs.replace(LIMITS, **changed)
    outbox = Outbox(store, make_link(broker), DEVICE, limits, monotonic=clock or time.monotonic)
    await outbox.open()
    return outbox


async def held(store: AgentStore) -> dict[str, list[bytes]]:
    rows = await store.run(lambda c: c.execute("select stream, payload from outbox order by stream, seq").fetchall())
    found: dict[str, list[bytes]] = {}
    for stream, payload in rows:
        found.setdefault(stream, []).append(payload)
    return found


async def test_of_too_much_in_all_samples_go_before_windows_and_windows_before_events(
    agent_store: AgentStore, broker: Mosquitto
) -> None:
    outbox = await opened(agent_store, broker, total_bytes=10 * (1000 + ENTRY))
    for stream in ("sample", "window", "event"):
        for number in range(4):
            await outbox.add(stream, bytes([number]) * 1000)
    assert {stream: len(items) for stream, items in (await held(agent_store)).items()} == {
        "event": 4, "window": 4, "sample": 2,
    }  # fmt: skip
    for number in range(4, 8):
        await outbox.add("event", bytes([number]) * 1000)
    assert {stream: len(items) for stream, items in (await held(agent_store)).items()} == {"event": 8, "window": 2}
    assert (await held(agent_store))["window"] == [bytes([2]) * 1000, bytes([3]) * 1000], "the oldest first"
    assert outbox.dropped_why() == {"sample.total": 4, "window.total": 2}
    assert outbox.dropped() == {"sample": 4, "window": 2}
    again = await opened(agent_store, broker)
    assert (again.dropped_why(), again.dropped()) == (outbox.dropped_why(), outbox.dropped())


async def test_entries_grow_too_old_by_the_time_that_agents_ran_here(
    agent_store: AgentStore, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Seconds()
    outbox = await opened(agent_store, broker, clock, sample_age_s=100.0, window_age_s=1000.0, event_age_s=0.0)
    for stream in ("sample", "window", "event"):
        await outbox.add(stream, b"old")
    clock.now += 50.0
    monkeypatch.setattr(time, "time", lambda: 0.0)  # the device's clock falls back to 1970, and then jumps ahead
    await outbox.add("sample", b"new")
    monkeypatch.setattr(time, "time", lambda: 4e9)
    await outbox.add("sample", b"newer")
    assert outbox.dropped_why() == {}
    clock.now += 60.0
    await outbox.add("sample", b"newest")
    assert (await held(agent_store))["sample"] == [b"new", b"newer", b"newest"]
    clock.now += 1e6
    await outbox.add("event", b"later")
    assert await held(agent_store) == {"event": [b"old", b"later"]}
    assert outbox.dropped_why() == {"sample.age": 4, "window.age": 1}


async def test_the_time_that_agents_ran_here_goes_on_after_a_restart(
    agent_store: AgentStore, broker: Mosquitto
) -> None:
    clock = Seconds()
    first = await opened(agent_store, broker, clock, sample_age_s=10_000.0)
    await first.add("sample", b"old")
    clock.now += 9000.0
    await first.add("sample", b"new")
    second = await opened(agent_store, broker, Seconds(), sample_age_s=10_000.0)  # the machine's count begins anew
    await second.add("sample", b"newest")
    assert len((await held(agent_store))["sample"]) == 3
    third_clock = Seconds()
    third = await opened(agent_store, broker, third_clock, sample_age_s=10_000.0)
    third_clock.now += 2000.0
    await third.add("event", b"x")
    assert (await held(agent_store))["sample"] == [b"new", b"newest"]


async def test_rows_of_an_older_agent_are_of_now_whatever_its_clock_said(
    agent_store: AgentStore, broker: Mosquitto
) -> None:
    insert = "insert into outbox(stream, seq, payload, size, at) values('sample', ?, x'00', 17, ?)"
    marks = "insert into streams(stream, last_seq, acked, dropped) values('sample', 2, 0, 0)"
    await agent_store.run(lambda c: (c.execute(insert, (1, 1.7e9)), c.execute(insert, (2, 3e9)), c.execute(marks)))
    clock = Seconds()
    outbox = await opened(agent_store, broker, clock, sample_age_s=100.0)
    await outbox.add("sample", b"x")
    assert outbox.waiting()["sample"] == 3
    clock.now += 101.0
    await outbox.add("event", b"x")
    assert outbox.dropped_why() == {"sample.age": 3}


async def test_what_matters_more_goes_first(agent_store: AgentStore, broker: Mosquitto) -> None:
    link = make_link(broker)
    outbox = Outbox(agent_store, link, DEVICE, LIMITS)
    await outbox.open()
    for number in range(20):
        outbox.offer("sample", bytes([number]) * 20_000)
        outbox.offer("window", bytes([number]) * 20_000)
    outbox.offer("event", b"alarm")
    await outbox.flush()
    async with FakeHub(broker) as hub, sending(outbox), running(link):
        await until(lambda: not any(outbox.waiting().values()), "everything to be acknowledged", 30)
        came = [batch.stream for batch in hub.batches]
    assert came[0] == "event"
    assert came.index("sample") > max(number for number, stream in enumerate(came) if stream == "window")


async def test_an_alarm_does_not_wait_behind_samples_that_nobody_acknowledges(
    agent_store: AgentStore, broker: Mosquitto
) -> None:
    link = make_link(broker)
    outbox = Outbox(agent_store, link, DEVICE, msgspec.structs.replace(LIMITS, ack_timeout_s=600.0))
    await outbox.open()
    async with FakeHub(broker) as hub, sending(outbox), running(link):
        hub.acking = False
        for number in range(50):
            outbox.offer("sample", bytes([number]) * 20_000)
        await until(lambda: len(hub.batches) >= LIMITS.batches_in_flight, "as many batches as may be under way")
        hub.acking = True
        await outbox.add("event", b"alarm")
        await until(lambda: outbox.waiting()["event"] == 0, "the alarm's ack")
        assert outbox.waiting()["sample"] > 0


def test_batches_are_small_on_a_bad_link_and_large_on_a_good_one() -> None:
    lane = Lane("sample", Bounds(MIB, 0.0, 0.1, 0.1, 0.1))
    for _ in range(10):
        lane.took(0.01, lane.batch_bytes)
    assert lane.batch_bytes == MOST_BATCH_BYTES
    for _ in range(20):
        lane.took(5.0, lane.batch_bytes)
    assert lane.batch_bytes == LEAST_BATCH_BYTES
    lane.took(0.01, 10)
    assert lane.batch_bytes == LEAST_BATCH_BYTES, "a small batch says nothing about a large one"


async def test_a_hub_that_comes_back_is_noticed_without_waiting_for_an_ack(
    agent_store: AgentStore, broker: Mosquitto
) -> None:
    link = make_link(broker)
    limits = msgspec.structs.replace(LIMITS, ack_timeout_s=600.0)
    outbox = Outbox(agent_store, link, DEVICE, limits)
    await outbox.open()
    async with sending(outbox), running(link):
        await outbox.add("event", b"nobody hears this yet")
        sender_tried = asyncio.Event()
        original = link.publish

        async def publish(topic: str, payload: bytes, **rest: float) -> bool:
            heard = await original(topic, payload, **rest)  # type: ignore[arg-type]
            sender_tried.set()
            return heard

        link.publish = publish  # type: ignore[method-assign, assignment]
        await asyncio.wait_for(sender_tried.wait(), 30)
        async with FakeHub(broker) as hub:
            await until(lambda: outbox.waiting()["event"] == 0, "the ack", 60)
            assert hub.items("event") == [b"nobody hears this yet"]


async def test_windows_wait_for_each_other_and_go_with_the_next_commit(
    agent_store: AgentStore, broker: Mosquitto
) -> None:
    outbox = await opened(agent_store, broker, lazy_commit_s=3600.0)
    async with sending(outbox):
        outbox.offer("window", b"first")
        await until_held(agent_store, 1)  # after a quiet while at once
        said: list[str] = []
        await agent_store.run(lambda connection: connection.set_trace_callback(said.append))
        for number in range(10):
            outbox.offer("window", b"%d" % number)
            for _ in range(5):  # there would be time for a commit
                await agent_store.run(lambda connection: None)
        assert not any(text.startswith("insert into") for text in said)
        outbox.offer("event", b"alarm")
        await until_held(agent_store, 12)
        assert len([text for text in said if text.startswith("insert into streams")]) == 2, "one commit for both"


async def test_a_commits_worth_of_samples_is_written_at_once(agent_store: AgentStore, broker: Mosquitto) -> None:
    outbox = await opened(agent_store, broker, lazy_commit_s=3600.0)
    async with sending(outbox):
        outbox.offer("sample", b"first")
        await until_held(agent_store, 1)
        for _ in range(5):
            outbox.offer("sample", b"x" * 4000)
        await until_held(agent_store, 6)


async def until_held(store: AgentStore, count: int) -> None:
    async def so() -> bool:
        return sum(len(items) for items in (await held(store)).values()) == count

    await until_async(so, f"{count} entries on the disk", 30)


async def test_acknowledged_entries_are_forgotten_with_the_next_commit_and_count_once_after_a_power_cut(
    state_dir: StatePaths, broker: Mosquitto
) -> None:
    lazy = msgspec.structs.replace(LIMITS, forget_s=3600.0)
    async with FakeHub(broker) as hub:
        for round_ in range(2):  # the second finds on the disk what the hub has acknowledged
            link = make_link(broker)
            async with AgentStore(state_dir.database) as store:
                outbox = Outbox(store, link, DEVICE, lazy)
                await outbox.open()
                assert outbox.waiting()["sample"] == (0 if round_ == 0 else 3)
                for number in range(0 if round_ else 3):
                    await outbox.add("sample", b"%d" % number)
                async with sending(outbox), running(link):
                    await until(lambda box=outbox: box.waiting()["sample"] == 0, "the acks")  # type: ignore[misc]
                assert len((await held(store))["sample"]) == 3
        assert hub.items("sample") == [b"0", b"1", b"2"]


async def test_a_full_disk_drops_and_counts_and_everything_else_goes_on(
    agent_store: AgentStore, broker: Mosquitto
) -> None:
    outbox = await opened(agent_store, broker)
    await outbox.add("event", b"before")
    await agent_store.run(lambda c: c.execute("select count(*) from outbox").fetchone())
    pages = await agent_store.run(lambda c: c.execute("pragma page_count").fetchone()[0])
    await agent_store.run(lambda c: c.execute(f"pragma max_page_count = {pages}").fetchone())
    with pytest.raises(StoreError, match="full"):
        await outbox.add("sample", b"x" * 900_000)
    taken = [outbox.offer("sample", b"x" * 900_000) for _ in range(20)]
    assert outbox.dropped_why() == {"sample.memory": taken.count(False)}
    assert taken.count(False) > 0
    await agent_store.put("other", 1)  # what fits in what there is is still written
    await agent_store.run(lambda c: c.execute("pragma max_page_count = 1000000").fetchone())
    await outbox.flush()
    assert len((await held(agent_store))["sample"]) == 1 + taken.count(True)
    assert outbox.dropped_why() == {"sample.memory": taken.count(False)}


@pytest.mark.parametrize("made_by", ["this agent", "an agent before 0.2"])
async def test_space_is_given_back_once_everything_has_been_sent(
    state_dir: StatePaths, broker: Mosquitto, made_by: str
) -> None:
    async with AgentStore(state_dir.database):
        pass
    if made_by != "this agent":
        with closing(sqlite3.connect(state_dir.database)) as connection:
            connection.execute("pragma auto_vacuum = none")
            connection.execute("vacuum")
            assert connection.execute("pragma auto_vacuum").fetchone() == (0,)
    link = make_link(broker)
    async with FakeHub(broker), AgentStore(state_dir.database) as store:
        outbox = Outbox(store, link, DEVICE, LIMITS)
        await outbox.open()
        for number in range(20):
            await outbox.add("sample", bytes([number]) * 900_000)
        await store.run(lambda c: c.execute("select 1").fetchone())
        full = size_of(state_dir.database)
        assert full > 15 * MIB
        async with sending(outbox), running(link):
            await until(lambda: outbox.waiting()["sample"] == 0, "everything to be sent", 60)
            await until(lambda: size_of(state_dir.database) < 2 * MIB, "the files to shrink", 30)


def size_of(database: Path) -> int:
    """The database and its log."""
    return sum(path.stat().st_size for path in (database, database.with_name(f"{database.name}-wal")) if path.exists())


async def test_the_log_beside_the_database_stays_small(agent_store: AgentStore, offline: Outbox) -> None:
    for number in range(30):
        await offline.add("sample", bytes([number]) * 900_000)
    path = Path(await agent_store.run(lambda c: c.execute("pragma database_list").fetchone()[2]))
    assert path.with_name(f"{path.name}-wal").stat().st_size < 3 * MAX_WAL_BYTES


async def test_an_outbox_opens_on_a_disk_that_takes_no_writes(agent_store: AgentStore, broker: Mosquitto) -> None:
    outbox = await opened(agent_store, broker)
    await outbox.add("sample", b"one")
    late = "update outbox set at = at + 1e6"
    await agent_store.run(lambda connection: connection.execute(late))
    refuse = "create trigger refuse before update on outbox begin select raise(abort, 'disk is full'); end"
    await agent_store.run(lambda connection: connection.execute(refuse))
    assert (await opened(agent_store, broker)).waiting()["sample"] == 1
