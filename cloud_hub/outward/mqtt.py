"""Events to a topic of a broker: structured CloudEvents, quality 1, MQTT 5, a topic per family.

Source: MQTT protocol binding for CloudEvents 1.0.2, structured content mode. At the hub's own broker they go through
the hub's one connection there, because a second one under the same certificate would end the first. Elsewhere this
file keeps a connection of its own. Called by `room` through `sinks`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from cloud_hub.outward.cloud_events import MEDIA_TYPE, TYPE_PREFIX, CloudEvent, encode
from cloud_hub.outward.kinds import family
from cloud_hub.outward.settings import OutwardSettings

TIMEOUT_S: Final = 10.0
KEEPALIVE_S: Final = 30
_CLIENT: Final = "mooring-hub-events"

_CONTENT: Final = f"{MEDIA_TYPE}; charset=utf-8"

# topic, payload, content type; returns when the broker has it. Raises OSError or aiomqtt.MqttError.
Publish = Callable[[str, bytes, str], Awaitable[None]]


class Topics:
    """Publishes each event below `topic`."""

    def __init__(self, topic: str, publish: Publish) -> None:
        self._topic, self._publish = topic, publish

    async def take(self, events: Sequence[CloudEvent]) -> None:
        """Raises OSError or aiomqtt.MqttError."""
        for event in events:
            topic = f"{self._topic}/{family(event.type.removeprefix(TYPE_PREFIX))}"
            await self._publish(topic, encode(event), _CONTENT)


class OtherBroker:
    """A broker that is not the hub's. Connected at the first event; closed by `close`."""

    def __init__(self, settings: OutwardSettings) -> None:
        self._settings = settings
        self._client: aiomqtt.Client | None = None

    async def publish(self, topic: str, payload: bytes, content_type: str) -> None:
        """Raises aiomqtt.MqttError, OSError for files that cannot be read."""
        client = self._client or await self._connect()
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ContentType = content_type
        try:
            await client.publish(topic, payload, qos=1, properties=properties)
        except aiomqtt.MqttError:
            await self.close()
            raise

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                await client.__aexit__(None, None, None)
            except aiomqtt.MqttError:
                return  # it was broken already

    async def _connect(self) -> aiomqtt.Client:
        settings, url = self._settings, urlsplit(self._settings.mqtt_broker)
        context, password = await asyncio.to_thread(credentials, settings)
        client = aiomqtt.Client(
            url.hostname or "",
            url.port or 8883,
            identifier=_CLIENT,
            username=settings.mqtt_user or None,
            password=password,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=True,
            tls_context=context,
            timeout=TIMEOUT_S,
            keepalive=KEEPALIVE_S,
        )
        await client.__aenter__()
        self._client = client
        return client


def credentials(settings: OutwardSettings) -> tuple[ssl.SSLContext, str | None]:
    """TLS and the password for the other broker. Raises OSError (SSLError is one) for files that cannot be read."""
    context = ssl.create_default_context(cafile=settings.mqtt_ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.mqtt_certificate:
        context.load_cert_chain(settings.mqtt_certificate, settings.mqtt_key)
    if not settings.mqtt_password_file:
        return context, None
    return context, Path(settings.mqtt_password_file).read_text().strip()
