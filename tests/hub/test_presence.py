"""Who is connected: said by devices and by their last wills over a real broker, and written in groups."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import pytest
from sqlalchemy import insert, select

from agent.config import LinkLimits
from agent.link import Link
from cloud_hub.broker import Broker
from cloud_hub.config import HubPaths
from cloud_hub.link import Handlers, HubLink
from cloud_hub.presence import GROUP, PresenceBook, is_online
from cloud_hub.serving import Serving
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices
from modules.errors import MessageError
from modules.messages import Presence, decode
from modules.topics import Topic, all_up
from support.clock import SetClock
from support.links import QUICK, make_link, running
from support.mosquitto import HUB, Mosquitto
from support.trust import trust_world
from support.waiting import until, until_async

SOON = msgspec.structs.replace(QUICK, absent_after_s=0)
LIMIT_S = 900.0


async def add(store: Store, *names: str) -> None:
    row = {"profile": "p", "tags": {}, "certificate": "", "created_at": 0.0, "director_version": 1, "report_counter": 0}
    async with store.write() as connection:
        await connection.execute(insert(devices), [{"id": name, "boots": [], **row} for name in names])


async def row(store: Store, device: str) -> dict[str, Any]:
    async with store.read() as connection:
        return (await connection.execute(select(devices).where(devices.c.id == device))).one()._asdict()


async def here(store: Store, clock: SetClock, device: str = "cam-1") -> bool:
    return is_online(await row(store, device), clock(), LIMIT_S)


@pytest.fixture
async def book(store: Store, clock: SetClock) -> PresenceBook:
    await add(store, "cam-1", "cam-2")
    return PresenceBook(store, clock)


async def say(book: PresenceBook, online: bool, boot: str, number: int, device: str = "cam-1") -> None:
    book.note(device, Presence(online, boot, number))
    await book.flush()


async def test_a_device_is_online_from_its_word_to_its_end(book: PresenceBook, store: Store, clock: SetClock) -> None:
    assert not await here(store, clock)
    await say(book, True, "b1", 1)
    assert await here(store, clock)
    assert not await here(store, clock, "cam-2")
    clock.advance(10)
    await say(book, False, "b1", 1)
    assert not await here(store, clock)
    found = await row(store, "cam-1")
    assert (found["offline_at"] - found["online_at"], found["seen_at"]) == (10, clock())


async def test_the_end_of_a_connection_that_is_over_ends_no_later_one(
    book: PresenceBook, store: Store, clock: SetClock
) -> None:
    await say(book, True, "b1", 2)
    await say(book, False, "b1", 1)
    assert await here(store, clock)
    await say(book, True, "b2", 1)
    await say(book, False, "b1", 2)
    assert await here(store, clock), "another hub was late to write the end of the life before"
    clock.advance(60)
    await say(book, False, "b3", 1)
    assert not await here(store, clock), "this hub has missed that life's beginning"


async def test_words_that_wait_together_are_taken_in_the_order_of_their_numbers(
    book: PresenceBook, store: Store, clock: SetClock
) -> None:
    book.note("cam-1", Presence(True, "b1", 2))
    book.note("cam-1", Presence(False, "b1", 1))
    book.note("cam-2", Presence(True, "b1", 1))
    book.note("cam-2", Presence(False, "b1", 1))
    await book.flush()
    assert await here(store, clock)
    assert not await here(store, clock, "cam-2")


async def test_a_word_that_was_heard_before_changes_nothing(book: PresenceBook, store: Store, clock: SetClock) -> None:
    await say(book, True, "b1", 1)
    before = await row(store, "cam-1")
    clock.advance(100)
    await say(book, True, "b1", 1)  # a broker hands it over again at each connection
    assert await row(store, "cam-1") == before


async def test_a_report_long_after_the_end_is_of_an_agent_that_tells_no_presence(clock: SetClock) -> None:
    known: dict[str, Any] = {"retired_at": None, "present": False, "online_at": clock(), "offline_at": clock()}
    assert not is_online({**known, "report_at": clock() + 1}, clock() + 40, LIMIT_S)
    assert is_online({**known, "report_at": clock() + 40}, clock() + 40, LIMIT_S)


async def test_who_is_quiet_for_long_is_offline_whatever_was_said(
    book: PresenceBook, store: Store, clock: SetClock
) -> None:
    await say(book, True, "b1", 1)
    clock.advance(LIMIT_S + 1)
    assert not await here(store, clock), "a broker that was killed tells no end"


async def test_ten_thousand_connections_are_ten_transactions(store: Store, clock: SetClock) -> None:
    names = [f"cam-{number:05}" for number in range(10_000)]
    await add(store, *names)
    book = PresenceBook(store, clock)
    for name in names:
        book.note(name, Presence(True, "b1", 1))
    await book.flush()
    assert book.written == len(names) / GROUP == 10
    assert await here(store, clock, names[-1])


@pytest.mark.parametrize("bad", [Presence(True, "x" * 41, 1), Presence(True, "b\0", 1), Presence(True, "b", -1)])
async def test_a_word_that_no_agent_says_is_refused(book: PresenceBook, bad: Presence) -> None:
    with pytest.raises(MessageError, match="presence: expected"):
        book.note("cam-1", bad)


# --- over a broker --------------------------------------------------------------------------------------------------
class Ear:
    """Hears what is said of devices, as the hub does."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Presence]] = []
        self.ready = asyncio.Event()

    def last(self, device: str) -> Presence | None:
        return next((said for name, said in reversed(self.heard) if name == device), None)

    async def listen(self, broker: Mosquitto) -> None:
        tls = broker.tls(broker.client(HUB), "ear")
        async with aiomqtt.Client(
            "localhost", broker.port, identifier="_ear", protocol=aiomqtt.ProtocolVersion.V5, tls_context=tls
        ) as client:
            await client.subscribe(all_up("presence"), qos=1)
            self.ready.set()
            async for message in client.messages:
                said = decode(message.payload)
                assert isinstance(said, Presence)
                self.heard.append((Topic.parse(message.topic.value).device, said))


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    broker = Mosquitto(tmp_path)
    await broker.start()
    yield broker
    await broker.kill()


@pytest.fixture
async def ear(broker: Mosquitto) -> AsyncIterator[Ear]:
    ear = Ear()
    task = asyncio.create_task(ear.listen(broker))
    await until(lambda: ear.ready.is_set() or task.done(), "the subscription")
    yield ear
    task.cancel()
    with suppress(asyncio.CancelledError, aiomqtt.MqttError):
        await task


def cut(link: Link) -> None:
    """As when the process is killed: the socket is closed, and nothing is said."""
    client = link._client
    assert client is not None
    sock = client._client.socket()
    assert isinstance(sock, socket.socket)
    sock.shutdown(socket.SHUT_RDWR)


async def test_a_lost_connection_is_told_by_the_broker_and_a_new_one_by_the_device(broker: Mosquitto, ear: Ear) -> None:
    slow = msgspec.structs.replace(SOON, reconnect_first_s=1.0, reconnect_ceiling_s=1.0)
    link = make_link(broker, limits=slow)
    async with running(link):
        await until(lambda: ear.last("cam-17") is not None, "the first word")
        first = ear.last("cam-17")
        assert first is not None
        assert (first.online, first.number) == (True, 1)
        cut(link)
        gone = Presence(False, first.boot, 1)
        await until(lambda: ("cam-17", gone) in ear.heard, "the last will")
        await until(lambda: ear.last("cam-17") == Presence(True, first.boot, 2), "the next connection")
    assert ear.heard.index(("cam-17", gone)) < len(ear.heard) - 1


async def test_who_leaves_in_order_says_so(broker: Mosquitto, ear: Ear) -> None:
    async with running(make_link(broker, limits=SOON)):
        await until(lambda: ear.last("cam-17") is not None, "the first word")
    await until(lambda: bool((said := ear.last("cam-17")) and not said.online), "the farewell")
    said = ear.last("cam-17")
    assert said is not None
    assert said.left


async def test_a_device_that_is_back_in_time_was_never_away(broker: Mosquitto, ear: Ear) -> None:
    patient: LinkLimits = msgspec.structs.replace(QUICK, absent_after_s=60)
    link = make_link(broker, limits=patient)
    async with running(link):
        await until(lambda: ear.last("cam-17") is not None, "the first word")
        cut(link)
        await until(lambda: link.session == 2, "the second connection")
        await until(lambda: bool((said := ear.last("cam-17")) and said.number == 2), "the second word")
        assert all(said.online for _, said in ear.heard)


async def test_the_hub_knows_who_is_there_over_its_own_broker(hub_paths: HubPaths, tmp_path: Path) -> None:
    clock = SetClock(time.time())
    async with AsyncExitStack() as parts:
        world = await parts.enter_async_context(trust_world(hub_paths, clock))
        book = PresenceBook(world.store, clock)
        device = await world.enrol("cam-1")
        await world.revoker.publish()
        broker = await parts.enter_async_context(Broker(world.config, world.paths))
        await broker.ready()
        serving = Serving(world.store, world.blobs, world.image, world.director)
        handlers = Handlers(
            serving.answer, never, never, world.devices.accept_report, world.devices.behind, on_presence=book.note
        )
        hub = await parts.enter_async_context(HubLink(world.config, world.paths, handlers))
        await until(hub.connected.is_set, "the hub")
        work = asyncio.create_task(book.run())
        parts.callback(work.cancel)
        tls = device.context(tmp_path)
        slow = msgspec.structs.replace(SOON, reconnect_first_s=60.0, reconnect_ceiling_s=60.0)
        link = Link("cam-1", "localhost", world.config.mqtt_port, lambda: tls, slow, jitter=lambda: 1.0)

        async def online() -> bool:
            return (await world.devices.get("cam-1")).online

        async def offline() -> bool:
            return not await online()

        async with running(link):
            await until_async(online, "the device at the hub")
            clock.advance(60)
            cut(link)
            await until_async(offline, "its last will at the hub")
        found = await world.devices.get("cam-1")
        assert found.offline_at == clock()


async def never(_device: str, _said: object) -> Any:
    raise AssertionError("nobody asks for this here")
