"""A whole hub in this process, as `serve` runs it, and one device that speaks to it over the real broker."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import pytest
from aiohttp import ClientSession, TCPConnector
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import BadRequest, Unavailable
from cloud_hub.initialise import free_ports, initialise
from cloud_hub.service import Ready, open_hub, serve
from modules.enrolment import EnrollAnswer
from modules.messages import Ack, AgentEvent, Answer, Batch, Get, Message, decode, encode
from modules.topics import Up, all_down, down, up
from support.devices import EnrolledDevice, make_report, make_request
from support.waiting import until, until_async

DEVICE = "cam-1"
DEADLINE_S = 15.0


@pytest.fixture
async def paths(tmp_path: Path) -> HubPaths:
    api, mqtt = free_ports(2)
    config = HubConfig(dev=True, api_host="127.0.0.1", api_port=api, mqtt_host="127.0.0.1", mqtt_port=mqtt)
    return await initialise(tmp_path / "hub", config)


@asynccontextmanager
async def running(paths: HubPaths) -> AsyncIterator[Ready]:
    stop = asyncio.Event()
    said: list[Ready] = []
    task = asyncio.create_task(serve(paths, stop.wait, said.append))
    try:
        await until(lambda: bool(said) or task.done(), "the hub to be ready", 30)
        if task.done():
            await task
        yield said[0]
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)


@asynccontextmanager
async def operator(paths: HubPaths) -> AsyncIterator[ClientSession]:
    tls = ssl.create_default_context(cafile=paths.server_ca_crt)
    headers = {"Authorization": f"Bearer {paths.operator_token.read_text().strip()}"}
    base = f"{HubConfig.load(paths.root).api_url}/"
    async with ClientSession(base, headers=headers, connector=TCPConnector(ssl=tls)) as session:
        yield session


async def ask(session: ClientSession, method: str, path: str, body: object = None) -> Any:
    async with session.request(method, f"/api/v1{path}", json=body) as response:
        answer = await response.json()
        assert response.ok, answer
        return answer


async def enrol(session: ClientSession) -> EnrolledDevice:
    key = ec.generate_private_key(ec.SECP256R1())
    token = (await ask(session, "POST", "/tokens", {"device": DEVICE}))["token"]
    request = {"token": token, "device": DEVICE, "csr": make_request(DEVICE, key), "profile": "generic-x86_64"}
    return EnrolledDevice(key, msgspec.convert(await ask(session, "POST", "/enroll", request), EnrollAnswer))


@asynccontextmanager
async def connected(device: EnrolledDevice, folder: Path) -> AsyncIterator[aiomqtt.Client]:
    async with aiomqtt.Client(
        device.answer.mqtt_host,
        device.answer.mqtt_port,
        identifier=device.id,
        protocol=aiomqtt.ProtocolVersion.V5,
        tls_context=device.context(folder),
        timeout=DEADLINE_S,
    ) as client:
        await client.subscribe(all_down(device.id), qos=1)
        yield client


async def say(client: aiomqtt.Client, channel: Up, message: Message, correlation: bytes = b"1") -> None:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if channel == "get":
        properties.ResponseTopic = down(DEVICE, "data")
        properties.CorrelationData = correlation
    await client.publish(up(DEVICE, channel), encode(message), qos=1, properties=properties)


async def hear(client: aiomqtt.Client, kind: type[Message]) -> Message:
    """The next message of this kind; doorbells and others in between are passed over."""
    async with asyncio.timeout(DEADLINE_S):
        async for message in client.messages:
            if isinstance(found := decode(message.payload), kind):
                return found
    raise AssertionError("the connection ended")


async def test_a_device_is_answered_acknowledged_and_believed(paths: HubPaths, tmp_path: Path) -> None:
    batch = Batch("event", "life-1", 0, ((1, encode(AgentEvent(1.0, "info", "started", "the agent has started"))),))
    async with running(paths), operator(paths) as session:
        device = await enrol(session)
        async with connected(device, tmp_path) as client:
            await say(client, "get", Get("director", "timestamp.json"))
            answer = await hear(client, Answer)
            assert isinstance(answer, Answer)
            assert json.loads(answer.data)["signed"]["_type"] == "timestamp"
            await say(client, "event", batch)
            assert await hear(client, Ack) == Ack("event", "life-1", 1)
            await say(client, "state", device.sign(make_report(DEVICE, director_version=1)))

            async def reported() -> bool:
                return bool((await ask(session, "GET", f"/devices/{DEVICE}"))["device"]["online"])

            await until_async(reported, "the report to count")
    async with running(paths), operator(paths) as session:
        async with connected(device, tmp_path) as client:
            await say(client, "event", batch)
            assert await hear(client, Ack) == Ack("event", "life-1", 1)
        events = await ask(session, "GET", "/events?kind=agent.started")
        assert [(event["subject"], event["actor"]) for event in events] == [(DEVICE, f"device:{DEVICE}")]


async def test_a_hub_whose_revocation_list_is_gone_writes_it_anew_and_starts(paths: HubPaths) -> None:
    paths.crl.unlink()
    async with running(paths):
        assert paths.crl.read_bytes().startswith(b"-----BEGIN X509 CRL-----")


async def test_a_hub_that_cannot_reach_its_broker_says_so_and_leaves_nothing_running(paths: HubPaths) -> None:
    port = free_ports(1)[0]
    with pytest.raises(Unavailable, match=f"broker at 127.0.0.1:{port}"):
        await serve(
            paths, asyncio.Event().wait, lambda _: None, broker=f"mqtts://127.0.0.1:{port}", start_deadline_s=0.5
        )
    assert [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


@pytest.mark.parametrize(("broker", "words"), [("mqtt://plain:1883", "broker: expected mqtts://"), ("x", "broker")])
async def test_a_broker_address_that_cannot_be_is_refused(paths: HubPaths, broker: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        await serve(paths, asyncio.Event().wait, lambda _: None, broker=broker)


async def test_profiles_that_cannot_be_read_are_named(paths: HubPaths, tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "ours.toml").write_text("[bench]\narch = 7\n")
    msgspec.structs.replace(HubConfig.load(paths.root), profiles=str(folder)).write(paths.root)
    with pytest.raises(BadRequest, match=r"ours\.toml"):
        async with open_hub(paths):
            pass
