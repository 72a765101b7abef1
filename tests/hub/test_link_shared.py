"""Two replicas on one broker: each message goes to one of them, and what the broker keeps is read again when asked."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from cloud_hub.broker import Broker
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.link import Handlers, HubLink
from cloud_hub.mqtt.client import Client
from cloud_hub.replicas.joining import ensure_client
from cloud_hub.replicas.settings import ReplicasSettings
from cloud_hub.replicas.turns import in_turn
from modules.messages import Ack, Answer, Batch, Get, Offered, Refusal, Renew, SignedReport, encode
from modules.topics import all_down, up
from support.clock import SetClock
from support.trust import TrustWorld, free_port, trust_world
from support.waiting import until

NAMES = ("a", "b")
REPORTS = 40


class Heard:
    """The rooms behind one replica's link."""

    def __init__(self) -> None:
        self.reports: list[bytes] = []
        self.behind = 0
        self.holds = False

    async def on_get(self, _device: str, _get: Get) -> Answer | Refusal:
        return Refusal("not-found", "nothing here")

    async def on_renew(self, _device: str, _renew: Renew) -> Refusal:
        return Refusal("bad-request", "nothing here")

    async def on_batch(self, _device: str, batch: Batch) -> Ack | None:
        return Ack(batch.stream, batch.epoch, batch.entries[-1][0])

    async def on_report(self, _device: str, report: SignedReport) -> None:
        self.reports.append(report.body)

    async def look_behind(self, _after: str) -> tuple[tuple[str, int], ...]:
        self.behind += 1
        return ()

    def handlers(self) -> Handlers:
        return Handlers(self.on_get, self.on_renew, self.on_batch, self.on_report, self.look_behind, _offer)


async def _offer(_device: str, _offers: object) -> Offered:
    return Offered(())


@pytest.fixture
async def world(hub_paths: HubPaths) -> AsyncIterator[TrustWorld]:
    config = HubConfig(
        dev=True, public_host="localhost", mqtt_host="127.0.0.1", mqtt_port=free_port(),
        replicas=ReplicasSettings("", NAMES),
    )  # fmt: skip
    async with trust_world(hub_paths, SetClock(time.time()), config) as world:
        yield world


def replica(world: TrustWorld, name: str, folder: Path) -> tuple[HubConfig, HubPaths]:
    """A directory of its own with the same authorities."""
    paths = HubPaths(folder / name)
    paths.ca.mkdir(parents=True)
    for file in world.paths.ca.iterdir():
        (paths.ca / file.name).write_bytes(file.read_bytes())
    config = msgspec.structs.replace(world.config, replicas=ReplicasSettings(name, NAMES))
    ensure_client(paths, config)
    return config, paths


@pytest.fixture
async def links(world: TrustWorld, tmp_path: Path) -> AsyncIterator[dict[str, tuple[HubLink, Heard]]]:
    async with AsyncExitStack() as stack:
        broker = Broker(world.config, world.paths)
        await stack.enter_async_context(broker)
        await broker.ready()
        found = {}
        for name in NAMES:
            heard = Heard()
            config, paths = replica(world, name, tmp_path)
            link = HubLink(config, paths, heard.handlers(), lambda heard=heard: heard.holds)  # type: ignore[misc]
            await stack.enter_async_context(link)
            await asyncio.wait_for(link.connected.wait(), 20)
            found[name] = link, heard
        yield found


async def say(world: TrustWorld, device: str, folder: Path, *bodies: bytes) -> None:
    enrolled = await world.enrol(device)
    context = enrolled.context(folder)
    async with Client("localhost", world.config.mqtt_port, device, context, lambda _: None, 20, 60) as client:
        await client.subscribe([(all_down(device), 1)])
        for body in bodies:
            await client.publish(up(device, "state"), encode(SignedReport(body, b"")), qos=1, retain=True)


async def test_each_report_goes_to_one_replica_and_both_get_some(
    world: TrustWorld, links: dict[str, tuple[HubLink, Heard]], tmp_path: Path
) -> None:
    heard = {name: one for name, (_, one) in links.items()}
    for number in range(REPORTS):  # of a device each: those of one device may take the place of each other
        await say(world, f"cam-{number}", tmp_path, b"%d" % number)
    await until(lambda: sum(len(one.reports) for one in heard.values()) >= REPORTS, "all reports")
    together = sorted(int(body) for one in heard.values() for body in one.reports)
    assert together == list(range(REPORTS))
    assert all(one.reports for one in heard.values())


async def test_what_was_said_while_no_replica_was_there_is_read_again(
    world: TrustWorld, links: dict[str, tuple[HubLink, Heard]], tmp_path: Path
) -> None:
    await say(world, "cam-1", tmp_path, b"old", b"new")
    await say(world, "cam-2", tmp_path, b"other")
    await until(lambda: sum(len(one.reports) for _, one in links.values()) >= 2, "both")
    link, heard = links["a"]
    heard.reports.clear()
    assert await link.read_kept() == 2
    assert sorted(heard.reports) == [b"new", b"other"]


async def test_only_who_may_looks_for_devices_that_lag_behind(
    world: TrustWorld, links: dict[str, tuple[HubLink, Heard]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_hub.link.DOORBELL_ROUND_S", 0.01)
    first, second = links["a"][1], links["b"][1]
    before = first.behind, second.behind
    second.holds = True
    # The rounds of both are as long as they were; each begins anew with its connection.
    for link, _ in links.values():
        assert link._client is not None
        session = link.session
        link._client._leave("for the test")
        await until(lambda link=link, session=session: link.session > session, "a new connection")  # type: ignore[misc]
    await until(lambda: second.behind > before[1], "the second to look")
    assert first.behind == before[0]


async def test_a_batch_that_came_before_the_one_ahead_of_it_waits_a_moment() -> None:
    answers: list[Ack | None] = [None, None, Ack("window", "life", 4)]

    async def commit(_device: str, _batch: Batch) -> Ack | None:
        return answers.pop(0)

    assert await in_turn(commit)("cam-1", Batch("window", "life", 3, ((4, b""),))) == Ack("window", "life", 4)
    assert answers == []
