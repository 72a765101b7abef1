"""The same request under the same key is done once and answered the same, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from sqlalchemy import func, insert, select

from cloud_hub.api.app import application
from cloud_hub.api.auth import add_token
from cloud_hub.api.kept import KEPT_S, forget_requests
from cloud_hub.api.route import Call, Route
from cloud_hub.api.settings import ApiSettings
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import Conflict
from cloud_hub.events import Events
from cloud_hub.rooms import Rooms
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import kept_requests, model_counters
from support.clock import SetClock
from support.waiting import until_blocking

DEADLINE_S = 30.0
TOKEN = "mho_a-token-for-tests"
SECRET = "nobody-gets-this-twice"
Client = TestClient[web.Request, web.Application]


class Thing(msgspec.Struct, frozen=True):
    name: str
    word: str = ""


class Bench:
    """Routes that create things, and what the test wants to happen on the way."""

    def __init__(self) -> None:
        self.begun = 0
        self.written = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    @property
    def routes(self) -> tuple[Route, ...]:
        return (
            Route("POST", "/things", self.create, "Create", returns=Thing, body=Thing, status=201),
            Route("POST", "/whole", self.create, "Create in one", returns=Thing, body=Thing, status=201, whole=True),
            Route("POST", "/others", self.create, "Create too", returns=Thing, body=Thing, status=201),
            Route("POST", "/broken", self.break_off, "Create and fail", returns=Thing, body=Thing, status=201),
            Route("POST", "/idle", self.do_nothing, "Change nothing", returns=Thing, body=Thing),
        )

    async def create(self, rooms: Rooms, call: Call) -> Thing:
        thing: Thing = call.body
        self.begun += 1
        async with rooms.store.write() as connection:
            await connection.execute(insert(model_counters).values(name=f"{thing.name}-{self.begun}", version=1))
            await rooms.events.record(connection, "model.made", call.actor, thing.name)
            if thing.word == "refused":
                raise Conflict("in-the-way", "something is in the way")
        self.written.set()
        await self.go_on.wait()
        return Thing(thing.name, SECRET)

    async def break_off(self, rooms: Rooms, call: Call) -> Thing:
        await self.create(rooms, call)
        raise RuntimeError("on purpose")

    async def do_nothing(self, _rooms: Rooms, call: Call) -> Thing:
        self.begun += 1
        return Thing(call.body.name, str(self.begun))


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
async def token(store: Store, clock: SetClock) -> None:
    await add_token(store, clock, "alice", TOKEN)
    await add_token(store, clock, "bob", f"{TOKEN}-of-bob")


@asynccontextmanager
async def serving(store: Store, clock: SetClock, bench: Bench, kept: int = 100) -> AsyncIterator[Client]:
    """As after a start of the hub: nothing is remembered but what is in the database."""
    config = HubConfig(api=ApiSettings(kept_requests=kept))
    rooms = SimpleNamespace(config=config, store=store, clock=clock, events=Events(store, clock))
    server = TestServer(application(cast(Rooms, rooms), bench.routes))
    async with TestClient(server, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client


@pytest.fixture
async def client(store: Store, clock: SetClock, bench: Bench, token: None) -> AsyncIterator[Client]:
    async with serving(store, clock, bench) as client:
        yield client


async def post(
    client: Client, path: str, key: str, name: str = "a", word: str = "", **headers: str
) -> tuple[int, dict[str, Any], bool]:
    """Status, body, and whether it was an answer of before."""
    given = {"Idempotency-Key": key, **headers}
    async with client.post(f"/api/v1{path}", json={"name": name, "word": word}, headers=given) as response:
        return response.status, await response.json(), response.headers.get("Idempotency-Replayed") == "true"


async def made(store: Store) -> int:
    """How many things there are."""
    async with store.read() as connection:
        count = (await connection.execute(select(func.count()).select_from(model_counters))).scalar_one()
        return int(count)


async def rows(store: Store) -> int:
    async with store.read() as connection:
        return int((await connection.execute(select(func.count()).select_from(kept_requests))).scalar_one())


@pytest.mark.parametrize("path", ["/things", "/whole"])
async def test_the_same_request_again_has_no_second_effect_and_the_same_answer(
    client: Client, store: Store, path: str
) -> None:
    first = await post(client, path, "k1")
    again = await post(client, path, "k1")
    assert first == (201, {"name": "a", "word": SECRET}, False)
    assert again == (201, {"name": "a", "word": SECRET}, True)
    assert await made(store) == 1
    assert (await post(client, path, '"k2"'))[2] is False
    assert (await post(client, path, "k2"))[2] is True  # with quotes, as the draft has it, or without
    assert await made(store) == 2


async def test_an_answer_is_kept_over_a_start_of_the_hub(
    store: Store, clock: SetClock, bench: Bench, token: None
) -> None:
    async with serving(store, clock, bench) as client:
        first = await post(client, "/things", "k1")
    async with serving(store, clock, bench) as client:
        assert await post(client, "/things", "k1") == (*first[:2], True)
    assert await made(store) == 1


async def test_requests_without_a_key_are_each_done(client: Client, store: Store) -> None:
    for _ in range(2):
        async with client.post("/api/v1/things", json={"name": "a"}) as response:
            assert response.status == 201
    assert (await made(store), await rows(store)) == (2, 0)


async def test_another_request_under_the_same_key_is_refused(client: Client, store: Store) -> None:
    await post(client, "/things", "k1")
    for path, name in (("/things", "b"), ("/others", "a"), ("/things?x=1", "a")):
        status, body, _ = await post(client, path, "k1", name)
        assert (status, body["key"]) == (422, "idempotency-key-reused"), path
    assert await made(store) == 1


async def test_a_key_is_its_owners_alone(client: Client, store: Store) -> None:
    await post(client, "/things", "k1")
    other = await post(client, "/things", "k1", "b", Authorization=f"Bearer {TOKEN}-of-bob")
    assert (other[0], other[2]) == (201, False)
    assert await made(store) == 2


async def test_of_many_at_once_one_is_done_and_the_others_come_again(
    client: Client, store: Store, bench: Bench
) -> None:
    bench.go_on.clear()
    first = asyncio.create_task(post(client, "/things", "k1"))
    await asyncio.wait_for(bench.written.wait(), DEADLINE_S)
    others = await asyncio.gather(*(post(client, "/things", "k1") for _ in range(8)))
    assert {(status, body["key"]) for status, body, _ in others} <= {
        (409, "request-under-way"), (409, "request-unanswered")
    }  # fmt: skip
    assert (await post(client, "/things", "k1", "b"))[1]["key"] == "idempotency-key-reused"
    bench.go_on.set()
    assert (await first)[:2] == (await post(client, "/things", "k1"))[:2]
    assert (bench.begun, await made(store)) == (1, 1)


async def test_of_two_hubs_on_one_database_one_does_it(
    client: Client, store: Store, clock: SetClock, bench: Bench
) -> None:
    async with serving(store, clock, bench) as replica:
        answers = await asyncio.gather(*(post(one, "/things", "k1") for one in (client, replica) * 4))
        assert await made(store) == 1
        done = [answer for answer in answers if answer[0] == 201]
        assert len(done) >= 1
        assert {(answer[0], answer[1].get("key")) for answer in answers if answer not in done} <= {
            (409, "request-under-way"), (409, "request-unanswered")
        }  # fmt: skip
        assert (await post(replica, "/things", "k1"))[:2] == done[0][:2]


async def test_what_failed_before_it_changed_anything_is_tried_again(client: Client, store: Store) -> None:
    assert (await post(client, "/things", "k1", word="refused"))[1]["key"] == "in-the-way"
    assert (await made(store), await rows(store)) == (0, 0)
    assert (await post(client, "/things", "k1"))[0] == 201


async def test_what_failed_after_it_changed_something_is_not_done_again(client: Client, store: Store) -> None:
    first, again = await post(client, "/broken", "k1"), await post(client, "/broken", "k1")
    assert (first[0], first[1]["key"]) == (500, "internal")
    assert again == (*first[:2], True)
    assert await made(store) == 1


async def test_what_changes_nothing_is_answered_the_same_too(client: Client) -> None:
    assert (await post(client, "/idle", "k1"))[:2] == (await post(client, "/idle", "k1"))[:2]


@pytest.mark.parametrize(("path", "left"), [("/things", 1), ("/whole", 0)])
async def test_a_request_that_is_broken_off_is_never_done_twice(
    store: Store, clock: SetClock, bench: Bench, token: None, path: str, left: int
) -> None:
    bench.go_on.clear()
    async with serving(store, clock, bench) as client:
        request = asyncio.create_task(post(client, path, "k1"))
        await asyncio.wait_for(bench.written.wait(), DEADLINE_S)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await client.server.close()  # ends what is under way
    assert await made(store) == left
    bench.go_on.set()
    async with serving(store, clock, bench) as client:
        status, body, _ = await post(client, path, "k1")
    assert (status, body.get("key")) == ((409, "request-unanswered") if left else (201, None))
    assert await made(store) == 1


KILLED = """
import asyncio, os, signal, sys
sys.path.insert(0, sys.argv[2])
from types import SimpleNamespace
from aiohttp import web
from cloud_hub.api.app import application
from cloud_hub.clock import system_clock
from cloud_hub.config import HubConfig
from cloud_hub.events import Events
from cloud_hub.store.engine import Store
from hub.test_idempotency import Bench

class Killed(Bench):
    async def create(self, rooms, call):
        made = await super().create(rooms, call)
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    store = await Store.open(sys.argv[1], migrate=False)
    rooms = SimpleNamespace(config=HubConfig(), store=store, clock=system_clock, events=Events(store, system_clock))
    runner = web.AppRunner(application(rooms, Killed().routes))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize(("path", "left"), [("/things", 1), ("/whole", 0)])
async def test_a_hub_that_is_killed_between_effect_and_answer_does_not_do_it_twice(
    hub_paths: HubPaths, store: Store, clock: SetClock, bench: Bench, token: None, path: str, left: int
) -> None:
    tests = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, hub_paths.database_url, tests], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        port = int(await asyncio.to_thread(process.stdout.readline))
        headers = {"Authorization": f"Bearer {TOKEN}", "Idempotency-Key": "k1"}
        body = {"name": "a", "word": ""}
        async with aiohttp.ClientSession(headers=headers) as session:
            with pytest.raises(aiohttp.ClientError):
                await session.post(f"http://127.0.0.1:{port}/api/v1{path}", json=body)
        await asyncio.to_thread(until_blocking, lambda: process.poll() is not None, "the hub to be dead", DEADLINE_S)
        assert process.returncode == -signal.SIGKILL
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    assert await made(store) == left
    async with serving(store, clock, bench) as client:
        status, told, _ = await post(client, path, "k1")
    assert (status, told.get("key")) == ((409, "request-unanswered") if left else (201, None))
    assert await made(store) == 1


async def test_a_secret_in_an_answer_is_not_in_the_database(client: Client, hub_paths: HubPaths) -> None:
    assert (await post(client, "/things", "k1"))[1]["word"] == SECRET
    for path in hub_paths.root.glob("hub.sqlite3*"):
        content = path.read_bytes()
        assert SECRET.encode() not in content
        assert b"k1\x00" not in content


@pytest.mark.parametrize("key", ["", '""', '"', 'a"b', "a\\b", "ä", "x" * 256, "x" * 7000, "a b"])
async def test_a_key_that_is_none_is_refused(client: Client, store: Store, key: str) -> None:
    status, body, _ = await post(client, "/things", key)
    assert (status, body["key"]) == (400, "idempotency-key-invalid")
    assert await made(store) == 0


async def test_a_key_of_many_kilobytes_costs_no_more_than_its_refusal(client: Client, store: Store) -> None:
    headers = {"Idempotency-Key": "x" * 10_000}
    async with client.post("/api/v1/things", json={"name": "a"}, headers=headers) as response:
        assert response.status == 400
    assert await made(store) == 0
    assert (await post(client, "/things", "k1"))[0] == 201


async def test_two_keys_on_one_request_are_refused(client: Client) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    async with client.post("/api/v1/things", json={"name": "a"}, headers=headers) as response:
        assert (await response.json())["key"] == "idempotency-key-invalid"


async def test_no_more_requests_are_kept_than_the_settings_say(
    store: Store, clock: SetClock, bench: Bench, token: None
) -> None:
    async with serving(store, clock, bench, kept=10) as client:
        for number in range(25):
            clock.advance(1)
            await post(client, "/idle", f"k{number}")
            assert await rows(store) <= 10
        assert (await post(client, "/idle", "k24"))[2] is True
        assert (await post(client, "/idle", "k0"))[2] is False


async def test_a_key_is_free_again_after_a_day(client: Client, store: Store, clock: SetClock) -> None:
    await post(client, "/things", "k1")
    clock.advance(KEPT_S + 1)
    assert (await post(client, "/things", "k1"))[2] is False
    assert (await made(store), await rows(store)) == (2, 1)


async def test_old_requests_are_swept(client: Client, store: Store, clock: SetClock) -> None:
    for number in range(3):
        await post(client, "/idle", f"k{number}")
    clock.advance(KEPT_S + 1)
    await post(client, "/idle", "new")
    assert await forget_requests(store, clock() - KEPT_S) == 3
    assert await rows(store) == 1


async def test_the_body_counts_byte_by_byte(client: Client) -> None:
    headers = {"Idempotency-Key": "k1"}
    async with client.post("/api/v1/things", data=json.dumps({"name": "a"}), headers=headers) as response:
        assert response.status == 201
    async with client.post("/api/v1/things", data=json.dumps({"name": "a"}) + " ", headers=headers) as response:
        assert response.status == 422
