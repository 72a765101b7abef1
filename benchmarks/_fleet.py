"""Devices as the hub's broker sees them, for the benchmark of ingest: many connections of one process, no agents.

Each sends its outbox batch by batch and waits for the acknowledgement, as an agent does; some batches are sent twice.
A connection that breaks is made anew, and what was not acknowledged is sent again.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiomqtt

from modules.messages import Ack, Batch, Stream, decode, encode
from modules.topics import down, up

ACK_S = 20.0
REPEATED = 0.1  # share of batches that are sent twice


@dataclass
class Device:
    """One device's outbox: bodies of one stream, in batches of `size`."""

    name: str
    tls: ssl.SSLContext
    stream: Stream
    bodies: Sequence[bytes]
    size: int
    epoch: str
    acked: int = 0
    sent: int = 0
    repeated: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, port: int, begin: asyncio.Event, connected: asyncio.Semaphore) -> None:
        """Until everything is acknowledged."""
        while self.acked < len(self.bodies):
            try:
                async with aiomqtt.Client(
                    "127.0.0.1", port, identifier=self.name, tls_context=self.tls,
                    protocol=aiomqtt.ProtocolVersion.V5, clean_start=True, timeout=ACK_S,
                ) as client:  # fmt: skip
                    await client.subscribe(down(self.name, "ack"), qos=1)
                    connected.release()
                    await begin.wait()
                    listening = asyncio.create_task(self._listen(client))
                    try:
                        await self._send(client)
                    finally:
                        listening.cancel()
                        with suppress(asyncio.CancelledError, aiomqtt.MqttError):
                            await listening
            except aiomqtt.MqttError:
                await asyncio.sleep(0.2 + 0.3 * random.random())

    async def _listen(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            ack = decode(message.payload)
            if isinstance(ack, Ack) and ack.upto > self.acked:
                self.acked = ack.upto
                self._news.set()

    async def _send(self, client: aiomqtt.Client) -> None:
        while self.acked < len(self.bodies):
            entries = tuple(enumerate(self.bodies[self.acked : self.acked + self.size], self.acked + 1))
            payload = encode(Batch(self.stream, self.epoch, self.acked, entries, self.acked))
            self._news.clear()
            for _ in range(2 if random.random() < REPEATED else 1):
                await client.publish(up(self.name, self.stream), payload, qos=1)
                self.sent += 1
            try:
                async with asyncio.timeout(ACK_S):
                    await self._news.wait()
            except TimeoutError:
                self.repeated += 1  # lost on the way, or refused: it is sent again


def context(server_ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(server_ca))
    made.load_cert_chain(certificate, key)
    return made
