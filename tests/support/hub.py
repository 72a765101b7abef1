"""The other party: a peer on the bus that answers gets from a mapping and takes batches as a hub does.

Not the hub's code: what a device must be able to rely on, in a few lines. Tests make it silent, slow or lying.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from modules.messages import (
    Ack,
    Answer,
    Batch,
    Doorbell,
    Get,
    Offered,
    Offers,
    Refusal,
    SignedReport,
    decode,
    encode,
)
from modules.topics import Topic, all_up, down
from support.mosquitto import HUB, Mosquitto

Reply = Answer | Refusal | None


class FakeHub:
    """`async with FakeHub(broker, files)`; `answer` and `offer` may be replaced by a test: None keeps silent.

    As it is made it has nothing to offer. A hub of before 0.2 keeps silent when it is asked.
    """

    def __init__(self, broker: Mosquitto, files: Mapping[tuple[str, str], bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.answer: Callable[[Get], Reply] = self.from_files
        self.offer: Callable[[Offers], Offered | Refusal | None] = lambda _: Offered(())
        self.asked: list[Get] = []
        self.asked_offers: list[Offers] = []
        self.batches: list[Batch] = []
        self.reports: list[SignedReport] = []
        self.taken: dict[tuple[str, str], list[tuple[int, bytes]]] = {}
        self.acking = True
        self._broker = broker
        self._tls = broker.tls(broker.client(HUB), HUB)
        self._task: asyncio.Task[None] | None = None
        self._client: aiomqtt.Client | None = None
        self._ready = asyncio.Event()
        self._closing = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="fake-hub")
        await self.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True  # aiomqtt may raise its own error in the place of the cancellation, so that is not enough
        if self._task is not None:
            while not self._task.done():  # before Python 3.12 wait_for, under aiomqtt's publish, may swallow it too
                self._task.cancel()
                await asyncio.wait([self._task], timeout=1.0)
            with suppress(asyncio.CancelledError):
                self._task.result()

    async def ready(self) -> None:
        async with asyncio.timeout(20):
            await self._ready.wait()

    def from_files(self, get: Get) -> Reply:
        data = self.files.get((get.repository, get.name))
        if data is None:
            return Refusal("not-found", f"no {get.repository} file {get.name}")
        return Answer(len(data), get.offset, data[get.offset : get.offset + get.length])

    def items(self, stream: str) -> list[bytes]:
        """What was taken from a stream, in order, each once, over all epochs."""
        return [item for (_, name), entries in self.taken.items() if name == stream for _, item in entries]

    async def ring(self, device: str, version: int) -> None:
        await self.say(down(device, "desired"), encode(Doorbell(version)), retain=True)

    async def say(
        self, topic: str, payload: bytes, *, retain: bool = False, correlation: bytes = b"", qos: int = 1
    ) -> None:
        assert self._client is not None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if correlation:
            properties.CorrelationData = correlation
        await self._client.publish(topic, payload, qos, retain, properties)

    async def _run(self) -> None:
        while not self._closing:
            with suppress(aiomqtt.MqttError):
                await self._serve()
            self._ready.clear()
            await asyncio.sleep(0.05)

    async def _serve(self) -> None:
        async with aiomqtt.Client(
            "localhost", self._broker.port, identifier=HUB, protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=self._tls, timeout=2, clean_start=True,
        ) as client:  # fmt: skip
            self._client = client
            for channel in ("get", "window", "sample", "event", "blob", "state"):
                await client.subscribe(all_up(channel), qos=1)
            self._ready.set()
            async for message in client.messages:
                await self._hear(message)

    async def _hear(self, message: aiomqtt.Message) -> None:
        topic = Topic.parse(message.topic.value)
        assert isinstance(message.payload, bytes)
        said = decode(message.payload)
        if isinstance(said, Get):
            self.asked.append(said)
            reply = self.answer(said)
            if reply is not None:
                correlation = getattr(message.properties, "CorrelationData", b"")
                await self.say(down(topic.device, "data"), encode(reply), correlation=correlation)
        elif isinstance(said, Offers):
            self.asked_offers.append(said)
            offered = self.offer(said)
            if offered is not None:
                correlation = getattr(message.properties, "CorrelationData", b"")
                await self.say(down(topic.device, "data"), encode(offered), correlation=correlation)
        elif isinstance(said, Batch):
            await self._take(topic.device, said)
        elif isinstance(said, SignedReport):
            self.reports.append(said)

    async def _take(self, device: str, batch: Batch) -> None:
        self.batches.append(batch)
        entries = self.taken.setdefault((batch.epoch, batch.stream), [])
        committed = entries[-1][0] if entries else 0
        if batch.acked > committed:
            await self.say(down(device, "ack"), encode(Ack(batch.stream, batch.epoch, 0, lost=True)))
            return
        if batch.previous > committed or not self.acking:
            return
        entries += [entry for entry in batch.entries if entry[0] > committed]
        await self.say(down(device, "ack"), encode(Ack(batch.stream, batch.epoch, entries[-1][0])))
