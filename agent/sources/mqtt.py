"""Messages of a topic as items, results as messages: MQTT 5 over a connection that the parent opened.

paho-mqtt is the codec and the state machine; the socket is supplied to it, and a thread of ours runs it by paho's
interface for foreign event loops, because a confined worker may not make sockets. Its one private seam is
`_create_socket`. With QoS 1 a message is acknowledged once it was predicted: the broker keeps it until then, also over
a hand-over, so it may come twice and is not lost. One client id per module and source makes that so.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.sources.asking import AskError, Device
from agent.sources.content import Reader
from agent.sources.feed import as_item
from agent.sources.items import Item, Result, Writer
from modules.sources import Mqtt

KEEPALIVE_S = 30
CONNECT_DEADLINE_S = 10.0
WAIT_S = 0.25
SESSION_S = 3600  # for which the broker keeps messages for a worker that is not there, with QoS 1
MAX_RESULTS = 1024  # that wait to be sent; older ones are dropped, and counted
FIRST_FAILURE = 0x80
IN_FLIGHT = 64
EVENT_TIME = "event_time"
MAX_TIME = 40  # characters

log = logging.getLogger(__name__)


class _Client(paho.Client):
    """On the connection that it is given."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv5, manual_ack=True)
        self._given = connection

    def _create_socket(self) -> socket.socket:
        return self._given


class MqttIntake:
    """One subscription. The thread `_speak` owns the connection; `take` and `answered` come from the feed's."""

    def __init__(
        self, number: int, source: Mqtt, device: Device, reader: Reader, batched: Sequence[str], writer: Writer,
        name: str,
    ) -> None:  # fmt: skip
        self.dropped = 0
        self._number = number
        self._source = source
        self._device = device
        self._reader = reader
        self._batched = batched
        self._writer = writer
        self._name = name
        self._messages: deque[paho.MQTTMessage] = deque()
        self._arrived = threading.Condition()
        self._to_send: deque[bytes] = deque()
        self._to_acknowledge: deque[paho.MQTTMessage] = deque()
        self._speaker: threading.Thread | None = None
        self._closing = False
        self._failure = ""
        self._subscribed = threading.Event()
        self._ours: socket.socket | None = None  # one end of a pair, to wake the speaker

    def open(self) -> None:
        """Connected and subscribed. Raises AskError, OSError."""
        connection = self._device.dial(self._number)
        self._messages.clear()
        self._to_acknowledge.clear()
        self._closing, self._failure = False, ""
        self._subscribed.clear()
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        theirs.setblocking(False)
        client = _client(connection, self._name, self._source.max_bytes)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        self._speaker = threading.Thread(target=self._speak, args=(client, theirs), name="source-mqtt-speaker")
        self._speaker.daemon = True
        self._speaker.start()
        if not self._subscribed.wait(CONNECT_DEADLINE_S) or self._failure:
            raise AskError(self._failure or f"{self._source.broker}: no answer within {CONNECT_DEADLINE_S:g} s")

    def take(self, most_rows: int) -> list[Item]:
        with self._arrived:
            if not self._messages and not self._failure:
                self._arrived.wait(WAIT_S)
            if not self._messages and self._failure:
                raise AskError(self._failure)
            messages = [self._messages.popleft() for _ in range(min(most_rows, len(self._messages)))]
        return [self._item(message) for message in messages]

    def answered(self, item: Item, result: Result) -> None:
        if item.repeat:
            return  # not acknowledged: the next worker gets it
        if self._source.results:
            if len(self._to_send) >= MAX_RESULTS:
                self._to_send.popleft()
                self.dropped += 1
            self._to_send.append(self._writer.json(result))
        if self._source.qos and isinstance(item.token, paho.MQTTMessage):
            self._to_acknowledge.append(item.token)
        if self._source.results or self._source.qos:
            self._wake()

    def settled(self, items: Sequence[Item]) -> None:
        """Each was acknowledged by itself."""

    def close(self) -> None:
        self._closing = True
        self._wake()
        if self._speaker is not None:
            self._speaker.join(CONNECT_DEADLINE_S)
            self._speaker = None
        if self._ours is not None:
            self._ours.close()
            self._ours = None

    def _item(self, message: paho.MQTTMessage) -> Item:
        try:
            if len(message.payload) > self._source.max_bytes:
                raise ValueError(f"expected at most {self._source.max_bytes} bytes, got {len(message.payload)}")
            inputs = self._reader.read(bytes(message.payload))
            return as_item(message.topic, inputs, self._batched, message, _event_time(message))
        except ValueError as error:
            return Item(message.topic, {}, error=str(error), token=message)

    def _wake(self) -> None:
        if self._ours is not None:
            with suppress(OSError):  # it has been woken already, or has ended
                self._ours.send(b"w")

    # The speaker's thread

    def _speak(self, client: paho.Client, woken: socket.socket) -> None:
        try:
            client.connect("given", 1, KEEPALIVE_S, clean_start=not self._source.qos, properties=_session(self._source))
            while not self._closing and not self._failure:
                self._turn(client, woken)
            self._hand_over(client)
            client.disconnect()
            client.loop_write()
        except (OSError, ValueError) as error:
            self._fail(f"{self._source.broker}: {error}")
        finally:
            woken.close()
            given = client.socket()
            if given is not None:
                given.close()

    def _turn(self, client: paho.Client, woken: socket.socket) -> None:
        ours = client.socket()
        if ours is None:
            self._fail(f"{self._source.broker}: the connection has ended")
            return
        writes = [ours] if client.want_write() else []
        readable, writable, _ = select.select([ours, woken], writes, [], 1.0)
        if woken in readable:
            woken.recv(4096)
        self._hand_over(client)
        if ours in readable:
            client.loop_read()
        if writable or client.want_write():
            client.loop_write()
        if client.loop_misc() != paho.MQTT_ERR_SUCCESS:
            self._fail(f"{self._source.broker}: the connection has ended")

    def _hand_over(self, client: paho.Client) -> None:
        """What the feed has left for the broker."""
        while self._to_send:
            client.publish(self._source.results, self._to_send.popleft(), self._source.qos)
        while self._to_acknowledge:
            message = self._to_acknowledge.popleft()
            client.ack(message.mid, message.qos)

    def _fail(self, why: str) -> None:
        with self._arrived:
            self._failure = self._failure or why
            self._arrived.notify()
        self._subscribed.set()

    def _on_connect(
        self, client: paho.Client, userdata: object, flags: paho.ConnectFlags, code: ReasonCode, properties: object
    ) -> None:
        if code.value >= FIRST_FAILURE:
            self._fail(f"{self._source.broker}: the broker refused the connection: {code}")
        else:
            client.subscribe(self._source.topic, self._source.qos)

    def _on_subscribe(
        self, client: paho.Client, userdata: object, mid: int, codes: list[ReasonCode], properties: object
    ) -> None:
        if any(code.value >= FIRST_FAILURE for code in codes):
            self._fail(f"{self._source.broker}: the broker refused {self._source.topic}: {codes[0]}")
        self._subscribed.set()

    def _on_disconnect(
        self, client: paho.Client, userdata: object, flags: object, code: ReasonCode, properties: object
    ) -> None:
        self._fail(f"{self._source.broker}: disconnected: {code}")

    def _on_message(self, client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        with self._arrived:
            if len(self._messages) >= self._source.queue:
                oldest = self._messages.popleft()
                self.dropped += 1
                if oldest.qos:
                    self._to_acknowledge.append(oldest)
            self._messages.append(message)
            self._arrived.notify()


def _client(connection: socket.socket, name: str, max_bytes: int) -> paho.Client:
    client = _Client(connection, name)
    client.on_socket_register_write = _said  # so that what is published is written in our loop, not at once
    client.max_queued_messages_set(MAX_RESULTS)
    client.enable_logger(log)
    return client


def _said(client: paho.Client, userdata: object, connection: object) -> None:
    """The loop asks want_write by itself."""


def _event_time(message: paho.MQTTMessage) -> float:
    """The user property `event_time`, in seconds since the epoch; 0 where there is none that is a number."""
    said = getattr(message.properties, "UserProperty", ())
    for value in (value for name, value in said if name == EVENT_TIME and len(value) <= MAX_TIME):
        with suppress(ValueError):
            return float(value)
    return 0.0


def _session(source: Mqtt) -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = SESSION_S if source.qos else 0
    properties.ReceiveMaximum = min(IN_FLIGHT, source.queue)
    properties.MaximumPacketSize = source.max_bytes + 65_536
    return properties
