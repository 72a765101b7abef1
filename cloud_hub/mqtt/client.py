"""One MQTT 5 connection of the hub, from CONNECT to its end. Used by `link`, which makes a new one when it ends.

Messages are handed on as they come and receipted at once: what matters is acknowledged end to end. Publishing at
quality 1 waits for the broker's receipt, and for room where as many wait as the broker takes (section 4.9 of MQTT 5).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from enum import IntEnum
from types import TracebackType
from typing import Final, Self

import mqtt5

from cloud_hub.mqtt.wire import MAX_PACKET_BYTES, Wire

MAX_IN_FLIGHT: Final = 1000  # publishes without a receipt
RECEIVE_MAX: Final = 5000
PACKET_IDS: Final = 65_535
_AT_LEAST_ONCE: Final = mqtt5.QoS.AT_LEAST_ONCE
FAILED: Final = 0x80  # reason codes from here on are refusals


class ConnectionEnded(OSError):
    """There is no connection, it ended before the broker's receipt, or the broker refused or did not answer in time."""


class Client:
    """`async with` connects and, at the end, says goodbye. `timeout_s` bounds every wait for the broker."""

    def __init__(
        self,
        host: str,
        port: int,
        client_id: str,
        tls: ssl.SSLContext,
        on_message: Callable[[mqtt5.PublishPacket], None],
        timeout_s: float,
        keepalive_s: int,
    ) -> None:
        self._address = (host, port)
        self._client_id = client_id
        self._tls = tls
        self._on_message = on_message
        self._timeout_s = timeout_s
        self._keepalive_s = keepalive_s
        self._wire: Wire | None = None
        self._connack: asyncio.Future[mqtt5.ConnAckPacket] | None = None
        self._receipts: dict[int, asyncio.Future[str]] = {}  # by packet id: why it was refused, or nothing
        self._room: deque[asyncio.Future[None]] = deque()  # who waits to publish
        self._most = MAX_IN_FLIGHT
        self._last_id = 0
        self._heard_at = 0.0
        self._ended = asyncio.Event()
        self._why = ""
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Raises ConnectionEnded, OSError (ssl.SSLError is one) or TimeoutError."""
        loop = asyncio.get_running_loop()
        self._connack = loop.create_future()
        try:
            async with asyncio.timeout(self._timeout_s):
                host, port = self._address
                _, self._wire = await loop.create_connection(
                    lambda: Wire(self._on_packet, self._end), host, port, ssl=self._tls, ssl_shutdown_timeout=1.0
                )
                connect = mqtt5.ConnectPacket(
                    client_id=self._client_id, clean_start=True, keep_alive=self._keepalive_s,
                    receive_max=RECEIVE_MAX, max_packet_size=MAX_PACKET_BYTES,
                )  # fmt: skip
                self._wire.send(connect.write())
                answer = await self._connack
            if answer.reason_code != mqtt5.ConnAckReasonCode.SUCCESS:
                raise ConnectionEnded(f"the broker refused the connection: {answer.reason_code.name}")
        except BaseException:
            self._leave("not connected")
            raise
        self._most = min(MAX_IN_FLIGHT, answer.receive_max)
        self._keepalive_s = answer.server_keep_alive or self._keepalive_s
        self._keeper = asyncio.create_task(self._keep_alive(), name="mqtt-keepalive")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._wire is not None and not self._ended.is_set():
            self._wire.send(mqtt5.DisconnectPacket().write())
            self._wire.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout_s):
                    await self._ended.wait()
        self._leave("closed")

    async def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Topic filters with their quality. Raises ConnectionEnded, also when one is refused.

        `retain` of a message that comes by them says whether the broker had kept it.
        """
        wanted = [
            mqtt5.TopicFilter(pattern, max_qos=mqtt5.QoS(qos), retain_as_published=False) for pattern, qos in filters
        ]
        await self._asked(lambda packet_id: mqtt5.SubscribePacket(packet_id, wanted).write())

    async def unsubscribe(self, patterns: Sequence[str]) -> None:
        """Raises as `subscribe`."""
        await self._asked(lambda packet_id: mqtt5.UnsubscribePacket(packet_id, list(patterns)).write())

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        correlation: bytes | None = None,
        content_type: str | None = None,
    ) -> None:
        """Returns when the broker has it (1) or there was room for it (0). Raises ConnectionEnded."""

        def packet(packet_id: int | None) -> bytes:
            return mqtt5.PublishPacket(
                topic, payload, qos=mqtt5.QoS(qos), retain=retain, packet_id=packet_id, correlation_data=correlation,
                content_type=content_type,
            ).write()  # fmt: skip

        if qos == 0:
            async with self._in_time():
                await self._standing().room()
            self._standing().send(packet(None))
        else:
            await self._asked(packet)

    async def ended(self) -> str:
        """Returns when the connection has ended, with why."""
        await self._ended.wait()
        return self._why

    async def _asked(self, packet: Callable[[int], bytes]) -> None:
        """Sends what the broker must receipt, and waits for that."""
        async with self._in_time():
            while len(self._receipts) >= self._most:
                self._standing()
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._room.append(waiter)
                await waiter
            wire = self._standing()
            await wire.room()
            packet_id = self._next_id()
            receipt: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            self._receipts[packet_id] = receipt
            try:
                self._standing().send(packet(packet_id))
                refusal = await receipt
            except BaseException:
                # Whoever waited no longer does; the id stays taken until the broker has answered, or the connection
                # ends: it may not be used again before.
                receipt.cancel()
                raise
        if refusal:
            raise ConnectionEnded(f"the broker refused it: {refusal}")

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError as error:
            raise ConnectionEnded(f"the broker did not answer within {self._timeout_s:g} s") from error

    def _standing(self) -> Wire:
        if self._wire is None or self._ended.is_set():
            raise ConnectionEnded(self._why or "not connected")
        return self._wire

    def _next_id(self) -> int:
        while True:
            self._last_id = self._last_id % PACKET_IDS + 1
            if self._last_id not in self._receipts:
                return self._last_id

    def _on_packet(self, packet: mqtt5.Packet) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        if isinstance(packet, mqtt5.PublishPacket):
            if packet.qos == _AT_LEAST_ONCE and packet.packet_id is not None and self._wire is not None:
                self._wire.send(mqtt5.PubAckPacket(packet.packet_id).write())
            self._on_message(packet)
        elif isinstance(packet, mqtt5.PubAckPacket):
            self._receipted(packet.packet_id, [packet.reason_code])
        elif isinstance(packet, mqtt5.SubAckPacket | mqtt5.UnsubAckPacket):
            self._receipted(packet.packet_id, list(packet.reason_codes))
        elif isinstance(packet, mqtt5.ConnAckPacket):
            if self._connack is not None and not self._connack.done():
                self._connack.set_result(packet)
        elif isinstance(packet, mqtt5.DisconnectPacket) and self._wire is not None:
            self._wire.abort(f"the broker ended it: {packet.reason_code.name}")

    def _receipted(self, packet_id: int, codes: Sequence[IntEnum]) -> None:
        receipt = self._receipts.pop(packet_id, None)
        if receipt is not None and not receipt.done():
            receipt.set_result(next((code.name for code in codes if int(code) >= FAILED), ""))
        while self._room and len(self._receipts) < self._most:
            waiter = self._room.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break

    async def _keep_alive(self) -> None:
        """A ping when nothing was heard for half of the time; the end when that brings nothing either."""
        loop = asyncio.get_running_loop()
        self._heard_at = loop.time()
        while True:
            await asyncio.sleep(self._keepalive_s / 2)
            silent_s = loop.time() - self._heard_at
            if silent_s >= 1.5 * self._keepalive_s and self._wire is not None:
                self._wire.abort(f"nothing was heard for {silent_s:.0f} s")
                return
            if self._wire is not None:
                self._wire.send(mqtt5.PingReqPacket().write())

    def _end(self, why: str) -> None:
        """Called by the wire, once."""
        self._why = why
        self._ended.set()
        error = ConnectionEnded(why)
        waiting: list[asyncio.Future[str] | asyncio.Future[None] | asyncio.Future[mqtt5.ConnAckPacket]]
        waiting = [*self._receipts.values(), *self._room]
        if self._connack is not None:
            waiting.append(self._connack)
        self._receipts, self._room = {}, deque()
        for one in waiting:
            if not one.done():
                one.set_exception(error)

    def _leave(self, why: str) -> None:
        if self._wire is not None:
            self._wire.abort(why)
        if self._connack is not None:
            self._connack.cancel()
