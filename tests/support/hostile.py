"""An MQTT 5 client without manners: says any bytes it is told to, acknowledges nothing by itself, checks nothing.

Client libraries keep their user from most of what an attacker does; this one is a socket and a few packets. Each wait
has a deadline. `Gone` is what the other side's end of the connection looks like.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

DEADLINE_S = 15.0
REFUSED = 0x80  # reason codes from here on say no
NOT_AUTHORISED = 0x87
CONNACK, PUBLISH, PUBACK, PUBREC, PUBCOMP, SUBACK, PINGRESP, DISCONNECT = 2, 3, 4, 5, 7, 9, 13, 14


class Gone(Exception):
    """The broker has closed the connection, or would not have it."""


@dataclass(frozen=True)
class Will:
    """What the broker shall say when this client is gone."""

    topic: str
    payload: bytes = b"will"
    retain: bool = False


@dataclass(frozen=True)
class Message:
    """A message as it came; `number` is the packet's, 0 for quality 0."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    number: int


class Hostile:
    """One connection. Made by `connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._number = 0
        self._messages: list[Message] = []

    async def subscribe(self, topic: str, qos: int = 1) -> int:
        """The reason code."""
        number = self.next_number()
        body = number.to_bytes(2, "big") + b"\0" + text(topic) + bytes([qos])
        await self.send(packet(0x82, body))
        return (await self._until(SUBACK))[-1]

    async def publish(
        self, topic: str, payload: bytes = b"x", *, qos: int = 1, retain: bool = False, properties: bytes = b""
    ) -> int:
        """The reason code of the acknowledgement; 0 at once for quality 0."""
        number = self.next_number() if qos else 0
        await self.send(publish(topic, payload, number, qos=qos, retain=retain, properties=properties))
        if not qos:
            return 0
        body = await self._until(PUBACK if qos == 1 else PUBREC)
        return body[2] if len(body) > 2 else 0

    async def receive(self) -> Message:
        """The next message. Raises Gone, TimeoutError."""
        while not self._messages:
            await self._next()
        return self._messages.pop(0)

    async def received_until(self, payload: bytes) -> list[Message]:
        """Everything that comes before the message with this payload."""
        before: list[Message] = []
        while (message := await self.receive()).payload != payload:
            before.append(message)
        return before

    async def acknowledge(self, message: Message) -> None:
        await self.send(packet(0x40, message.number.to_bytes(2, "big")))

    async def ping(self) -> None:
        """Returns when the broker has worked through everything before. Raises Gone."""
        await self.send(b"\xc0\0")
        await self._until(PINGRESP)

    async def send(self, data: bytes) -> None:
        """Any bytes. Raises Gone."""
        try:
            self._writer.write(data)
            async with asyncio.timeout(DEADLINE_S):
                await self._writer.drain()
        except (OSError, ssl.SSLError) as error:
            raise Gone(str(error)) from error

    async def closed(self) -> bool:
        """Whether the broker ends the connection within the deadline."""
        try:
            while True:
                await self._next()
        except Gone:
            return True
        except TimeoutError:
            return False

    def drop(self) -> None:
        """Ends without a goodbye, as a cut cable would: the will is due."""
        self._writer.transport.abort()

    def next_number(self) -> int:
        self._number = self._number % 65_535 + 1
        return self._number

    async def _until(self, kind: int) -> bytes:
        while True:
            found, body = await self._next()
            if found == kind:
                return body

    async def _next(self) -> tuple[int, bytes]:
        """Keeps messages, hands out everything else."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                first = (await self._reader.readexactly(1))[0]
                body = await self._reader.readexactly(await self._length())
        except (asyncio.IncompleteReadError, OSError, ssl.SSLError) as error:
            raise Gone(str(error)) from error
        if first >> 4 == PUBLISH:
            self._messages.append(_message(first, body))
        if first >> 4 == DISCONNECT:
            raise Gone(f"the broker said goodbye: 0x{body[0] if body else 0:02x}")
        return first >> 4, body

    async def _length(self) -> int:
        value, shift = 0, 0
        while True:
            byte = (await self._reader.readexactly(1))[0]
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value
            shift += 7


@asynccontextmanager
async def connected(
    host: str,
    port: int,
    tls: ssl.SSLContext,
    client_id: str = "",
    *,
    clean: bool = True,
    will: Will | None = None,
    keep_s: int = 0,
) -> AsyncIterator[Hostile]:
    """A client that the broker has taken in; its session outlives it by `keep_s`. Raises Gone when it has not."""
    async with socket_to(host, port, tls) as client:
        await client.send(connect(client_id, clean, will, keep_s))
        body = await client._until(CONNACK)
        if body[1] >= REFUSED:
            raise Gone(f"the broker refused: 0x{body[1]:02x}")
        yield client


@asynccontextmanager
async def socket_to(host: str, port: int, tls: ssl.SSLContext) -> AsyncIterator[Hostile]:
    """TLS and nothing said yet. Raises Gone."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    except (OSError, ssl.SSLError) as error:
        raise Gone(str(error)) from error
    try:
        yield Hostile(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


def connect(client_id: str, clean: bool = True, will: Will | None = None, keep_s: int = 0) -> bytes:
    flags = 0x02 if clean else 0
    properties = b"\x11" + keep_s.to_bytes(4, "big") if keep_s else b""
    payload = text(client_id)
    if will is not None:
        flags |= 0x04 | (0x20 if will.retain else 0)
        payload += b"\0" + text(will.topic) + len(will.payload).to_bytes(2, "big") + will.payload
    head = text("MQTT") + bytes([5, flags]) + (60).to_bytes(2, "big")
    return packet(0x10, head + varint(len(properties)) + properties + payload)


def publish(
    topic: str, payload: bytes, number: int, *, qos: int = 1, retain: bool = False, properties: bytes = b""
) -> bytes:
    middle = number.to_bytes(2, "big") if qos else b""
    body = text(topic) + middle + varint(len(properties)) + properties + payload
    return packet(0x30 | qos << 1 | retain, body)


def user_properties(count: int) -> bytes:
    return b"\x26\0\x01k\0\x01v" * count


def packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + varint(len(body)) + body


def text(value: str) -> bytes:
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


def varint(value: int) -> bytes:
    out = b""
    while True:
        value, low = value >> 7, value & 0x7F
        out += bytes([low | (0x80 if value else 0)])
        if not value:
            return out


def _message(first: int, body: bytes) -> Message:
    at = 2 + int.from_bytes(body[:2], "big")
    topic, qos, number = body[2:at].decode(), first >> 1 & 3, 0
    if qos:
        number, at = int.from_bytes(body[at : at + 2], "big"), at + 2
    length, shift = 0, 0
    while True:
        byte, at = body[at], at + 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
    return Message(topic, body[at + length :], qos, bool(first & 1), number)
