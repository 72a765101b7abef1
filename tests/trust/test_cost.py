"""What it costs a device to ask whether there is anything new, counted where it asks, against the real hub and broker.

The numbers are those of the encoded messages, both ways; MQTT's and TLS's own bytes come on top. See decision 0014.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.config import StatePaths
from agent.errors import Refused
from agent.link import Link
from agent.trust import Desired, Trust
from cloud_hub.broker import Broker
from cloud_hub.config import HubPaths
from cloud_hub.link import Handlers, HubLink
from cloud_hub.serving import Serving
from modules.messages import Ack, Answer, Batch, Get, Refusal, Renew, Renewed, Repository, SignedReport, encode
from support.devices import PROFILE
from support.links import QUICK, running
from support.trust import TrustWorld, trust_world
from support.waiting import until

DEVICE = "d" * 63  # the longest id: its name stands in what the hub says
WARM_REQUESTS, WARM_BYTES, COLD_REQUESTS = 2, 500, 8


@dataclass
class Counted:
    """The device's way to ask, from the thread that verifies, with what went over it."""

    link: Link
    loop: asyncio.AbstractEventLoop
    asked: list[tuple[str, str]] = field(default_factory=list)
    payload: int = 0

    def get(self, repository: Repository, name: str, offset: int, length: int, held: bytes | None = None) -> Answer:
        self.asked.append((repository, name))
        self.payload += len(encode(Get(repository, name, offset, length, held)))
        asking = self.link.get(repository, name, offset, length, held=held)
        try:
            answer = asyncio.run_coroutine_threadsafe(asking, self.loop).result(20)
        except Refused as error:
            self.payload += len(encode(Refusal(error.key, str(error), error.timestamp)))
            raise
        self.payload += len(encode(answer))
        return answer


@dataclass(frozen=True)
class Ends:
    """Both ends of the protocol: the hub that signs, and the device that asks."""

    hub: TrustWorld
    trust: Trust
    counted: Counted

    async def refresh(self) -> Desired:
        """One refresh; the counts are those of this one alone."""
        self.counted.asked.clear()
        self.counted.payload = 0
        return await asyncio.to_thread(self.trust.refresh, {}, self.counted.get)


async def no_renewal(_device: str, _renew: Renew) -> Renewed | Refusal:
    return Refusal("bad-request", "no renewals here")


async def no_batch(device: str, batch: Batch) -> Ack | None:
    return None


async def no_report(device: str, report: SignedReport) -> None:
    return None


async def nobody(_after: str) -> Sequence[tuple[str, int]]:
    return ()


@pytest.fixture
async def ends(tmp_path: Path, state_dir: StatePaths) -> AsyncIterator[Ends]:
    """A device with one module assigned, connected, that has never asked."""
    root = tmp_path / "hub"
    root.mkdir(mode=0o700)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(trust_world(HubPaths(root), time.time))
        broker = await stack.enter_async_context(Broker(hub.config, hub.paths))
        await broker.ready(20)
        serving = Serving(hub.store, hub.blobs, hub.image, hub.director)

        handlers = Handlers(serving.answer, no_renewal, no_batch, no_report, nobody)
        link = await stack.enter_async_context(HubLink(hub.config, hub.paths, handlers))
        await until(link.connected.is_set, "the hub's connection")
        device = await hub.enrol(DEVICE)
        await hub.add_signed("digits")
        await hub.assign(DEVICE, "digits")
        (state_dir.roots / "image.root.json").write_text(device.answer.image_root)
        (state_dir.roots / "director.root.json").write_text(device.answer.director_root)
        tls = device.context(tmp_path)
        asking = await stack.enter_async_context(
            running(Link(DEVICE, "localhost", hub.config.mqtt_port, lambda: tls, QUICK))
        )
        trust = Trust(DEVICE, PROFILE, state_dir.roots, state_dir.metadata, time.time)
        yield Ends(hub, trust, Counted(asking, asyncio.get_running_loop()))


async def test_a_poll_with_nothing_new_is_two_small_requests(ends: Ends) -> None:
    cold = await ends.refresh()
    assert await ends.refresh() == cold
    assert ends.counted.asked == [("director", "2.root.json"), ("image", "2.root.json")]
    assert len(ends.counted.asked) <= WARM_REQUESTS
    print(f"warm poll: {len(ends.counted.asked)} requests, {ends.counted.payload} bytes of payload")
    assert ends.counted.payload <= WARM_BYTES


async def test_a_first_refresh_with_a_module_is_eight_requests(ends: Ends) -> None:
    assert [module.name for module in (await ends.refresh()).modules] == ["digits"]
    print(f"cold refresh: {len(ends.counted.asked)} requests, {ends.counted.payload} bytes of payload")
    assert len(ends.counted.asked) <= COLD_REQUESTS


async def test_a_new_assignment_costs_what_has_changed(ends: Ends) -> None:
    await ends.refresh()
    await ends.hub.assign(DEVICE, "digits", deployment="rollout-2")
    assert (await ends.refresh()).modules[0].deployment == "rollout-2"
    asked = [("director", "2.root.json"), ("director", "snapshot.json"), ("director", "targets.json")]
    assert ends.counted.asked == [*asked, ("image", "2.root.json")]
