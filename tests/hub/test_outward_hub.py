"""A whole hub tells others what happens: over its API, its command, and its own broker."""

import asyncio
import json
from pathlib import Path

import aiomqtt
import pytest
from typer.testing import CliRunner

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.operator.cli.root import app
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.errors import Refused
from cloud_hub.outward.settings import OutwardSettings
from cloud_hub.outward.webhooks import NewWebhook
from cloud_hub.roles import Role
from support.certificates import Pair, make_client
from support.hubs import running_hub
from support.receiver import receiving
from support.waiting import until

TOPIC = "mooring/events"
SETTINGS = OutwardSettings(private_addresses=True, plain_http=True, mqtt_topic=TOPIC, mqtt_readers=("grafana",))


async def mooring(paths: HubPaths, *arguments: str) -> tuple[int, str]:
    """Exit status and output of the command, in a thread: the hub runs on this loop."""
    command = ["--context", str(paths.context), *arguments]
    done = await asyncio.to_thread(CliRunner().invoke, app, command)
    return done.exit_code, done.output


async def test_a_hub_delivers_what_an_administrator_asks_for(tmp_path: Path) -> None:
    paths = HubPaths(tmp_path / "hub")
    async with running_hub(paths.root, outward=SETTINGS) as hub, receiving() as endpoint:
        status, text = await mooring(
            paths, "webhooks", "create", endpoint.url, "--kind", "module.*", "--kind", "webhook.paused", "-o", "json"
        )
        assert status == 0, text
        made = json.loads(text)
        number = made["webhook"]["id"]
        status, text = await mooring(paths, "webhooks", "test", number)
        assert (status, "delivered" in text) == (0, True), text
        assert endpoint.received[0].signed_with(made["secret"])
        await hub.pause_webhook(number)
        await hub.resume_webhook(number)
        await endpoint.has(2)
        assert endpoint.kinds == ["webhook.ping", "webhook.paused"]
        assert endpoint.received[1].event["source"] == hub.context.url
        assert endpoint.received[1].is_cloud_event()
        endpoint.answer(500)
        status, text = await mooring(paths, "webhooks", "test", number)
        assert (status, "500" in text) == (1, True), text
        for command in (("list",), ("show", number), ("dead", number)):
            status, text = await mooring(paths, "webhooks", *command)
            assert status == 0, text
            assert made["secret"] not in text
        status, text = await mooring(paths, "webhooks", "rotate", number)
        assert (status, "whsec_" in text) == (0, True), text
        assert (await mooring(paths, "webhooks", "redeliver", number))[0] == 2  # neither a number nor --all
        assert (await mooring(paths, "webhooks", "redeliver", number, "--all"))[0] == 0
        assert (await mooring(paths, "webhooks", "delete", number))[0] == 0
        assert await hub.webhooks() == []
        status, text = await mooring(paths, "webhooks", "show", number)
        assert (status, "no webhook" in text) == (1, True), text


async def test_only_administrators_have_to_do_with_webhooks(tmp_path: Path) -> None:
    async with running_hub(tmp_path / "hub", outward=SETTINGS) as hub:
        for role in (Role.VIEWER, Role.OPERATOR, Role.PUBLISHER):
            token = (await hub.create_api_token(f"a-{role}", role)).token
            context = type(hub.context)(hub.context.url, token, hub.context.ca)
            async with HubClient(context) as other:
                with pytest.raises(Refused, match="expected the role admin"):
                    await other.webhooks()
                with pytest.raises(Refused, match="expected the role admin"):
                    await other.create_webhook(NewWebhook("https://example.com/"))


async def test_events_on_the_hubs_broker_are_read_by_those_named_and_neither_read_nor_made_by_devices(
    tmp_path: Path,
) -> None:
    paths = HubPaths(tmp_path / "hub")
    async with running_hub(paths.root, outward=SETTINGS) as hub:
        config = HubConfig.load(paths.root, {})
        reader, device = (_client(paths, config, name) for name in ("grafana", "cam-1"))
        seen: dict[str, list[str]] = {"grafana": [], "cam-1": []}
        async with reader as eyes, device as thief:
            for client in (eyes, thief):
                await client.subscribe(f"{TOPIC}/#", qos=1)
            watching = [
                asyncio.create_task(_collect(client, seen[name]))
                for client, name in ((eyes, "grafana"), (thief, "cam-1"))
            ]
            await thief.publish(f"{TOPIC}/webhook", b'{"forged": true}', qos=1)
            await eyes.publish(f"{TOPIC}/webhook", b'{"forged": true}', qos=1)
            await hub.create_webhook(NewWebhook("https://example.com/"))
            await until(lambda: bool(seen["grafana"]), "an event at the broker", 60)
            # The broker has handled what came before this answer.
            await thief.subscribe("mooring/1/cam-1/down/ack", qos=1)
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
        assert all("forged" not in text for text in seen["grafana"])
        assert "io.mooring.webhook.created" in {json.loads(text)["type"] for text in seen["grafana"]}
        assert seen["cam-1"] == []


def _client(paths: HubPaths, config: HubConfig, name: str) -> aiomqtt.Client:
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(paths.device_ca_key.read_bytes(), None)
    ca = Pair(key, x509.load_pem_x509_certificate(paths.device_ca_crt.read_bytes()))  # type: ignore[arg-type]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(paths.server_ca_crt)
    context.load_cert_chain(*make_client(ca, name).write(paths.root.parent / "clients", name))
    return aiomqtt.Client(
        "localhost", config.mqtt_port, identifier=name, protocol=aiomqtt.ProtocolVersion.V5, tls_context=context,
        timeout=20,
    )  # fmt: skip


async def _collect(client: aiomqtt.Client, into: list[str]) -> None:
    async for message in client.messages:
        assert isinstance(message.payload, bytes)
        into.append(message.payload.decode())
