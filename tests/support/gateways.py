"""Devices on one site: a gateway with its own link to the hub, and neighbours that ask it; all with real TLS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from agent.config import FetchLimits, GatewaySettings, Place, StatePaths
from agent.link import Link
from agent.transfer.gateway import Gateway
from agent.transfer.gateway_cache import Cache
from agent.transfer.gateway_source import GatewaySource
from agent.transfer.gateway_store import GatewayStore
from agent.transfer.offers import Offering
from agent.transfer.schedule import Gate
from cloud_hub.initialise import free_ports
from modules.messages import Answer, Get, Offered, Offers, Refusal, Way
from support.certificates import Pair
from support.hub import FakeHub, Reply
from support.links import make_link, running
from support.mosquitto import Mosquitto
from support.waiting import until

LIMITS = FetchLimits(chunk_timeout_s=5.0, stall_s=40.0, disk_margin_bytes=0)


def state_of(broker: Mosquitto, folder: Path, device: str, pair: Pair | None = None) -> StatePaths:
    """A device's identity as enrolment leaves it."""
    paths = StatePaths(folder / device)
    if paths.identity.exists():
        return paths
    for one in (paths.identity, paths.staging):
        one.mkdir(parents=True)
    made = pair or broker.client(device)
    paths.certificate.write_text(made.pem)
    paths.key.write_text(made.key_pem)
    paths.server_ca.write_text(broker.server_ca.pem)
    paths.device_ca.write_text(broker.device_ca.pem)
    return paths


@dataclass
class Rights:
    """The hub's side: gives a grant for every file that it has, and answers a gateway only with one that is good now.

    `sent` counts the bytes that went over the air to who showed a grant, by file. After `hold_after` of them (0: never)
    requests are `held` and get no answer. With `falsify` answers are wrong.
    """

    hub: FakeHub
    good: set[str] = field(default_factory=set)
    sent: dict[str, int] = field(default_factory=dict)
    life: int = 0
    falsify: bool = False
    hold_after: int = 0
    held: list[Get] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.renew()
        self.hub.offer, self.hub.answer = self.offer, self.answer

    def renew(self) -> None:
        """What was given before has ended."""
        self.life += 1
        self.good = {f"{self.life}.{digest[:16]}" for _, digest in self.hub.files}

    def offer(self, offers: Offers) -> Offered:
        known = [file for file in offers.files if ("blob", file) in self.hub.files]
        return Offered(tuple(Way(file, "", f"{self.life}.{file[:16]}") for file in known), 600.0)

    def answer(self, get: Get) -> Reply:
        if not get.grant:
            return self.hub.from_files(get)  # the device's own question
        if get.grant not in self.good or not get.grant.endswith(get.name[:16]):
            return Refusal("not-allowed", "no such right")
        if self.hold_after and sum(self.sent.values()) >= self.hold_after:
            self.held.append(get)
            return None
        answer = self.hub.from_files(get)
        if isinstance(answer, Answer):
            self.sent[get.name] = self.sent.get(get.name, 0) + len(answer.data)
            if self.falsify:
                return Answer(answer.total, answer.offset, bytes(len(answer.data)))
        return answer


@dataclass
class Site:
    """A gateway that listens on loopback."""

    gateway: Gateway
    store: GatewayStore
    cache: Cache
    link: Link
    paths: StatePaths

    @property
    def place(self) -> Place:
        return Place("127.0.0.1", self.gateway.port)


def nothing(_digest: str) -> Path | None:
    return None


@asynccontextmanager
async def gateway(
    broker: Mosquitto,
    folder: Path,
    settings: GatewaySettings | None = None,
    limits: FetchLimits = LIMITS,
    find: Callable[[str], Path | None] = nothing,
) -> AsyncIterator[Site]:
    """Runs inside, with a connection to the hub."""
    settings = msgspec.structs.replace(settings or GatewaySettings(), listen=f"127.0.0.1:{free_ports(1)[0]}")
    paths = state_of(broker, folder, "box-1")
    async with running(make_link(broker, "box-1")) as link:
        cache = Cache(paths.gateway, settings.cache_bytes, 0, find)
        store = GatewayStore(link, cache, limits, Gate())
        one = Gateway(settings, paths, store)
        task = asyncio.create_task(one.run(), name="gateway")
        try:
            await until(lambda: one.ready.is_set() or task.done(), "the gateway to listen")
            if task.done():
                task.result()
            yield Site(one, store, cache, link, paths)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def neighbour(
    broker: Mosquitto, folder: Path, device: str, *places: Place
) -> AsyncIterator[tuple[Link, Offering, GatewaySource]]:
    """A device with its own connection to the hub, which asks these gateways."""
    paths = state_of(broker, folder, device)
    async with running(make_link(broker, device)) as link:
        offering = Offering(link, time.monotonic)
        source = GatewaySource(places, paths, offering)
        try:
            yield link, offering, source
        finally:
            source.close()
