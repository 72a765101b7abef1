"""The hub's side of MQTT: hears every device, answers requests, acknowledges batches, rings doorbells.

What messages mean is not known here: `service` hands in plain coroutines (`Handlers`). One device's bad message or
one handler's failure is counted and logged and stops nothing. An acknowledgement goes out only when its handler has
returned it, which is after the commit. Doorbells are retained, and rung again for devices that lag behind, so a lost
one heals. The broker's ACL vouches for the device id in a topic.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from mqtt5 import PublishPacket

from cloud_hub.broker import client_context, hub_address
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import HubError
from cloud_hub.inbox import Complaints, Inbox, Work
from cloud_hub.mqtt.client import Client, ConnectionEnded
from cloud_hub.replicas.joining import client_name
from cloud_hub.store.bulk import in_slices
from modules.commands import Command
from modules.errors import MessageError, TopicError
from modules.messages import (
    Ack,
    Answer,
    Batch,
    Doorbell,
    Get,
    Message,
    Offered,
    Offers,
    Presence,
    Refusal,
    Renew,
    Renewed,
    SignedReport,
    decode,
    encode,
)
from modules.topics import Topic, Up, all_up, down, up

log = logging.getLogger(__name__)

MQTT_TIMEOUT_S = 5.0  # for each answer of the broker
KEEPALIVE_S = 20
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 5.0
STOP_DEADLINE_S = 5.0
DOORBELL_ROUND_S = 10.0
RINGS_AT_ONCE = 100
QUESTION_WAITS_S = 4.0
QUESTIONS_WAITING = 200  # while more do, no further bells are rung
RING_PAUSE_S = 3.0
RING_LOOK_S = 0.05
ROUNDS_UNTIL_ALL = 30  # every so many rounds the devices that lag are rung again even when nothing has changed

SHARED = "$share/hub/"  # each message goes to one of the replicas
KEPT_PAUSE_S = 3.0
KEPT_DEADLINE_S = 120.0

GETS_AT_ONCE = 256  # they share looks into the database, see `store.together`
FILES_AT_ONCE = 16  # of them, whose answers are large
GETS_PER_DEVICE = 32
BATCHES_AT_ONCE = 256  # they share transactions, see `monitoring.ingest`
BATCHES_PER_STREAM = 16
MAX_CORRELATION_BYTES = 64

# Requests at most once: the device asks again. Everything else at least once.
_QOS: dict[Up, int] = {"get": 0, "state": 1, "presence": 1, "window": 1, "sample": 1, "event": 1, "blob": 1}


async def _offer_nothing(_device: str, _offers: Offers) -> Offered:
    return Offered(())


def _nobody_asks(_device: str, _presence: Presence) -> None:
    return None


@dataclass(frozen=True)
class Handlers:
    """What `service` wires in. Each may raise HubError for a message that is refused.

    `on_get(device, get)`, `on_renew(device, renew)` and `on_offers(device, offers)` give the answer;
    `on_batch(device, batch)` gives the acknowledgement once the batch is committed, or None when there is nothing to
    acknowledge; `on_report(device, report)` takes a signed report; `behind(after)` gives devices that do not know their
    newest director version yet, with that version: a page in the order of their ids, behind `after`.
    `on_presence(device, presence)` notes who is there, and waits for nothing.
    """

    on_get: Callable[[str, Get], Awaitable[Answer | Refusal]]
    on_renew: Callable[[str, Renew], Awaitable[Renewed | Refusal]]
    on_batch: Callable[[str, Batch], Awaitable[Ack | None]]
    on_report: Callable[[str, SignedReport], Awaitable[object]]
    behind: Callable[[str], Awaitable[Sequence[tuple[str, int]]]]
    on_offers: Callable[[str, Offers], Awaitable[Offered | Refusal]] = _offer_nothing
    on_presence: Callable[[str, Presence], None] = _nobody_asks


class HubLink:
    """One connection, kept up. `async with` starts and ends it; `connected` is set while it stands.

    `session` counts connections: one that came and went between two looks is seen by it. `may_ring` says whether this
    process looks for devices that lag behind: of several replicas one does. They share what devices say.
    """

    def __init__(
        self, config: HubConfig, paths: HubPaths, handlers: Handlers, may_ring: Callable[[], bool] = lambda: True
    ) -> None:
        self._may_ring = may_ring
        self._name = client_name(config)
        self._shared = SHARED if config.replicas.name else ""
        self._kept = 0  # messages that were heard because the broker had kept them
        self._address = hub_address(config)
        self._paths = paths
        self._handlers = handlers
        self._client: Client | None = None
        self._complaints = Complaints()
        self._gets = Inbox(GETS_AT_ONCE, GETS_PER_DEVICE)
        self._files = asyncio.Semaphore(FILES_AT_ONCE)
        self._batches = Inbox(BATCHES_AT_ONCE, BATCHES_PER_STREAM)
        self._task: asyncio.Task[None] | None = None
        self._rung: dict[str, int] = {}
        self._closing = False
        self.connected = asyncio.Event()
        self.session = 0

    @property
    def dropped(self) -> Counter[str]:
        """How many messages were dropped since the start, by reason."""
        return Counter(self._complaints.counts)

    async def __aenter__(self) -> HubLink:
        await self._gets.start("link-get")
        await self._batches.start("link-batch")
        self._task = asyncio.create_task(self._keep_connected(), name="link")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=STOP_DEADLINE_S)
        await self._gets.stop()
        await self._batches.stop()

    async def ring(self, device: str, director_version: int) -> None:
        """Tells the device, now or when it connects, that its director stands at this version.

        While the broker cannot be reached this does nothing: the round after the next connection rings.
        """
        try:
            await self._publish(down(device, "desired"), encode(Doorbell(director_version)), qos=1, retain=True)
            self._rung[device] = director_version
        except ConnectionEnded as error:
            log.info("doorbell of %s not rung now: %s", device, error)

    async def ring_many(self, versions: Mapping[str, int]) -> None:
        """As `ring`, for many: the broker's receipts are awaited together, RINGS_AT_ONCE at a time.

        Who is rung asks questions, so this waits, at most RING_PAUSE_S for each slice, until few of them wait.
        """
        for some in in_slices(list(versions.items()), RINGS_AT_ONCE):
            await asyncio.gather(*(self.ring(device, version) for device, version in some))
            if len(some) == RINGS_AT_ONCE:
                await self._answered()

    async def _answered(self) -> None:
        """Returns when few questions wait, or after RING_PAUSE_S."""
        until = time.monotonic() + RING_PAUSE_S
        await asyncio.sleep(RING_LOOK_S)  # the first questions of those just rung come in
        while self._gets.waiting > QUESTIONS_WAITING and time.monotonic() < until:  # noqa: ASYNC110 - of many lanes
            await asyncio.sleep(RING_LOOK_S)

    async def publish_event(self, topic: str, payload: bytes, content_type: str) -> None:
        """Returns when the broker has it. Raises ConnectionEnded, also while there is no connection."""
        await self._publish(topic, payload, qos=1, content_type=content_type)

    async def command(self, device: str, command: Command) -> None:
        """Sends the command to the device, if it is there. Whoever wants an answer sends it again."""
        try:
            await self._publish(down(device, "command"), encode(command), qos=1)
        except ConnectionEnded as error:
            log.info("command %s of %s not sent now: %s", command.id, device, error)

    async def forget(self, device: str) -> None:
        """Takes away what the broker keeps for and of the device. Raises ConnectionEnded."""
        for topic in (down(device, "desired"), up(device, "state"), up(device, "presence")):
            await self._publish(topic, b"", qos=1, retain=True)
        self._rung.pop(device, None)

    async def read_kept(self) -> int:
        """Has the broker send the last report and presence of every device; how many there were.

        A shared subscription brings none of them. Raises ConnectionEnded.
        """
        client = self._client
        if client is None or not self.connected.is_set():
            raise ConnectionEnded("not connected")
        begun, wanted = self._kept, [all_up("state"), all_up("presence")]
        await client.subscribe([(pattern, 1) for pattern in wanted])
        try:
            async with asyncio.timeout(KEPT_DEADLINE_S):
                before = -1
                while before != self._kept:  # no end is said: it is when no more come
                    before = self._kept
                    await asyncio.sleep(KEPT_PAUSE_S)
        except TimeoutError:
            log.warning("the broker still sends what it keeps after %.0f s", KEPT_DEADLINE_S)
        await client.unsubscribe(wanted)
        return self._kept - begun

    async def _keep_connected(self) -> None:
        delay_s = FIRST_RETRY_S
        down_since_told = False
        while not self._closing:
            try:
                await self._live()
            except OSError as error:
                if self.connected.is_set() or not down_since_told:
                    log.warning("no connection to the broker, trying again until there is one: %s", error)
                delay_s = FIRST_RETRY_S if self.connected.is_set() else min(2 * delay_s, LAST_RETRY_S)
                down_since_told = True
            except Exception:
                # Nothing above this task could do better than connect again; the trace says what to mend.
                log.exception("the link failed and connects again")
            finally:
                self.connected.clear()
                self._client = None
            await asyncio.sleep(delay_s * random.random())

    async def _live(self) -> None:
        """One connection, from its start until it breaks (OSError)."""
        async with Client(
            self._address.host,
            self._address.port,
            self._name,
            client_context(self._paths),
            self._receive,
            MQTT_TIMEOUT_S,
            KEEPALIVE_S,
        ) as client:
            self._client = client
            await client.subscribe([(self._shared + all_up(channel), qos) for channel, qos in _QOS.items()])
            self.session += 1
            self.connected.set()
            log.info("connected to the broker at %s:%s", self._address.host, self._address.port)
            doorbells = asyncio.create_task(self._ring_those_behind(), name="link-doorbells")
            try:
                raise ConnectionEnded(await client.ended())
            finally:
                doorbells.cancel()
                await asyncio.wait([doorbells], timeout=STOP_DEADLINE_S)

    async def _ring_those_behind(self) -> None:
        rounds = 0
        while True:
            if rounds % ROUNDS_UNTIL_ALL == 0:
                self._rung.clear()
            try:
                if self._may_ring():
                    await self._ring_all_behind()
            except Exception:
                log.exception("could not find out which devices lag behind; trying again in %s s", DOORBELL_ROUND_S)
            rounds += 1
            await asyncio.sleep(DOORBELL_ROUND_S)

    async def _ring_all_behind(self) -> None:
        after = ""
        while page := await self._handlers.behind(after):
            await self.ring_many({device: at for device, at in page if self._rung.get(device) != at})
            after = page[-1][0]

    def _receive(self, message: PublishPacket) -> None:
        """Puts the message where it will be worked on. Never waits and never raises."""
        self._kept += message.retain
        try:
            topic = Topic.parse(message.topic)
            if topic.channel in ("state", "presence") and not message.payload:
                return  # something retained was taken away, see `forget`
            self._accept(topic, decode(message.payload), message)
        except (MessageError, TopicError) as error:
            self._complaints.note(message.topic[:120], error.key, str(error))

    def _accept(self, topic: Topic, message: Message, packet: PublishPacket) -> None:
        device, channel, size = topic.device, topic.channel, len(packet.payload)
        if isinstance(message, Get | Renew | Offers) and channel == "get":
            correlation, ends_at = _correlation(device, packet), _end(message, packet)
            question = partial(self._on_question, device, message, correlation, ends_at)
            fits = self._gets.put(device, size, self._guard(device, question))
        elif isinstance(message, Batch) and channel == message.stream:
            work = self._guard(device, partial(self._on_batch, device, message))
            fits = self._batches.put(f"{device}/{channel}", size, work)
        elif isinstance(message, SignedReport) and channel == "state":
            work = self._guard(device, partial(self._on_report, device, message))
            fits = self._batches.replace(f"{device}/{channel}", size, work)
        elif isinstance(message, Presence) and channel == "presence":
            self._handlers.on_presence(device, message)
            fits = True
        else:
            raise MessageError(f"expected what belongs on up/{channel}, got {type(message).__name__}")
        if not fits:
            self._complaints.note(device, "busy", f"too many messages wait on up/{channel}")

    def _guard(self, device: str, work: Work) -> Work:
        """`work`, but its failure stays with this message."""

        async def guarded() -> None:
            try:
                await work()
            except HubError as error:
                self._complaints.note(device, error.key, error.message)
            except ConnectionEnded as error:
                self._complaints.note(device, "not-connected", f"the reply could not be sent: {error}")
            except Exception as error:
                self._complaints.note(device, "internal", f"{type(error).__name__}: {error}")
                log.debug("handling a message of %s failed", device, exc_info=True)

        return guarded

    async def _on_question(self, device: str, asked: Get | Renew | Offers, correlation: bytes, ends_at: float) -> None:
        if time.monotonic() > ends_at:
            self._complaints.counts["expired"] += 1  # not a fault of the device, and too many to be told one by one
            return
        if _is_file(asked):
            async with self._files:
                await self._answer(device, asked, correlation)
        else:
            await self._answer(device, asked, correlation)

    async def _answer(self, device: str, asked: Get | Renew | Offers, correlation: bytes) -> None:
        answer: Answer | Renewed | Offered | Refusal
        if isinstance(asked, Renew):
            answer = await self._handlers.on_renew(device, asked)
        elif isinstance(asked, Offers):
            answer = await self._handlers.on_offers(device, asked)
        else:
            answer = await self._handlers.on_get(device, asked)
        # Quality 0: an answer that the device misses is asked for again, and must not wait for it in the broker.
        await self._publish(down(device, "data"), encode(answer), qos=0, correlation=correlation)

    async def _on_batch(self, device: str, batch: Batch) -> None:
        ack = await self._handlers.on_batch(device, batch)
        if ack is not None:
            await self._publish(down(device, "ack"), encode(ack), qos=1)

    async def _on_report(self, device: str, report: SignedReport) -> None:
        await self._handlers.on_report(device, report)

    async def _publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        correlation: bytes | None = None,
        content_type: str | None = None,
    ) -> None:
        """Returns when the broker has it (quality 1) or the socket has (0). Raises ConnectionEnded."""
        client = self._client
        if client is None or not self.connected.is_set():
            raise ConnectionEnded("not connected")
        await client.publish(topic, payload, qos=qos, retain=retain, correlation=correlation, content_type=content_type)


def _end(asked: Get | Renew | Offers, packet: PublishPacket) -> float:
    """Until when an answer is of use, by the monotonic clock: the device said how long it waits, the broker counted.

    A short question that has waited for long is not worth an answer that comes in the last moment: when more is asked
    than can be answered, all answers would. Its device asks again, and those that come now are answered in time.
    """
    left_s = math.inf if packet.message_expiry_interval is None else packet.message_expiry_interval
    return time.monotonic() + (left_s if _is_file(asked) else min(left_s, QUESTION_WAITS_S))


def _is_file(asked: Get | Renew | Offers) -> bool:
    return isinstance(asked, Get) and asked.repository == "blob"


def _correlation(device: str, packet: PublishPacket) -> bytes:
    """The request's correlation data. Raises MessageError for a request whose answer would go elsewhere."""
    data = packet.correlation_data
    if data is None or not 0 < len(data) <= MAX_CORRELATION_BYTES:
        raise MessageError(f"get: expected correlation data of 1 to {MAX_CORRELATION_BYTES} bytes")
    if packet.response_topic not in (None, down(device, "data")):
        raise MessageError(f"get: expected the response topic {down(device, 'data')}")
    return data
