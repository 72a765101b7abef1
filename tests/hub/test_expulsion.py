"""`mooring device revoke` against a real hub and broker: the device is out, and what it held at the broker is gone."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiomqtt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from cloud_hub.broker import client_context
from cloud_hub.claims import NewToken
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.transport import Transport
from modules.enrolment import EnrollAnswer, EnrollRequest
from modules.messages import encode
from modules.topics import all_down, all_up, down, up
from support.devices import PROFILE, EnrolledDevice, make_report, make_request
from support.hubs import running_hub
from support.waiting import until_async

DEADLINE_S = 10.0


@dataclass(frozen=True)
class Hub:
    """A running hub, its client, and devices of it."""

    client: HubClient
    paths: HubPaths
    config: HubConfig
    folder: Path

    async def enrol(self, device: str) -> EnrolledDevice:
        key = ec.generate_private_key(ec.SECP256R1())
        token = await self.client.create_token(NewToken(device=device))
        request = EnrollRequest(token, device, make_request(device, key), PROFILE)
        async with Transport(self.client.context) as http:
            return EnrolledDevice(key, await http.ask(EnrollAnswer, "POST", "/enroll", request))

    def connect(self, context: ssl.SSLContext, name: str, *, keep: bool = False) -> aiomqtt.Client:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600 if keep else 0
        return aiomqtt.Client(
            "localhost", self.config.mqtt_port, identifier=name, protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=context, timeout=5, clean_start=not keep, properties=properties,
        )  # fmt: skip

    def as_hub(self) -> aiomqtt.Client:
        """A second client of the hub's kind would take its place; so it listens with rights of its own: none needed."""
        return self.connect(client_context(self.paths), "_hub")


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    async with running_hub(tmp_path / "hub") as client:
        paths = HubPaths(tmp_path / "hub")
        yield Hub(client, paths, HubConfig.load(paths.root), tmp_path)


async def refused(hub: Hub, context: ssl.SSLContext, name: str) -> bool:
    try:
        async with hub.connect(context, name):
            return False
    except (aiomqtt.MqttError, ssl.SSLError, OSError):
        return True


async def test_a_device_that_is_revoked_loses_its_session_and_gets_no_new_one(hub: Hub) -> None:
    device, other = await hub.enrol("cam-1"), await hub.enrol("cam-2")
    context = device.context(hub.folder)
    ended = asyncio.Event()

    async def live() -> None:
        with contextlib.suppress(aiomqtt.MqttError):
            async with hub.connect(context, "cam-1") as cam:
                await cam.subscribe(all_down("cam-1"), qos=1)
                connected.set()
                async for _ in cam.messages:
                    pass
        ended.set()

    connected = asyncio.Event()
    task = asyncio.create_task(live())
    await asyncio.wait_for(connected.wait(), DEADLINE_S)
    result = await hub.client.revoke("cam-1")
    assert result.out, result
    assert [step.name for step in result.steps] == [
        "renewal blocked", "certificate refused", "session ended", "directing stopped"
    ]  # fmt: skip
    await asyncio.wait_for(ended.wait(), DEADLINE_S)
    await task
    assert await refused(hub, context, "cam-1"), "not even once"
    assert not await refused(hub, other.context(hub.folder), "cam-2"), "nobody else is touched"
    assert (await hub.client.device("cam-1")).device.retired_at is not None
    assert "device.revoked" in [event.kind for event in await hub.client.events(subject="cam-1")]
    assert (await hub.client.revoke("cam-1")).out, "again is harmless"


async def test_nothing_that_a_revoked_device_says_reaches_the_hub(hub: Hub) -> None:
    device = await hub.enrol("cam-1")
    await hub.client.revoke("cam-1")
    before = (await hub.client.device("cam-1")).device
    with contextlib.suppress(aiomqtt.MqttError, OSError):
        async with hub.connect(device.context(hub.folder), "cam-1") as cam:
            await cam.publish(up("cam-1", "state"), encode(device.sign(make_report("cam-1", 5))), qos=1)
    after = (await hub.client.device("cam-1")).device
    assert (after.report, after.report_at) == (before.report, before.report_at)


async def test_row_56_a_retained_message_of_a_revoked_device_is_not_delivered(hub: Hub) -> None:
    device = await hub.enrol("cam-1")
    async with hub.connect(device.context(hub.folder), "cam-1") as cam:
        await cam.publish(up("cam-1", "state"), encode(device.sign(make_report("cam-1", 5))), qos=1, retain=True)
    await until_async(lambda: _reported(hub, "cam-1"), "the report")
    assert (await hub.client.revoke("cam-1")).out
    again = await hub.enrol("cam-1")
    # Whoever is cam-1 now finds nothing retained, and a hub that connects anew hears nothing of the old one.
    async with hub.as_hub() as listener:
        await listener.subscribe(all_up("state"), qos=1)
        await listener.subscribe(down("cam-1", "desired"), qos=1)
        await listener.publish(up("cam-2", "state"), b"after", qos=1)
        message = await asyncio.wait_for(anext(listener.messages), DEADLINE_S)
        assert message.payload == b"after"
    assert again.id == "cam-1"


async def test_row_57_what_waited_for_a_device_without_rights_is_not_delivered_afterwards(hub: Hub) -> None:
    device = await hub.enrol("cam-1")
    async with hub.connect(device.context(hub.folder), "cam-1", keep=True) as cam:
        await cam.subscribe(all_down("cam-1"), qos=1)
    async with hub.as_hub() as speaker:
        await speaker.publish(down("cam-1", "command"), b"secret", qos=1)
    await until_async(lambda: _link_is_back(hub), "the hub's own link")
    assert (await hub.client.revoke("cam-1")).out
    again = await hub.enrol("cam-1")
    async with hub.connect(again.context(hub.folder), "cam-1", keep=True) as cam:
        await cam.subscribe(all_down("cam-1"), qos=1)
        async with hub.as_hub() as speaker:
            await speaker.publish(down("cam-1", "command"), b"for the new one", qos=1)
        heard = []
        while b"for the new one" not in heard:
            heard.append((await asyncio.wait_for(anext(cam.messages), DEADLINE_S)).payload)
        assert b"secret" not in heard


async def _reported(hub: Hub, device: str) -> bool:
    return (await hub.client.device(device)).device.report is not None


async def _link_is_back(hub: Hub) -> bool:
    return (await hub.client.health()).broker
