"""The broker as the hub's child: how it starts, talks, comes back and ends. Attacks on it are in tests/broker."""

import asyncio
import os
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiomqtt
import pytest
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from cloud_hub.broker import Broker, client_context, device_address, find_mosquitto, hub_address
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import Unavailable
from modules.topics import all_down, down, up
from support.clock import SetClock
from support.trust import TrustWorld, free_port, trust_world
from support.waiting import until

DEADLINE_S = 10.0


@pytest.fixture
async def world(hub_paths: HubPaths) -> AsyncIterator[TrustWorld]:
    import time

    async with trust_world(hub_paths, SetClock(time.time())) as world:
        yield world


@pytest.fixture
async def broker(world: TrustWorld) -> AsyncIterator[Broker]:
    async with Broker(world.config, world.paths) as broker:
        await broker.ready()
        yield broker


def connect(world: TrustWorld, context: ssl.SSLContext, client_id: str, **options: object) -> aiomqtt.Client:
    return aiomqtt.Client(
        "localhost",
        world.config.mqtt_port,
        identifier=client_id,
        protocol=aiomqtt.ProtocolVersion.V5,
        tls_context=context,
        timeout=5,
        **options,  # type: ignore[arg-type]
    )


def as_hub(world: TrustWorld) -> aiomqtt.Client:
    return connect(world, client_context(world.paths), "_hub")


async def publish(client: aiomqtt.Client, topic: str, payload: bytes) -> int:
    """The reason code with which the broker acknowledges; the client library itself does not look at it."""
    code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    before = client._client.on_publish

    def on_publish(
        paho: PahoClient, userdata: object, mid: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        code.set_result(int(reason.value))

    client._client.on_publish = on_publish
    client._client.publish(topic, payload, 1)
    result = await asyncio.wait_for(code, DEADLINE_S)
    client._client.on_publish = before
    return result


async def receive(client: aiomqtt.Client) -> aiomqtt.Message:
    return await asyncio.wait_for(anext(client.messages), DEADLINE_S)


async def test_what_a_device_says_reaches_the_hub_and_what_the_hub_says_the_device(
    world: TrustWorld, broker: Broker, tmp_path: Path
) -> None:
    device = await world.enrol("cam-1")
    async with as_hub(world) as hub, connect(world, device.context(tmp_path), "cam-1") as cam:
        await hub.subscribe("mooring/1/+/up/#", qos=1)
        await cam.subscribe(all_down("cam-1"), qos=1)
        assert await publish(cam, up("cam-1", "window"), b"counts") in (0x00, 0x10)
        assert (await receive(hub)).payload == b"counts"
        await hub.publish(down("cam-1", "ack"), b"taken", qos=1)
        assert (await receive(cam)).payload == b"taken"


async def test_a_device_that_claims_the_hub_s_client_id_does_not_disturb_the_hub(
    world: TrustWorld, broker: Broker, tmp_path: Path
) -> None:
    device, hostile = await world.enrol("cam-1"), await world.enrol("cam-2")
    async with as_hub(world) as hub, connect(world, device.context(tmp_path), "cam-1") as cam:
        await cam.subscribe(all_down("cam-1"), qos=1)
        async with connect(world, hostile.context(tmp_path), "_hub"):
            await hub.publish(down("cam-1", "desired"), b"still here", qos=1)
        assert (await receive(cam)).payload == b"still here"


async def test_a_broker_that_is_killed_comes_back(world: TrustWorld, broker: Broker) -> None:
    first = broker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: broker.pid not in (None, first), "a new broker")
    await broker.ready()


async def test_retained_doorbells_and_sessions_outlive_a_restart_of_the_hub(world: TrustWorld, tmp_path: Path) -> None:
    device = await world.enrol("cam-1")
    keep = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    keep.SessionExpiryInterval = 3600
    options = {"clean_start": False, "properties": keep}
    async with Broker(world.config, world.paths) as broker:
        await broker.ready()
        async with connect(world, device.context(tmp_path), "cam-1", **options) as cam:
            await cam.subscribe(all_down("cam-1"), qos=1)
        async with as_hub(world) as hub:
            await hub.publish(down("cam-1", "ack"), b"while away", qos=1)
            await hub.publish(down("cam-1", "desired"), b"doorbell", qos=1, retain=True)
    async with Broker(world.config, world.paths) as broker:
        await broker.ready()
        async with connect(world, device.context(tmp_path), "cam-1", **options) as cam:
            assert {(await receive(cam)).payload for _ in range(2)} == {b"while away", b"doorbell"}
        async with as_hub(world) as hub:
            await hub.subscribe(down("cam-1", "desired"), qos=1)
            assert (await receive(hub)).payload == b"doorbell"


async def test_nothing_stays_running_after_the_end(world: TrustWorld) -> None:
    async with Broker(world.config, world.paths) as broker:
        await broker.ready()
        pid = broker.pid
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_port_that_is_taken_is_told_with_the_broker_s_own_words(world: TrustWorld, broker: Broker) -> None:
    other = HubPaths(world.paths.root.parent / "other")
    async with trust_world(other, SetClock(), world.config) as second, Broker(second.config, other) as rival:
        with pytest.raises(Unavailable, match="Address already in use") as caught:
            await rival.ready(1.0)
    assert caught.value.key == "broker-not-ready"


async def test_a_machine_without_mosquitto_is_told_what_to_install(
    world: TrustWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_args, **_options: None)
    with pytest.raises(Unavailable, match="apt install mosquitto") as caught:
        async with Broker(world.config, world.paths):
            pass
    assert caught.value.key == "broker-missing"


def test_mosquitto_is_found_where_ordinary_users_do_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    assert find_mosquitto().name == "mosquitto"


async def test_a_broker_that_is_there_already_gets_no_child(hub_paths: HubPaths) -> None:
    config = HubConfig(broker="mqtts://mqtt.example:2883", mqtt_port=free_port())
    async with Broker(config, hub_paths) as broker:
        assert broker.pid is None
    assert not hub_paths.broker.exists()
    for address in (hub_address(config), device_address(config)):
        assert (address.host, address.port) == ("mqtt.example", 2883)
