"""aiomqtt with the two things it leaves out: the broker's reason code for a publish, and an end that closes the socket.

aiomqtt 2.x drops the reason code of a PUBACK, so a publish that the access rules forbid looks like one that went
through; and a connection attempt that fails leaves its socket open. Both are mended here, by the seams of paho
underneath it, and nowhere else. Called by `agent.link` only.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.config import LinkLimits
from agent.errors import LinkDown, LinkError, LinkTimeout, NotAuthorised

NOBODY_LISTENS = 0x10
NOT_AUTHORISED = 0x87
FIRST_FAILURE = 0x80
SESSION_TAKEN_OVER = 0x8E
# What the shipped broker sends at most; a larger packet ends the connection instead of filling the memory.
MAX_PACKET_BYTES = 1024 * 1024 + 4096
MAX_INCOMING = 256


class MqttClient(aiomqtt.Client):
    """One connection's life: made, entered, left, thrown away. paho repeats nothing on a fresh one: the outbox does."""

    def __init__(
        self, host: str, port: int, name: str, tls: ssl.SSLContext, limits: LinkLimits, will: aiomqtt.Will
    ) -> None:
        """`will` is what the broker publishes when the connection ends without `leave`."""
        tls.sslsocket_class = _TidySocket
        super().__init__(
            host,
            port,
            identifier=name,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=False,
            timeout=limits.connect_timeout_s,
            keepalive=limits.keepalive_s,
            max_queued_incoming_messages=MAX_INCOMING,
            will=will,
            properties=_connect_properties(limits),
            tls_context=tls,
            socket_options=_socket_options(limits),
        )
        # Bounds both the TCP connection and the TLS handshake.
        self._client.connect_timeout = limits.connect_timeout_s
        self._outcomes: dict[int, asyncio.Future[bool]] = {}
        self.taken_over = False  # somebody else connected with this device's certificate

    async def send(
        self, topic: str, payload: bytes, *, qos: int, retain: bool, properties: Properties | None, timeout_s: float
    ) -> bool:
        """With QoS 1 returns when the broker acknowledged: false when it said that nobody listens now.

        Raises NotAuthorised, LinkDown, LinkTimeout, LinkError.
        """
        info = self._client.publish(topic, payload, qos, retain, properties)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise LinkDown(f"publish to {topic}: {paho.error_string(info.rc)}")
        if qos == 0:
            return True
        # The acknowledgement is read on this loop, so it cannot have come before the next line.
        outcome = self._outcomes[info.mid] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                heard: bool = await outcome
        except TimeoutError as error:
            raise LinkTimeout(f"publish to {topic}: no acknowledgement within {timeout_s} s") from error
        except _Denied as denied:
            raise denied.named(topic) from None
        finally:
            self._outcomes.pop(info.mid, None)
        return heard

    async def hear(self, pattern: str) -> None:
        """Subscribes with QoS 1. Raises NotAuthorised, LinkError; aiomqtt.MqttError when there is no answer."""
        for code in await self.subscribe(pattern, qos=1):
            number = code.value if isinstance(code, ReasonCode) else code
            if number >= FIRST_FAILURE:
                raise _Denied(number, str(code)).named(pattern)

    def abandon(self) -> None:
        """Closes what is still open, however the connection ended, and fails what still waits."""
        for outcome in self._outcomes.values():
            if not outcome.done():
                outcome.set_exception(LinkDown("the connection ended before the broker acknowledged"))
        with suppress(OSError, ValueError):
            self._client.disconnect()
        for ended in (self._connected, self._disconnected):
            if ended.done() and not ended.cancelled():
                ended.exception()  # seen, so that asyncio does not complain about it later

    def leave(self) -> None:
        """Ends the connection in order; whoever listens learns of it."""
        self._client.disconnect()

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: object,
        flags: paho.DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        self.taken_over = self.taken_over or reason_code.value == SESSION_TAKEN_OVER
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_publish(
        self, client: paho.Client, userdata: object, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        super()._on_publish(client, userdata, mid, reason_code, properties)
        outcome = self._outcomes.get(mid)
        if outcome is None or outcome.done():
            return
        if reason_code.value >= FIRST_FAILURE:
            outcome.set_exception(_Denied(reason_code.value, str(reason_code)))
        else:
            outcome.set_result(reason_code.value != NOBODY_LISTENS)


class _TidySocket(ssl.SSLSocket):
    """Closes itself when the handshake fails, which paho forgets to do."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class _Denied(Exception):
    """A reason code of 0x80 or more."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code

    def named(self, topic: str) -> LinkError:
        text = f"{topic}: the broker refused with reason 0x{self.code:02x} ({self})"
        return NotAuthorised(text) if self.code == NOT_AUTHORISED else LinkError(text, "broker-refused")


def last_will(topic: str, payload: bytes, delay_s: int) -> aiomqtt.Will:
    """Retained. Published `delay_s` after the loss, and not at all when the device is back by then."""
    properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
    properties.WillDelayInterval = delay_s
    return aiomqtt.Will(topic, payload, qos=1, retain=True, properties=properties)


def request_properties(response_topic: str, correlation: bytes, expiry_s: int) -> Properties:
    """For a request: where the answer goes, what it must carry, and when nobody waits for it any more."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ResponseTopic = response_topic
    properties.CorrelationData = correlation
    properties.MessageExpiryInterval = expiry_s
    return properties


def _socket_options(limits: LinkLimits) -> list[tuple[int, int, int]]:
    """Small requests do not wait for each other's acknowledgements (Nagle), and a dead way is noticed.

    TCP doubles the time between its repetitions, so after an outage a connection stays mute for as long again; a new
    one is there sooner (RFC 5482).
    """
    unheard_ms = round(1000 * limits.unheard_s)
    return [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unheard_ms),
    ]


def _connect_properties(limits: LinkLimits) -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = limits.session_expiry_s
    properties.MaximumPacketSize = MAX_PACKET_BYTES
    return properties
