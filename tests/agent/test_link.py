"""The link over a real broker: asks and is answered, is refused, loses its connection and comes back."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from agent.config import LinkLimits
from agent.errors import LinkDown, LinkError, LinkTimeout, NotAuthorised, Refused
from agent.link import Link, LinkStatus
from modules.messages import Ack, AgentEvent, Answer, Doorbell, Get, encode
from modules.topics import down, up
from support.certificates import make_ca, make_client
from support.hub import FakeHub
from support.links import QUICK, make_link, running
from support.mosquitto import Mosquitto
from support.waiting import until

DEVICE = "cam-17"
HELLO = encode(AgentEvent(1.0, "info", "hello", "hello"))


@pytest.fixture
async def hub(broker: Mosquitto) -> AsyncIterator[FakeHub]:
    async with FakeHub(broker, {("blob", "a" * 64): b"0123456789"}) as hub:
        yield hub


@pytest.fixture
async def link(broker: Mosquitto, hub: FakeHub) -> AsyncIterator[Link]:
    async with running(make_link(broker)) as link:
        yield link


async def test_get_brings_the_bytes_asked_for(link: Link) -> None:
    assert await link.get("blob", "a" * 64, 2, 3) == Answer(10, 2, b"234")


async def test_many_gets_at_once_get_their_own_answers(link: Link) -> None:
    answers = await asyncio.gather(*(link.get("blob", "a" * 64, at, 1) for at in range(10) for _ in range(20)))
    assert [answer.data for answer in answers] == [b"%d" % at for at in range(10) for _ in range(20)]


async def test_a_refusal_comes_out_with_its_key(link: Link) -> None:
    with pytest.raises(Refused, match="no image file nothing") as caught:
        await link.get("image", "nothing.json")
    assert caught.value.key == "not-found"


async def test_no_answer_in_time_is_a_timeout(link: Link, hub: FakeHub) -> None:
    hub.answer = lambda get: None
    with pytest.raises(LinkTimeout, match=r"blob a+: no answer from the hub within 0.1 s"):
        await link.get("blob", "a" * 64, timeout_s=0.1)


async def test_an_answer_of_another_place_is_not_taken(link: Link, hub: FakeHub) -> None:
    hub.answer = lambda get: Answer(10, get.offset + 1, b"1")
    with pytest.raises(LinkError, match="expected at most 3 bytes from 2, got 1 bytes from 3"):
        await link.get("blob", "a" * 64, 2, 3)


async def test_answers_nobody_waits_for_are_ignored(link: Link, hub: FakeHub) -> None:
    for correlation in (b"", b"other life, other question"):
        await hub.say(down(DEVICE, "data"), encode(Answer(1, 0, b"x")), correlation=correlation)
    await hub.say(down(DEVICE, "data"), b"no message at all")
    assert (await link.get("blob", "a" * 64)).data == b"0123456789"


async def test_a_publish_returns_when_the_broker_has_it(link: Link, hub: FakeHub) -> None:
    await link.publish(up(DEVICE, "get"), encode(Get("blob", "b" * 64)))
    await until(lambda: bool(hub.asked), "the message to arrive")
    assert hub.asked == [Get("blob", "b" * 64)]


@pytest.mark.parametrize("topic", [up("cam-18", "sample"), down(DEVICE, "desired"), "mooring/1"])
async def test_a_publish_that_the_access_rules_forbid_is_an_error(link: Link, topic: str) -> None:
    with pytest.raises(NotAuthorised, match="0x87"):
        await link.publish(topic, HELLO)


async def test_a_doorbell_rings_also_when_it_came_before_the_device(broker: Mosquitto, hub: FakeHub) -> None:
    await hub.ring(DEVICE, 7)
    heard: list[Doorbell] = []
    link = make_link(broker)
    link.on_doorbell(heard.append)
    async with running(link):
        await until(lambda: heard == [Doorbell(7)], "the retained doorbell")
        await hub.ring(DEVICE, 8)
        await until(lambda: heard[-1] == Doorbell(8), "the next doorbell")


async def test_an_ack_is_heard(broker: Mosquitto, hub: FakeHub) -> None:
    heard: list[Ack] = []
    link = make_link(broker)
    link.on_ack(heard.append)
    async with running(link):
        await hub.say(down(DEVICE, "ack"), encode(Ack("sample", "e", 4)))
        await until(lambda: heard == [Ack("sample", "e", 4)], "the ack")


async def test_other_devices_messages_never_arrive(link: Link, hub: FakeHub) -> None:
    heard: list[Doorbell] = []
    link.on_doorbell(heard.append)
    await hub.ring("cam-18", 1)
    await hub.ring(DEVICE, 2)
    await until(lambda: bool(heard), "the own doorbell")
    assert heard == [Doorbell(2)]


async def test_the_broker_killed_fails_what_waits_at_once_and_the_link_comes_back(
    link: Link, hub: FakeHub, broker: Mosquitto
) -> None:
    hub.answer = lambda get: None
    waiting = asyncio.create_task(link.get("blob", "a" * 64, timeout_s=50))
    await until(lambda: bool(hub.asked), "the request to arrive")
    await broker.kill()
    with pytest.raises(LinkDown, match="ended before the hub answered"):
        await waiting
    await until(lambda: not link.connected.is_set(), "the link to notice")
    with pytest.raises(LinkDown, match="there is no connection to localhost"):
        await link.get("blob", "a" * 64)
    await broker.start()
    await until(lambda: link.session == 2, "the second connection")
    hub.answer = hub.from_files
    await until(lambda: hub._ready.is_set(), "the hub to come back")
    assert (await link.get("blob", "a" * 64)).data == b"0123456789"


async def test_a_link_without_a_broker_goes_on_trying_and_says_so_once(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    await broker.kill()
    link, states = make_link(broker), list[LinkStatus]()
    link.on_change(states.append)
    async with running(link, wait=False):
        await until(lambda: link.status.attempts >= 4, "four attempts")
        assert "refused" in link.status.error
        assert [record.message for record in caplog.records if "no connection" in record.message][1:] == []
        await broker.start()
        await until(link.connected.is_set, "the connection")
    assert states[-1].connected


async def test_another_server_is_not_talked_to(broker: Mosquitto) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=make_ca("somebody else").pem)
    link = Link(DEVICE, "localhost", broker.port, lambda: context, QUICK)
    async with running(link, wait=False):
        await until(lambda: link.status.attempts > 0, "the first attempt")
    assert "CERTIFICATE_VERIFY_FAILED" in link.status.error


async def test_a_certificate_of_another_ca_does_not_get_in(broker: Mosquitto) -> None:
    tls = broker.tls(make_client(make_ca("somebody else"), DEVICE), "stranger")
    link = Link(DEVICE, "localhost", broker.port, lambda: tls, LinkLimits(connect_timeout_s=1.0))
    async with running(link, wait=False):
        await until(lambda: link.status.attempts > 0, "the first attempt")
    assert not link.connected.is_set()


async def test_a_link_ends_while_it_is_connecting_without_leaving_anything(broker: Mosquitto) -> None:
    for _ in range(3):
        task = asyncio.create_task(make_link(broker).run())
        await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert [task for task in asyncio.all_tasks() if task.get_name() == "link-connect"] == []
