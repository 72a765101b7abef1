"""The audit trail is a chain: whatever is done to its rows shows, and every change says who, what and why."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, text, update

from cloud_hub.chain import GENESIS, Event, Link, digest, verify
from cloud_hub.events import Events, because
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import events as table
from support.clock import SetClock
from support.fleets import OURS, World, add_device, open_world


async def written(events: Events) -> list[Event]:
    return [msgspec.json.decode(line, type=Event) async for line in events.export()]


async def fill(store: Store, events: Events, count: int = 6) -> list[Event]:
    for number in range(count):
        async with store.write() as connection:
            await events.record(
                connection, "model.registered", "alice", f"digits:{number}", size=number, words=["é", 1.5]
            )
    return await written(events)


async def test_an_untouched_chain_holds_and_ends_at_its_head(store: Store, events: Events) -> None:
    found = await fill(store, events)
    verdict = verify(found)
    assert (verdict.holds, verdict.events, verdict.head) == (True, 6, await events.head())
    assert found[0].previous == GENESIS


async def test_an_empty_chain_holds(events: Events) -> None:
    assert verify(await written(events)).holds
    assert await events.head() == Link(0, GENESIS)


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"actor": "mallory"}, [3]),
        ({"subject": "digits:99"}, [3]),
        ({"kind": "model.deleted"}, [3]),
        ({"at": 5.0}, [3]),
        ({"details": {"size": 3}}, [3]),
        ({"previous": "0" * 64}, [3]),
        ({"hash": "0" * 64}, [3, 4]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
async def test_a_row_changed_in_the_database_shows(
    store: Store, events: Events, change: dict[str, Any], broken: list[int]
) -> None:
    await fill(store, events)
    async with store.write() as connection:
        await connection.execute(update(table).where(table.c.id == 3).values(change))
    assert sorted({one.id for one in verify(await written(events)).breaks}) == broken


async def test_a_row_changed_with_a_hash_that_fits_shows_in_the_next(store: Store, events: Events) -> None:
    found = await fill(store, events)
    forged = msgspec.structs.replace(found[2], actor="mallory")
    forged = msgspec.structs.replace(forged, hash=digest(forged))
    async with store.write() as connection:
        await connection.execute(update(table).where(table.c.id == 3).values(actor="mallory", hash=forged.hash))
    assert [one.id for one in verify(await written(events)).breaks] == [4]


async def test_a_row_taken_out_shows(store: Store, events: Events) -> None:
    await fill(store, events)
    async with store.write() as connection:
        await connection.execute(delete(table).where(table.c.id == 3))
    breaks = verify(await written(events)).breaks
    assert {one.id for one in breaks} == {4}
    assert "expected event 3 after 2, found event 4" in breaks[0].why


async def test_rows_that_changed_places_show(store: Store, events: Events) -> None:
    await fill(store, events)
    async with store.write() as connection:
        for before, after in ((3, 99), (4, 3), (99, 4)):
            await connection.execute(
                text("UPDATE events SET id = :after WHERE id = :before").bindparams(before=before, after=after)
            )
    assert {one.id for one in verify(await written(events)).breaks} == {3, 4, 5}


async def test_rows_taken_off_the_end_show_by_a_known_head_only(store: Store, events: Events) -> None:
    await fill(store, events)
    known = await events.head()
    async with store.write() as connection:
        await connection.execute(delete(table).where(table.c.id >= 5))
    shortened = await written(events)
    assert verify(shortened).holds
    assert verify(shortened, [known]).breaks[0].why == "the known event 6 is not there any more"


async def test_a_chain_computed_anew_shows_by_a_known_place(store: Store, events: Events, clock: SetClock) -> None:
    found = await fill(store, events)
    known = Link(found[2].id, found[2].hash)
    async with store.write() as connection:
        await connection.execute(delete(table))
    clock.advance(1)
    again = await fill(store, events)
    assert verify(again).holds
    assert [one.id for one in verify(again, [known]).breaks] == [3]


@given(st.lists(st.integers(0, 7), min_size=1, max_size=8))
def test_any_other_selection_or_order_of_the_rows_is_broken(places: list[int]) -> None:
    chain = made(8)
    picked = [chain[place] for place in places]
    assert verify(picked).holds == (picked == chain[: len(picked)])


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner),
    max_leaves=8,
)


@given(st.dictionaries(TEXT, ANYTHING, max_size=4))
def test_whatever_an_event_tells_has_the_same_hash_after_the_database_and_the_export(details: dict[str, Any]) -> None:
    kept = msgspec.json.decode(msgspec.json.encode(details))
    event = Event(1, 1.5, "kind", "actor", "subject", kept, GENESIS, "")
    event = msgspec.structs.replace(event, hash=digest(event))
    stored = msgspec.structs.replace(event, details=json.loads(json.dumps(kept)))
    assert verify([msgspec.json.decode(msgspec.json.encode(stored), type=Event)]).holds


def made(count: int) -> list[Event]:
    chain: list[Event] = []
    previous = GENESIS
    for number in range(1, count + 1):
        event = Event(number, float(number), "kind", "actor", "subject", {"n": number}, previous, "")
        event = msgspec.structs.replace(event, hash=digest(event))
        previous = event.hash
        chain.append(event)
    return chain


async def test_writers_at_the_same_time_make_one_chain(store: Store, clock: SetClock) -> None:
    async def write(name: str) -> None:
        own = Events(store, clock)
        for number in range(5):
            async with store.write() as connection:
                await own.record(connection, "model.registered", name, f"digits:{number}")

    await asyncio.gather(*(write(f"writer-{number}") for number in range(8)))
    found = await written(Events(store, clock))
    assert len(found) == 40
    assert verify(found).holds


async def change_ones_mind(store: Store, events: Events) -> None:
    async with store.write() as connection:
        await events.record(connection, "model.deleted", "alice", "digits:1")
        raise RuntimeError("changed my mind")


async def test_a_change_that_is_rolled_back_leaves_no_gap(store: Store, events: Events) -> None:
    await fill(store, events, 2)
    with pytest.raises(RuntimeError, match="changed my mind"):
        await change_ones_mind(store, events)
    found = await fill(store, events, 1)
    assert ([event.id for event in found], verify(found).holds) == ([1, 2, 3], True)


async def test_numbers_that_json_does_not_know_are_kept_as_null(store: Store, events: Events) -> None:
    async with store.write() as connection:
        await events.record(connection, "agent.odd", "device:a", "a", value=float("nan"), more={1: b"x"})
    (event,) = await written(events)
    assert event.details["value"] is None
    assert verify([event]).holds


async def test_the_reason_of_a_request_is_kept_unless_the_event_has_its_own(store: Store, events: Events) -> None:
    with because("ticket 7"):
        async with store.write() as connection:
            await events.record(connection, "model.deleted", "alice", "digits:1")
            await events.record(connection, "rollout.aborted", "alice", "r1", reason="too slow")
    await fill(store, events, 1)
    assert [event.details.get("reason") for event in await written(events)] == ["ticket 7", "too slow", None]


# --- over the API -------------------------------------------------------------------------------------------------
@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        await add_device(world.rooms, OURS, {"site": "lab"})
        yield world


async def test_a_change_tells_who_why_and_what_was_before(world: World) -> None:
    await world.ask(
        world.admin,
        "PUT",
        f"/devices/{OURS}/tags",
        {"tags": {"site": "lyon"}},
        {"X-Mooring-Reason": "moved to Lyon – é"},
    )
    (event,) = (await world.ask(world.admin, "GET", "/events?kind=device.tagged")).json
    assert event["actor"] == "operator"
    assert event["details"] == {
        "reason": "moved to Lyon – é", "before": {"site": "lab"}, "after": {"site": "lyon"}
    }  # fmt: skip


@pytest.mark.parametrize("reason", ["x" * 501, "a\tb"])
async def test_a_reason_that_cannot_be_kept_is_refused(world: World, reason: str) -> None:
    answer = await world.ask(world.admin, "PUT", f"/devices/{OURS}/tags", {"tags": {}}, {"X-Mooring-Reason": reason})
    assert (answer.status, answer.key) == (400, "reason-invalid")


async def test_what_is_exported_is_the_chain_and_its_head_is_the_end(world: World) -> None:
    await world.ask(world.admin, "PUT", f"/devices/{OURS}/tags", {"tags": {"site": "lyon"}})
    text = (await world.ask(world.admin, "GET", "/audit/export")).text
    verdict = verify(msgspec.json.decode(line, type=Event) for line in text.splitlines())
    head = (await world.ask(world.admin, "GET", "/audit/head")).json
    assert verdict.holds
    assert verdict.head is not None
    assert head == {"id": verdict.head.id, "hash": verdict.head.hash}


def test_a_place_in_the_chain_can_be_written_and_read() -> None:
    link = Link(7, "ab" * 32)
    assert Link.parse(str(link)) == link
    for wrong in ("", "7", "x:" + "ab" * 32, "7:" + "zz" * 32, "7:ab"):
        with pytest.raises(ValueError, match="expected ID:HASH"):
            Link.parse(wrong)
