"""Events as they happen: in order, each once, over cuts, stops and bursts, and only to whoever may see them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import pytest
from aiohttp import ClientResponse, ClientTimeout, web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, func, insert, select

from cloud_hub.api import stream
from cloud_hub.api.app import application
from cloud_hub.api.auth import add_token
from cloud_hub.api.settings import ApiSettings
from cloud_hub.chain import Event
from cloud_hub.config import HubConfig
from cloud_hub.events import Events, Visible
from cloud_hub.live import READ, RING, Live, Wanted
from cloud_hub.operator.frames import MAX_FRAME_BYTES, Frame, Frames
from cloud_hub.people import NewApiToken, People
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms
from cloud_hub.store.bulk import insert_many
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices, events
from support.clock import SetClock
from support.waiting import until

DEADLINE_S = 30.0
TOKEN = "mho_a-token-for-tests"
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
Client = TestClient[web.Request, web.Application]


@dataclass
class Hub:
    client: Client
    store: Store
    events: Events

    async def happen(self, *kinds: str, subject: str = "digits:1") -> None:
        async with self.store.write() as connection:
            for kind in kinds:
                await self.events.record(connection, kind, "alice", subject)

    async def flood(self, count: int, kind: str = "model.one", subject: str = "digits:1") -> None:
        """Many events in one statement; their chain does not matter here."""
        async with self.store.write() as connection:
            last = (await connection.execute(select(func.max(events.c.id)))).scalar_one() or 0
            row = {"at": 0.0, "kind": kind, "actor": "hub", "subject": subject, "details": {}}
            row |= {"previous": "", "hash": ""}
            await insert_many(connection, events, [row | {"id": last + 1 + number} for number in range(count)])
            self.store.ring_after(connection)

    @asynccontextmanager
    async def listen(self, query: str = "", **headers: str) -> AsyncIterator[Listener]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url, patient = f"/api/v1/events/stream{query}", ClientTimeout(total=DEADLINE_S)
        async with self.client.get(url, headers=named, timeout=patient) as response:
            yield Listener(response)


class Listener:
    """The other side of a stream, as a browser has it."""

    def __init__(self, response: ClientResponse) -> None:
        self.response = response
        self._frames, self._waiting = Frames(), list[Frame]()

    async def frame(self) -> Frame:
        while not self._waiting:
            piece = await self.response.content.readany()
            assert piece, "the stream has ended"
            self._waiting = self._frames.feed(piece)
        return self._waiting.pop(0)

    async def kinds(self, count: int) -> list[str]:
        """Of the next events, numbers in front."""
        found: list[str] = []
        while len(found) < count:
            frame = await self.frame()
            if frame.data and not frame.kind:
                found.append(f"{frame.last_id} {json.loads(frame.data)['kind']}")
        return found

    async def told(self, kind: str) -> str:
        """The data of the next frame of this kind."""
        while (frame := await self.frame()).kind != kind:
            pass
        return frame.data.decode()


@asynccontextmanager
async def serving(store: Store, clock: SetClock, settings: ApiSettings) -> AsyncIterator[Hub]:
    events = Events(store, clock)
    rooms = SimpleNamespace(config=HubConfig(api=settings), store=store, clock=clock, events=events)
    server = TestServer(application(cast(Rooms, rooms), stream.ROUTES))
    async with TestClient(server, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield Hub(client, store, events)


@pytest.fixture
async def hub(store: Store, clock: SetClock) -> AsyncIterator[Hub]:
    await add_token(store, clock, "alice", TOKEN)
    async with serving(store, clock, ApiSettings(listeners=5, listeners_each=3)) as hub:
        yield hub


async def test_a_listener_hears_what_happens_from_now_on_in_order(hub: Hub) -> None:
    await hub.happen("model.before")
    async with hub.listen() as listener:
        assert listener.response.content_type == "text/event-stream"
        assert (await listener.frame()).last_id == "1"  # from where it begins
        await hub.happen("model.one", "model.two")
        await hub.happen("model.three")
        assert await listener.kinds(3) == ["2 model.one", "3 model.two", "4 model.three"]


async def test_a_listener_that_comes_again_misses_nothing(hub: Hub) -> None:
    await hub.happen("model.one", "model.two", "model.three")
    async with hub.listen(Last_Event_ID="1") as listener:
        assert await listener.kinds(2) == ["2 model.two", "3 model.three"]
    async with hub.listen("?after=2") as listener:
        assert await listener.kinds(1) == ["3 model.three"]
    async with hub.listen("?after=0", Last_Event_ID="2") as listener:  # what was seen counts for more
        assert await listener.kinds(1) == ["3 model.three"]


async def test_filters_choose_kinds_and_subjects_in_the_past_and_in_the_present(hub: Hub) -> None:
    for number in range(3):
        await hub.happen("rollout.started", "rollout.paused", "model.registered", subject=f"r{number}")
    async with hub.listen("?after=0&kind=rollout.*&kind=nothing&subject=r1&subject=r3") as listener:
        assert await listener.kinds(2) == ["4 rollout.started", "5 rollout.paused"]
        await hub.happen("model.registered", "rollout.finished", subject="r3")
        await hub.happen("rollout.finished", subject="r2")
        await hub.happen("rollout.aborted", subject="r1")
        assert await listener.kinds(2) == ["11 rollout.finished", "13 rollout.aborted"]


async def test_whoever_is_further_behind_than_memory_reads_the_rest_from_the_database(hub: Hub) -> None:
    async with hub.listen() as first:
        await first.frame()
        for _ in range(RING // 500 + 2):
            await hub.flood(500)
            await first.kinds(500)
        total = (RING // 500 + 2) * 500
        async with hub.listen("?after=0") as late:
            assert await late.kinds(total) == [f"{number} model.one" for number in range(1, total + 1)]
            await hub.happen("model.last")
            assert await late.kinds(1) == await first.kinds(1) == [f"{total + 1} model.last"]


@pytest.mark.parametrize("cursor", ["9", str(2**53)])
async def test_a_cursor_of_the_future_is_a_gap_and_not_silence(hub: Hub, cursor: str) -> None:
    await hub.happen("model.one")
    async with hub.listen(Last_Event_ID=cursor) as listener:
        assert await listener.told("gap") == f'{{"asked":{cursor},"newest":1}}'
        await hub.happen("model.two")
        assert await listener.kinds(1) == ["2 model.two"]


@pytest.mark.parametrize("cursor", ["-1", "x", "1.0", "9" * 17, "9" * 4000])
async def test_a_cursor_that_is_none_is_refused(hub: Hub, cursor: str) -> None:
    async with hub.listen(Last_Event_ID=cursor) as listener:
        body = await listener.response.json()
        assert (listener.response.status, body["key"]) == (400, "last-event-id-invalid")


@pytest.mark.parametrize(
    "query", ["after=-1", "after=x", f"after={2**53 + 1}", "kind=A", "kind=*", "subject=", "for_s=0", "kind=a&" * 51]
)
async def test_a_stream_asked_for_wrongly_is_refused(hub: Hub, query: str) -> None:
    async with hub.listen(f"?{query.rstrip('&')}") as listener:
        assert (listener.response.status, (await listener.response.json())["key"]) == (400, "query-invalid")


async def test_while_nothing_happens_the_stream_says_how_far_it_has_looked(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.05)
    async with hub.listen("?kind=model.wanted") as listener:
        await listener.frame()
        await hub.happen("model.unwanted", "model.unwanted")
        while (frame := await listener.frame()).last_id != "2":
            assert (frame.data, frame.kind) == (b"", "")


async def test_only_so_many_listen_and_the_next_is_told_when_to_come_again(hub: Hub) -> None:
    async with hub.listen(), hub.listen() as second, hub.listen():
        async with hub.listen() as listener:
            assert (listener.response.status, (await listener.response.json())["key"]) == (429, "listeners-full")
            assert int(listener.response.headers["Retry-After"]) >= 1
        second.response.close()
        await hub.happen("model.one")  # the hub finds out as it writes

        async def is_free() -> bool:
            async with hub.listen() as listener:
                return listener.response.status == 200

        async with asyncio.timeout(DEADLINE_S):
            while not await is_free():
                await hub.happen("model.one")


async def test_many_who_want_to_listen_at_once_take_no_more_than_there_is(hub: Hub) -> None:
    async def attempt() -> int:
        async with hub.listen("?for_s=0.5") as listener:
            return listener.response.status

    statuses = await asyncio.gather(*(attempt() for _ in range(150)))
    assert set(statuses) <= {200, 429}
    async with hub.listen() as listener:
        assert listener.response.status == 200


async def test_a_stream_ends_when_its_time_is_over(hub: Hub) -> None:
    async with hub.listen("?for_s=0.05") as listener:
        assert await listener.told("end") == '{"reason":"time"}'
        assert await listener.response.content.read() == b""


async def test_listeners_are_told_when_the_hub_stops(store: Store, clock: SetClock) -> None:
    await add_token(store, clock, "alice", TOKEN)
    async with serving(store, clock, ApiSettings()) as hub, hub.listen() as listener:
        await listener.frame()
        stopping = asyncio.create_task(hub.client.server.close())
        assert await listener.told("end") == '{"reason":"stopping"}'
        await stopping


async def test_a_stream_ends_when_its_listener_may_not_listen_any_more(
    hub: Hub, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "ASK_AGAIN_S", 0.0)
    await add_token(hub.store, clock, "bob", "of-bob", clock() + 60)
    async with hub.listen(Authorization="Bearer of-bob") as listener:
        await listener.frame()
        clock.advance(61)
        await hub.happen("model.one")
        assert await listener.told("end") == '{"reason":"refused"}'


async def test_nobody_hears_of_devices_outside_their_scope(
    hub: Hub, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "ASK_AGAIN_S", 0.0)

    async def add(device: str, site: str) -> None:
        row = {"id": device, "profile": "p", "tags": {"site": site}, "certificate": "", "created_at": 0.0}
        async with hub.store.write() as connection:
            await connection.execute(insert(devices).values(row | {"director_version": 0, "report_counter": 0}))

    await add("north-1", "north")
    await add("south-1", "south")
    people = People(hub.store, hub.events, clock)
    made = await people.create_token(NewApiToken("north", Role.VIEWER, "site=north"), "alice")
    async with hub.listen("?after=0", Authorization=f"Bearer {made.token}") as listener:
        await listener.frame()
        await hub.happen("device.told", subject="south-1")
        await hub.happen("user.created", subject="eve")
        await hub.happen("rollout.started", subject="r1")
        await hub.happen("device.told", subject="north-1")
        assert [told.partition(" ")[2] for told in await listener.kinds(1)] == ["device.told"]
        await add("north-2", "north")
        await hub.happen("device.told", subject="north-2")  # came into the scope while the stream was open
        await hub.happen("module.built")
        assert [told.partition(" ")[2] for told in await listener.kinds(2)] == ["device.told", "module.built"]


async def test_who_reads_slowly_is_let_go_and_holds_up_nobody(store: Store, clock: SetClock) -> None:
    await add_token(store, clock, "alice", TOKEN)
    async with serving(store, clock, ApiSettings(listener_write_s=0.3)) as hub, hub.listen() as quick:
        await quick.frame()
        reader, writer = await asyncio.open_connection(hub.client.host, hub.client.port)
        try:
            request = f"GET /api/v1/events/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
            writer.write(request.encode())
            await reader.readuntil(b"id: 0\n\n")
            cast(asyncio.Transport, writer.transport).pause_reading()  # takes nothing more from here on
            live: Live = hub.client.app[stream.LIVE]
            for _ in range(100):
                await hub.flood(500, subject="x" * 190)
                await quick.kinds(500)
                if live.listeners == 1:
                    break
            await until(lambda: live.listeners == 1, "the slow listener to be let go", DEADLINE_S)
        finally:
            writer.transport.abort()


async def test_a_burst_of_events_does_not_block_the_loop(hub: Hub) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    await hub.flood(10_000, "rollout.device-ended", "r1")
    async with hub.listen("?after=0&subject=r1") as one, hub.listen("?after=0&kind=model.*") as other:
        await one.frame()
        counting = asyncio.create_task(count())
        try:
            await one.kinds(10_000)
        finally:
            counting.cancel()
        await hub.happen("model.one")
        assert await other.kinds(1) == ["10001 model.one"]
    assert turns > 10_000 // READ  # others had their turn at least after each look


KINDS = st.sampled_from(["rollout.started", "rollout.paused", "model.made", "device.told", "user.created"])
SUBJECTS = st.sampled_from(["r1", "r2", "cam-1", "cam-2"])


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])  # makes a database each time
@given(
    st.lists(st.sampled_from(["rollout.*", "model.made", "device.*", "r*"]), max_size=2),
    st.lists(SUBJECTS, max_size=2),
    st.none() | st.builds(Visible, st.sets(SUBJECTS), st.sets(SUBJECTS)),
    st.lists(st.tuples(KINDS, SUBJECTS), max_size=12),
)
def test_the_database_and_the_memory_choose_the_same_events(
    kinds: list[str], subjects: list[str], visible: Visible | None, happened: list[tuple[str, str]]
) -> None:
    wanted = Wanted(tuple(kinds), tuple(subjects), visible)
    all_of_them = [Event(i, 0.0, kind, "a", subject, {}, "", "") for i, (kind, subject) in enumerate(happened, 1)]
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        events.create(connection)
        for event in all_of_them:
            row = {name: getattr(event, name) for name in event.__struct_fields__}
            connection.execute(insert(events).values(row))
        chosen = connection.execute(select(events.c.id).where(*wanted.conditions).order_by(events.c.id)).scalars().all()
    engine.dispose()
    assert list(chosen) == [event.id for event in all_of_them if wanted.takes(event)]


@CALM
@given(st.lists(st.integers(1, 9)))
def test_frames_are_read_however_the_bytes_are_cut(sizes: list[int]) -> None:
    raw = b"retry: 5\nid: 3\n\n: quiet\nid: 4\n\nid: 5\ndata: {}\r\n\r\nevent: end\ndata: a\ndata: b\n\n"
    frames, found, at = Frames(), [], 0
    for size in [*sizes, len(raw)]:
        found += frames.feed(raw[at : at + size])
        at += size
    assert [(frame.kind, frame.data, frame.last_id) for frame in found] == [
        ("", b"", "3"), ("", b"", "4"), ("", b"{}", "5"), ("end", b"a\nb", "5")
    ]  # fmt: skip


def test_a_frame_without_an_end_is_refused() -> None:
    frames = Frames()
    frames.feed(b"data: " + b"x" * (MAX_FRAME_BYTES - 6))
    with pytest.raises(ValueError, match="expected an event of at most"):
        frames.feed(b"xx")
