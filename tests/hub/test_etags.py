"""What a client has it need not load again, and what it has not seen it does not overwrite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select, update

from cloud_hub.api.app import application
from cloud_hub.api.auth import add_token
from cloud_hub.api.etags import names, tag_of
from cloud_hub.api.route import Call, Route
from cloud_hub.api.settings import ApiSettings
from cloud_hub.config import HubConfig
from cloud_hub.errors import NotFound
from cloud_hub.events import Events
from cloud_hub.rooms import Rooms
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import model_counters
from support.clock import SetClock

TOKEN = "mho_a-token-for-tests"
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
Client = TestClient[web.Request, web.Application]


class Size(msgspec.Struct, frozen=True):
    size: int


class Shelf:
    """Things with a size. `meeting`: changes wait here for each other before they change anything."""

    def __init__(self) -> None:
        self.changes = 0
        self.meeting: asyncio.Barrier | None = None

    @property
    def routes(self) -> tuple[Route, ...]:
        path = "/things/{name}"
        return (
            Route("GET", path, self.show, "Show", returns=Size),
            Route("PUT", path, self.put, "Put", returns=Size, body=Size),
            Route("DELETE", path, self.remove, "Remove"),
            Route("PUT", "/elsewhere/{name}", self.put, "Put unseen", returns=Size, body=Size),
        )

    async def show(self, rooms: Rooms, call: Call) -> Size:
        query = select(model_counters.c.version).where(model_counters.c.name == call.path["name"])
        async with rooms.store.read() as connection:
            size = (await connection.execute(query)).scalar_one_or_none()
        if size is None:
            raise NotFound("thing-not-found", f"no thing {call.path['name']}")
        return Size(size)

    async def put(self, rooms: Rooms, call: Call) -> Size:
        if self.meeting is not None:
            await self.meeting.wait()
        name, body = call.path["name"], cast(Size, call.body)
        async with rooms.store.write() as connection:
            self.changes += 1
            change = update(model_counters).where(model_counters.c.name == name).values(version=body.size)
            if not (await connection.execute(change)).rowcount:
                await connection.execute(insert(model_counters).values(name=name, version=body.size))
        return body

    async def remove(self, rooms: Rooms, call: Call) -> None:
        async with rooms.store.write() as connection:
            self.changes += 1
            await connection.execute(delete(model_counters).where(model_counters.c.name == call.path["name"]))


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def config() -> HubConfig:
    return HubConfig()


@pytest.fixture
async def client(store: Store, clock: SetClock, shelf: Shelf, config: HubConfig) -> AsyncIterator[Client]:
    await add_token(store, clock, "alice", TOKEN)
    rooms = SimpleNamespace(config=config, store=store, clock=clock, events=Events(store, clock))
    server = TestServer(application(cast(Rooms, rooms), shelf.routes))
    async with TestClient(server, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client


async def ask(
    client: Client, method: str, path: str = "/things/a", size: int = 0, **headers: str
) -> tuple[int, Any, str]:
    """Status, body and tag."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"size": size} if method == "PUT" else None
    async with client.request(method, f"/api/v1{path}", json=body, headers=named) as response:
        raw = await response.read()
        return response.status, msgspec.json.decode(raw) if raw else None, response.headers.get("ETag", "")


async def test_what_the_client_has_is_not_sent_again(client: Client) -> None:
    await ask(client, "PUT", size=1)
    status, body, tag = await ask(client, "GET")
    assert (status, body, tag) == (200, {"size": 1}, tag_of(b'{"size":1}'))
    for held in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        assert await ask(client, "GET", If_None_Match=held) == (304, None, tag)
    assert (await ask(client, "GET", If_None_Match='"other"'))[0] == 200
    await ask(client, "PUT", size=2)
    assert (await ask(client, "GET", If_None_Match=tag))[0] == 200


async def test_a_change_answers_with_the_tag_of_the_new_state(client: Client) -> None:
    _, _, made = await ask(client, "PUT", size=1)
    assert made == (await ask(client, "GET"))[2]


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_what_was_changed_meanwhile_is_not_changed(client: Client, shelf: Shelf, method: str) -> None:
    _, _, seen = await ask(client, "PUT", size=1)
    await ask(client, "PUT", size=2)
    before = shelf.changes
    status, body, _ = await ask(client, method, size=3, If_Match=seen)
    assert (status, body["key"]) == (412, "etag-mismatch")
    assert shelf.changes == before
    status, _, now = await ask(client, "GET")
    assert (await ask(client, method, size=3, If_Match=now))[0] in (200, 204)


async def test_of_two_changes_of_the_same_state_one_is_made(client: Client, shelf: Shelf) -> None:
    _, _, seen = await ask(client, "PUT", size=1)
    shelf.changes, shelf.meeting = 0, asyncio.Barrier(4)  # all have passed the first look when they meet
    answers = await asyncio.gather(*(ask(client, "PUT", size=size, If_Match=seen) for size in range(10, 14)))
    assert sorted(status for status, _, _ in answers) == [200, 412, 412, 412]
    assert shelf.changes == 1


async def test_what_is_there_is_not_made_anew(client: Client) -> None:
    assert (await ask(client, "PUT", size=1, If_None_Match="*"))[0] == 200
    assert (await ask(client, "PUT", size=2, If_None_Match="*"))[:2][0] == 412
    assert (await ask(client, "GET"))[1] == {"size": 1}


async def test_a_state_of_what_is_not_there_is_not_found(client: Client, shelf: Shelf) -> None:
    assert (await ask(client, "PUT", size=1, If_Match="*"))[0] == 404
    assert shelf.changes == 0


async def test_a_weak_tag_is_not_enough_for_a_change(client: Client) -> None:
    _, _, tag = await ask(client, "PUT", size=1)
    assert (await ask(client, "PUT", size=2, If_Match=f"W/{tag}"))[0] == 412


@pytest.mark.parametrize("header", ["a", '"a', 'W/"a" b', '"a" "b"', ",", "x" * 5000])
@pytest.mark.parametrize("name", ["If_Match", "If_None_Match"])
async def test_a_tag_that_is_none_is_refused(client: Client, header: str, name: str) -> None:
    await ask(client, "PUT", size=1)
    status, body, _ = await ask(client, "PUT", size=2, **{name: header})
    assert (status, body["key"]) == (400, "etag-invalid")
    assert (await ask(client, "GET"))[1] == {"size": 1}


async def test_a_state_of_what_cannot_be_shown_is_refused(client: Client, shelf: Shelf) -> None:
    status, body, _ = await ask(client, "PUT", "/elsewhere/a", 1, If_Match='"x"')
    assert (status, body["key"], shelf.changes) == (400, "if-match-unsupported", 0)


class TestWhereTheStateMustBeNamed:
    @pytest.fixture
    def config(self) -> HubConfig:
        return HubConfig(api=ApiSettings(require_if_match=True))

    async def test_a_change_without_it_is_refused(self, client: Client, shelf: Shelf) -> None:
        status, body, _ = await ask(client, "PUT", size=1)
        assert (status, body["key"], shelf.changes) == (428, "if-match-missing", 0)
        assert (await ask(client, "PUT", size=1, If_None_Match="*"))[0] == 200
        _, _, tag = await ask(client, "GET")
        assert (await ask(client, "PUT", size=2, If_Match=tag))[0] == 200
        assert (await ask(client, "PUT", "/elsewhere/a", 3))[0] == 200  # has no state to name


@CALM
@given(st.binary(max_size=50), st.lists(st.text(st.characters(codec="latin-1"), max_size=20), max_size=5))
def test_a_list_of_tags_names_a_tag_when_it_is_in_it(body: bytes, others: list[str]) -> None:
    tag = tag_of(body)
    listed = [f'"{other}"' for other in others if other.isprintable() and not set(other) & set('" \xa0\xad')]
    listed = [one for one in listed if one.encode("latin-1").strip(b'"').isascii() and one != tag]
    assert names(", ".join([*listed, tag]), tag, weakly=False)
    assert not listed or not names(", ".join(listed), tag, weakly=True)
