"""The hub's link over a real broker: answers, acknowledgements after the commit, doorbells, and bad company."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from cloud_hub.broker import Broker, client_context
from cloud_hub.config import HubPaths
from cloud_hub.errors import Unavailable
from cloud_hub.link import Handlers, HubLink
from cloud_hub.serving import Serving
from modules.bundle import sha256_hex
from modules.manifest import decode_manifest
from modules.messages import (
    MAX_BLOCK_BYTES,
    Ack,
    Answer,
    Batch,
    Doorbell,
    Get,
    Message,
    ModuleReport,
    Refusal,
    Renew,
    Renewed,
    decode,
    encode,
)
from modules.topics import Up, all_down, down, up
from support.clock import SetClock
from support.devices import EnrolledDevice, make_report
from support.trust import OPERATOR, TrustWorld, trust_world
from support.waiting import until, until_async

DEADLINE_S = 15.0


class Committed:
    """The end of a batch's way: keeps what came, and acknowledges it, unless it is told to fail."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, Batch]] = []
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def commit(self, device: str, batch: Batch) -> Ack | None:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.batches.append((device, batch))
        return Ack(batch.stream, batch.epoch, batch.entries[-1][0]) if batch.entries else None


async def no_renewal(_device: str, _renew: Renew) -> Renewed | Refusal:
    return Refusal("bad-request", "no renewals here")


class Hub:
    """Broker, link and the rooms behind it."""

    def __init__(self, world: TrustWorld, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.committed = Committed()
        self.broker = Broker(world.config, world.paths)
        serving = Serving(world.store, world.blobs, world.image, world.director)
        handlers = Handlers(
            serving.answer, no_renewal, self.committed.commit, world.devices.accept_report, world.devices.behind
        )
        self.link = HubLink(world.config, world.paths, handlers)

    async def online(self) -> None:
        await asyncio.wait_for(self.link.connected.wait(), DEADLINE_S)

    @asynccontextmanager
    async def device(self, device: EnrolledDevice) -> AsyncIterator["Device"]:
        async with aiomqtt.Client(
            "localhost",
            self.world.config.mqtt_port,
            identifier=device.id,
            protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=device.context(self.folder),
            timeout=5,
        ) as client:
            await client.subscribe(all_down(device.id), qos=1)
            yield Device(client, device.id)


class Device:
    """What an agent does on the bus, in a few lines."""

    def __init__(self, client: aiomqtt.Client, name: str) -> None:
        self.client = client
        self.name = name
        self._numbers = itertools.count(1)

    async def say(self, channel: Up, message: Message, retain: bool = False) -> None:
        await self.client.publish(up(self.name, channel), encode(message), qos=1, retain=retain)

    async def hear(self, kind: type[Message]) -> Message:
        async with asyncio.timeout(DEADLINE_S):
            async for message in self.client.messages:
                decoded = decode(message.payload)
                if isinstance(decoded, kind):
                    return decoded
        raise AssertionError("the connection ended")

    async def get(self, get: Get) -> Answer | Refusal:
        correlation = b"%d" % next(self._numbers)
        await self.request(get, correlation, down(self.name, "data"))
        async with asyncio.timeout(DEADLINE_S):
            async for message in self.client.messages:
                if getattr(message.properties, "CorrelationData", None) == correlation:
                    answer = decode(message.payload)
                    assert isinstance(answer, Answer | Refusal)
                    return answer
        raise AssertionError("the connection ended")

    async def request(self, get: Get, correlation: bytes, response_topic: str, expiry_s: int = 0) -> None:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.CorrelationData = correlation
        if expiry_s:
            properties.MessageExpiryInterval = expiry_s
        properties.ResponseTopic = response_topic
        await self.client.publish(up(self.name, "get"), encode(get), qos=0, properties=properties)


@pytest.fixture
async def world(hub_paths: HubPaths) -> AsyncIterator[TrustWorld]:
    async with trust_world(hub_paths, SetClock(time.time())) as world:
        yield world


@pytest.fixture
async def hub(world: TrustWorld, tmp_path: Path) -> AsyncIterator[Hub]:
    hub = Hub(world, tmp_path / "devices")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(hub.broker)
        await hub.broker.ready()
        await stack.enter_async_context(hub.link)
        await hub.online()
        yield hub


def batch(*numbers: int, stream: str = "window", previous: int = 0) -> Batch:
    entries = tuple((number, b"item %d" % number) for number in numbers)
    return Batch("sample" if stream == "sample" else "window", "epoch-1", previous, entries)


async def test_a_device_fetches_metadata_and_the_files_of_its_module_block_by_block(hub: Hub) -> None:
    content = os.urandom(3 * MAX_BLOCK_BYTES // 2)
    manifest = await hub.world.add_signed("digits", content=content)
    device = await hub.world.enrol("cam-1")
    await hub.world.assign("cam-1", "digits")
    async with hub.device(device) as cam:
        for repository in ("image", "director"):
            answer = await cam.get(Get("image" if repository == "image" else "director", "timestamp.json"))
            assert isinstance(answer, Answer)
            assert answer.total == len(answer.data)
        answer = await cam.get(Get("blob", manifest))
        assert isinstance(answer, Answer)
        entry = decode_manifest(answer.data).file("model.onnx")
        whole = b""
        while len(whole) < entry.size:
            answer = await cam.get(Get("blob", entry.sha256, len(whole), 10 * MAX_BLOCK_BYTES))
            assert isinstance(answer, Answer)
            assert len(answer.data) <= MAX_BLOCK_BYTES
            whole += answer.data
        assert sha256_hex(whole) == entry.sha256


async def test_what_a_device_may_not_have_or_what_is_not_there_is_refused_with_a_reason(hub: Hub) -> None:
    theirs = await hub.world.add_signed("secret", content=b"theirs")
    await hub.world.add_signed("digits", content=b"mine")
    device, other = await hub.world.enrol("cam-1"), await hub.world.enrol("cam-2")
    await hub.world.assign("cam-1", "digits")
    await hub.world.assign("cam-2", "secret")
    async with hub.device(device) as cam, hub.device(other):
        for get, key in (
            (Get("blob", theirs), "not-allowed"),
            (Get("blob", sha256_hex(b"theirs")), "not-allowed"),
            (Get("blob", "../../hub.toml"), "not-allowed"),
            (Get("image", "7.root.json"), "not-found"),
            (Get("director", "../cam-2/targets.json"), "not-found"),
            (Get("image", "timestamp.json", offset=-1), "bad-request"),
            (Get("image", "timestamp.json", length=0), "bad-request"),
        ):
            answer = await cam.get(get)
            assert isinstance(answer, Refusal), get
            assert answer.key == key, get


async def test_saying_that_one_runs_a_module_opens_nothing(hub: Hub) -> None:
    theirs = await hub.world.add_signed("secret")
    device = await hub.world.enrol("cam-1")
    claim = ModuleReport("secret", 1, theirs, 1, "rollout-1", "serving", verified=True)
    await hub.world.devices.accept_report("cam-1", device.sign(make_report("cam-1", modules=(claim,))))
    async with hub.device(device) as cam:
        answer = await cam.get(Get("blob", theirs))
        assert isinstance(answer, Refusal)
        assert answer.key == "not-allowed"


async def test_a_retired_device_gets_nothing_on_a_connection_that_still_stands(hub: Hub) -> None:
    device = await hub.world.enrol("cam-1")
    async with hub.device(device) as cam:
        await hub.world.devices.retire("cam-1", OPERATOR)
        answer = await cam.get(Get("director", "timestamp.json"))
        assert isinstance(answer, Refusal)
        assert answer.key == "not-allowed"


async def test_a_batch_is_acknowledged_only_after_its_commit(hub: Hub) -> None:
    device = await hub.world.enrol("cam-1")
    hub.committed.gate.clear()
    async with hub.device(device) as cam:
        await cam.say("window", batch(1, 2))
        heard = asyncio.create_task(cam.hear(Ack))
        # An answered request shows that the hub goes on, and that nothing else has been sent before it.
        async with hub.device(await hub.world.enrol("cam-2")) as other:
            assert isinstance(await other.get(Get("image", "timestamp.json")), Answer)
        assert not heard.done()
        hub.committed.gate.set()
        assert await heard == Ack("window", "epoch-1", 2)


async def test_batches_of_one_stream_are_handled_in_order(hub: Hub) -> None:
    device = await hub.world.enrol("cam-1")
    hub.committed.gate.clear()
    async with hub.device(device) as cam:
        for number in range(1, 11):
            await cam.say("window", batch(number))
        hub.committed.gate.set()
        await until(lambda: len(hub.committed.batches) == 10, "all batches")
    assert [found.entries[0][0] for _, found in hub.committed.batches] == list(range(1, 11))


async def test_a_failed_commit_is_not_acknowledged_and_stops_nothing(hub: Hub) -> None:
    device = await hub.world.enrol("cam-1")
    async with hub.device(device) as cam:
        for failure, key in ((Unavailable("store-busy", "still writing"), "store-busy"), (OSError("disk"), "internal")):
            hub.committed.failure = failure
            await cam.say("window", batch(1))
            await until(lambda key=key: hub.link.dropped[key] == 1, "the failure to be counted")  # type: ignore[misc]
        hub.committed.failure = None
        await cam.say("window", batch(1))
        assert await cam.hear(Ack) == Ack("window", "epoch-1", 1)


async def test_what_is_no_message_or_on_the_wrong_topic_is_counted_and_stops_nothing(hub: Hub) -> None:
    device = await hub.world.enrol("cam-1")
    async with hub.device(device) as cam:
        for payload in (b"", b"\xff" * 100, b"not msgpack", encode(Doorbell(1)), encode(batch(1, stream="sample"))):
            await cam.client.publish(up("cam-1", "window"), payload, qos=1)
        await cam.client.publish(up("cam-1", "get"), encode(Get("image", "timestamp.json")), qos=0)
        await cam.request(Get("image", "timestamp.json"), b"1", down("cam-2", "data"))
        await until(lambda: hub.link.dropped["message-invalid"] == 7, "all to be counted")
        assert isinstance(await cam.get(Get("image", "timestamp.json")), Answer)
    assert hub.committed.batches == []


async def test_reports_reach_the_inventory_and_forged_ones_are_dropped(hub: Hub) -> None:
    device, other = await hub.world.enrol("cam-1"), await hub.world.enrol("cam-2")
    async with hub.device(device) as cam:
        await cam.say("state", other.sign(make_report("cam-1", counter=9)), retain=True)
        await until(lambda: hub.link.dropped["report-signature"] == 1, "the forged report to be dropped")
        await cam.say("state", device.sign(make_report("cam-1", counter=1)), retain=True)

        async def is_online() -> bool:
            return (await hub.world.devices.get("cam-1")).online

        await until_async(is_online, "the report")


async def test_a_doorbell_reaches_a_device_that_connects_later(hub: Hub) -> None:
    device = await hub.world.enrol("cam-1")
    await hub.link.ring("cam-1", 7)
    async with hub.device(device) as cam:
        assert await cam.hear(Doorbell) == Doorbell(7)


async def test_a_lost_doorbell_heals_with_the_next_connection(world: TrustWorld, tmp_path: Path) -> None:
    device = await world.enrol("cam-1")
    hub = Hub(world, tmp_path / "devices")
    await hub.link.ring("cam-1", 1)  # nobody is there: not an error
    async with hub.broker:
        await hub.broker.ready()
        async with hub.link, hub.device(device) as cam:
            assert await cam.hear(Doorbell) == Doorbell(1)


async def test_the_link_comes_back_after_the_broker_was_killed(hub: Hub) -> None:
    device = await hub.world.enrol("cam-1")
    first, session = hub.broker.pid, hub.link.session
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: hub.link.session > session, "the link to come back")
    async with hub.device(device) as cam:
        await cam.say("window", batch(1))
        assert await cam.hear(Ack) == Ack("window", "epoch-1", 1)


async def test_the_link_ends_though_the_broker_answers_nothing(world: TrustWorld, tmp_path: Path) -> None:
    hub = Hub(world, tmp_path / "devices")
    async with hub.broker:
        await hub.broker.ready()
        async with hub.link:
            await hub.online()
            pid = hub.broker.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGCONT)
        assert "link" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_a_device_that_floods_does_not_keep_others_waiting(hub: Hub) -> None:
    device, other = await hub.world.enrol("cam-1"), await hub.world.enrol("cam-2")
    async with hub.device(device) as flood, hub.device(other) as cam:
        for number in range(400):
            await flood.request(Get("image", "timestamp.json"), b"%d" % number, down("cam-1", "data"))
        assert isinstance(await cam.get(Get("image", "timestamp.json")), Answer)


async def test_a_question_that_its_device_has_given_up_is_not_answered(world: TrustWorld, tmp_path: Path) -> None:
    hub, gate, asked = Hub(world, tmp_path / "devices"), asyncio.Event(), []

    async def answer(_device: str, get: Get) -> Answer | Refusal:
        asked.append(get.name)
        await gate.wait()
        return Refusal("not-found", get.name)

    handlers = Handlers(answer, no_renewal, hub.committed.commit, world.devices.accept_report, world.devices.behind)
    link = HubLink(world.config, world.paths, handlers)
    device = await world.enrol("cam-1")
    async with hub.broker:
        await hub.broker.ready()
        async with link, hub.device(device) as cam:
            await asyncio.wait_for(link.connected.wait(), DEADLINE_S)
            for name, expiry_s in (("first", 60), ("second", 1), ("third", 60)):
                await cam.request(Get("image", name), name.encode(), down("cam-1", "data"), expiry_s)
            await until(lambda: asked == ["first"], "the first question to be worked on")
            given_up = time.monotonic() + 1.5
            await until(lambda: time.monotonic() > given_up, "the device to give up")
            gate.set()
            await until(lambda: asked == ["first", "third"], "the third question to be worked on")
            assert link.dropped["expired"] == 1


async def test_the_link_takes_its_session_back_from_a_second_login(hub: Hub) -> None:
    first = hub.link.session
    async with aiomqtt.Client(
        "localhost",
        hub.world.config.mqtt_port,
        identifier="x",
        protocol=aiomqtt.ProtocolVersion.V5,
        tls_context=client_context(hub.world.paths),
    ):
        # A second login with the hub's certificate takes the session over; the link takes it back by itself, perhaps
        # faster than anybody looks.
        await until(lambda: hub.link.session > first, "the link to take its session back")
    await hub.online()
