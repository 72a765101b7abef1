"""The one connection to the hub: MQTT 5 over TLS 1.3 with this device's certificate.

Asks for bytes (`get`), publishes with the broker's answer checked, hears doorbells and acks, and comes back by itself
after any loss. What the messages mean is the business of `trust`, `fetch`, `outbox` and `report`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import aiomqtt
import msgspec

from agent.backoff import longest_s
from agent.config import LinkLimits
from agent.errors import LinkDown, LinkError, LinkTimeout, NotAuthorised, Refused
from agent.mqtt import MqttClient, last_will, request_properties
from agent.quality import Quality
from modules.commands import Command
from modules.enrolment import RenewAnswer, RenewRequest
from modules.errors import MessageError
from modules.messages import (
    MAX_BLOCK_BYTES,
    Ack,
    Answer,
    Doorbell,
    Get,
    Offered,
    Offers,
    Presence,
    Refusal,
    Renew,
    Renewed,
    Repository,
    decode,
    encode,
)
from modules.topics import Down, all_down, down, up

log = logging.getLogger(__name__)

# A connection that lasted this long was a good one: the next loss starts again with a short wait. One that the broker
# ends at once (a clone of this device, a revoked certificate) does not.
STABLE_S = 5.0
FAREWELL_S = 1.0  # what leaving in order may take: the broker's word that it has heard it

Question = Get | Renew | Offers
Reply = Answer | Renewed | Offered


class LinkStatus(msgspec.Struct, frozen=True):
    """How the connection stands, for `status`: since when (seconds since the epoch), and the last failure in words.

    `attempts` counts the failed attempts since the last connection.
    """

    connected: bool = False
    since: float = 0.0
    attempts: int = 0
    error: str = ""


class Link:
    """`run` is a unit of the supervisor: it returns only when cancelled. `connected` is set while requests can go out.

    `session` counts connections: whoever sees it change knows that what was under way may be lost. `tls` is called for
    every connection, so that a renewed certificate is taken up. `boot` names this life of the process.
    """

    def __init__(
        self,
        device: str,
        host: str,
        port: int,
        tls: Callable[[], ssl.SSLContext],
        limits: LinkLimits,
        *,
        boot: str = "",
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.connected = asyncio.Event()
        self.session = 0
        self.status = LinkStatus(since=clock())
        self.quality = Quality()
        self._device, self._host, self._port, self._tls, self._limits = device, host, port, tls, limits
        self._clock, self._jitter = clock, jitter
        self._client: MqttClient | None = None
        self._pending: dict[bytes, asyncio.Future[Reply]] = {}
        self._room = asyncio.Semaphore(limits.max_pending)
        # Answers to requests of an earlier life of this process must not be taken for ours.
        self._life, self._asked = secrets.token_bytes(4), 0
        self._boot = boot or self._life.hex()
        self._doorbell: list[Callable[[Doorbell], None]] = []
        self._ack: list[Callable[[Ack], None]] = []
        self._command: list[Callable[[Command], None]] = []
        self._change: list[Callable[[LinkStatus], None]] = []
        self._takeover: list[Callable[[], None]] = []
        self._taken_over = self._leaving = False

    def on_doorbell(self, callback: Callable[[Doorbell], None]) -> None:
        """Calls back on the loop for every doorbell, also for the retained one after each connect. Must not raise."""
        self._doorbell.append(callback)

    def on_ack(self, callback: Callable[[Ack], None]) -> None:
        """Calls back on the loop for every ack of the hub. Must not raise."""
        self._ack.append(callback)

    def on_command(self, callback: Callable[[Command], None]) -> None:
        """Calls back on the loop for every command of the hub, which may come again. Must not raise."""
        self._command.append(callback)

    def on_change(self, callback: Callable[[LinkStatus], None]) -> None:
        """Calls back on the loop when the connection comes or goes. Must not raise."""
        self._change.append(callback)

    def on_takeover(self, callback: Callable[[], None]) -> None:
        """Calls back on the loop when somebody else may have connected with our certificate. Once says nothing.

        Mosquitto 2.0 does not say why it ends the older connection, so each that is ended at once counts.
        """
        self._takeover.append(callback)

    def reconnect(self) -> None:
        """Ends the connection, so that the next one begins with what `tls` gives now."""
        if self._client is not None:
            self._leaving = True
            self._client.leave()

    async def run(self) -> None:
        """Connects, and connects again, until cancelled."""
        failures = 0
        while True:
            began = time.monotonic()
            try:
                async with self._connection() as client:
                    began = time.monotonic()
                    await self._listen(client)
            except (aiomqtt.MqttError, LinkError, OSError) as error:
                lasted = self.status.connected and time.monotonic() - began >= STABLE_S
                failures = 1 if lasted else failures + 1
                if self._taken_over or (self.status.connected and not lasted and not self._leaving):
                    for tell in self._takeover:
                        tell()
                self._taken_over = self._leaving = False
                self._lost(f"{type(error).__name__}: {error}", failures)
            await asyncio.sleep(self._pause(failures))

    async def get(
        self,
        repository: Repository,
        name: str,
        offset: int = 0,
        length: int = MAX_BLOCK_BYTES,
        timeout_s: float | None = None,
        held: bytes | None = None,
        grant: str = "",
    ) -> Answer:
        """Bytes [offset, offset+length) of a metadata file or blob. Safe to repeat. `held`, `grant` as in `Get`.

        Raises Refused (the hub's key), LinkDown (at once when there is no connection), LinkTimeout; LinkError with key
        bad-answer when what came is not what was asked for.
        """
        limit = self._limits.answer_timeout_s if timeout_s is None else timeout_s
        what = f"{repository} {name}"
        answer = await self._answer(Get(repository, name, offset, length, held, grant), what, limit)
        if not isinstance(answer, Answer):
            raise LinkError(f"{what}: expected bytes, got another answer", "bad-answer")
        if answer.offset != offset or len(answer.data) > length:
            got = f"{len(answer.data)} bytes from {answer.offset}"
            raise LinkError(f"{what}: expected at most {length} bytes from {offset}, got {got}", "bad-answer")
        return answer

    async def renew(self, request: RenewRequest) -> RenewAnswer:
        """A certificate for a new key. Safe to repeat. Raises as `get`."""
        answer = await self._answer(Renew(request), "renewal", self._limits.answer_timeout_s)
        if not isinstance(answer, Renewed):
            raise LinkError("renewal: expected a certificate, got another answer", "bad-answer")
        return RenewAnswer(answer.certificate, answer.device_ca)

    async def offers(self, files: tuple[str, ...], held: tuple[str, ...], timeout_s: float | None = None) -> Offered:
        """The ways to get these files, at most MAX_OFFERS. A hub of before 0.2 lets this time out. Raises as `get`."""
        limit = self._limits.answer_timeout_s if timeout_s is None else timeout_s
        answer = await self._answer(Offers(files, held), "offers", limit)
        if not isinstance(answer, Offered):
            raise LinkError("offers: expected ways to get files, got another answer", "bad-answer")
        return answer

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float | None = None
    ) -> bool:
        """QoS 1; returns when the broker has taken it: false when it said that nobody listens now.

        Raises NotAuthorised, LinkDown, LinkTimeout, LinkError.
        """
        limit = self._limits.publish_timeout_s if timeout_s is None else timeout_s
        client, began = self._online(topic), time.monotonic()
        self.quality.sent(len(payload))
        heard = await client.send(topic, payload, qos=1, retain=retain, properties=None, timeout_s=limit)
        self.quality.acknowledged(time.monotonic() - began)
        return heard

    async def _answer(self, request: Question, what: str, limit: float) -> Reply:
        try:
            async with asyncio.timeout(limit), self._room:
                return await self._ask(request, what, limit)
        except TimeoutError as error:
            raise LinkTimeout(f"{what}: no answer from the hub within {limit} s") from error

    async def _ask(self, request: Question, what: str, limit: float) -> Reply:
        client = self._online(what)
        self._asked += 1
        correlation = self._life + self._asked.to_bytes(8, "big")
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._pending[correlation] = future
        properties = request_properties(down(self._device, "data"), correlation, max(1, math.ceil(limit)))
        try:
            # QoS 0: a request is repeated by whoever needs the answer, and must not queue up for a hub that is away.
            topic, payload = up(self._device, "get"), encode(request)
            self.quality.sent(len(payload))
            await client.send(topic, payload, qos=0, retain=False, properties=properties, timeout_s=limit)
            return await future
        finally:
            self._pending.pop(correlation, None)

    def _online(self, what: str) -> MqttClient:
        if self._client is None or not self.connected.is_set():
            raise LinkDown(f"{what}: there is no connection to {self._host}:{self._port}")
        return self._client

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[MqttClient]:
        """Connected and subscribed. Leaving it fails everything that waits for an answer."""
        will = last_will(up(self._device, "presence"), encode(self._presence(False)), self._limits.absent_after_s)
        client = MqttClient(self._host, self._port, self._device, self._tls(), self._limits, will)
        try:
            await _enter(client, 3 * self._limits.connect_timeout_s)
            await client.hear(all_down(self._device))
            await self._greet(client)
            self._client = client
            self.session += 1
            self._up()
            yield client
        except asyncio.CancelledError:
            # Leaving in order: the broker forgets the will then, so the device says itself that it goes.
            with suppress(LinkError, OSError):
                await self._say(client, self._presence(False, left=True), FAREWELL_S)
            raise
        finally:
            self._client = None
            for future in self._pending.values():
                if not future.done():
                    future.set_exception(LinkDown("the connection ended before the hub answered"))
            client.abandon()
            self.connected.clear()
            self._taken_over = client.taken_over

    async def _listen(self, client: MqttClient) -> None:
        """Hands on every message until the connection ends, which raises aiomqtt.MqttError."""
        channels: tuple[Down, ...] = ("data", "desired", "ack", "command")
        data, desired, ack, command = (down(self._device, channel) for channel in channels)
        async for message in client.messages:
            topic = message.topic.value
            self.quality.received(len(message.payload))
            try:
                said = decode(message.payload)
            except MessageError as error:
                log.warning("message ignored: topic=%s error=%s", topic, error)
                continue
            if topic == data and isinstance(said, Reply | Refusal):
                self._answered(getattr(message.properties, "CorrelationData", b""), said)
            elif topic == desired and isinstance(said, Doorbell):
                for hear in self._doorbell:
                    hear(said)
            elif topic == ack and isinstance(said, Ack):
                for note in self._ack:
                    note(said)
            elif topic == command and isinstance(said, Command):
                for obey in self._command:
                    obey(said)

    def _answered(self, correlation: bytes, said: Reply | Refusal) -> None:
        future = self._pending.get(correlation)
        if future is None or future.done():
            return  # late, repeated, or for an earlier life: nobody waits for it
        if isinstance(said, Refusal):
            future.set_exception(Refused(said.text, said.key, said.timestamp))
        else:
            future.set_result(said)

    def _presence(self, online: bool, left: bool = False) -> Presence:
        """Of the connection that is being made, or, where it stands already, of that."""
        return Presence(online, self._boot, self.session + (0 if left else 1), left)

    async def _greet(self, client: MqttClient) -> None:
        """A broker whose rules know nothing of presence is no reason to stay away from it."""
        try:
            await self._say(client, self._presence(True), self._limits.publish_timeout_s)
        except NotAuthorised as error:
            log.warning("the hub will not know when this device is gone: %s", error)

    async def _say(self, client: MqttClient, presence: Presence, limit_s: float) -> None:
        topic = up(self._device, "presence")
        await client.send(topic, encode(presence), qos=1, retain=True, properties=None, timeout_s=limit_s)

    def _up(self) -> None:
        self.connected.set()
        self.quality.connected()
        log.info("connected: host=%s port=%s session=%s", self._host, self._port, self.session)
        self._tell(LinkStatus(connected=True, since=self._clock()))

    def _lost(self, error: str, failures: int) -> None:
        first = self.status.connected or not self.status.error
        since = self._clock() if self.status.connected else self.status.since
        if first:  # said once, not at every attempt
            ceiling = self._limits.reconnect_ceiling_s
            log.warning("no connection: %s; trying again, at most %s s apart", error, ceiling)
        self._tell(LinkStatus(connected=False, since=since, attempts=failures, error=error))

    def _tell(self, status: LinkStatus) -> None:
        changed = status.connected != self.status.connected or status.error != self.status.error
        self.status = status
        if changed:
            for tell in self._change:
                tell(status)

    def _pause(self, failures: int) -> float:
        """Full jitter: a fleet that lost its broker together does not come back together."""
        limits = self._limits
        return longest_s(limits.reconnect_first_s, limits.reconnect_ceiling_s, failures) * self._jitter()


async def _enter(client: MqttClient, limit_s: float) -> None:
    """Connects. When cancelled, waits for the connecting thread, which has deadlines of its own: none is left over."""
    connecting = asyncio.create_task(client.__aenter__(), name="link-connect")
    try:
        await asyncio.shield(connecting)
    except asyncio.CancelledError:
        await asyncio.wait({connecting}, timeout=limit_s)
        with suppress(asyncio.CancelledError, aiomqtt.MqttError, OSError):
            if connecting.cancel() is False:
                connecting.result()
        raise
