"""Events to a log file and to brokers: real files, a real Mosquitto, a real fleet's access rules."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiomqtt
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.doctor_outward import events_outward
from cloud_hub.events import Events
from cloud_hub.link import HubLink
from cloud_hub.metrics.settings import MetricsSettings
from cloud_hub.outward.cloud_events import CloudEvent, cloud_event
from cloud_hub.outward.feed import EventFeed
from cloud_hub.outward.log_file import LogFile
from cloud_hub.outward.mqtt import OtherBroker, Topics
from cloud_hub.outward.room import outward
from cloud_hub.outward.settings import OutwardSettings
from cloud_hub.outward.sinks import Sink, Take
from cloud_hub.store.engine import Store
from support.mosquitto import HUB, Mosquitto
from support.waiting import until, until_async

SOURCE = "https://hub.example.com:8443"


async def happen(store: Store, events: Events, *kinds: str) -> None:
    async with store.write() as connection:
        for kind in kinds:
            await events.record(connection, kind, "alice", "digits:1")


@asynccontextmanager
async def sinking(store: Store, take: Take, kinds: Sequence[str] = ("*",)) -> AsyncIterator[Counter[tuple[str, str]]]:
    """Events go to the sink inside; what happened before its very first start does not."""
    tally: Counter[tuple[str, str]] = Counter()
    sink = Sink(store, "log", SOURCE, kinds, take, (OSError, aiomqtt.MqttError), tally)
    task = asyncio.create_task(sink.run())
    try:
        yield tally
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=30)


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.is_file() else []


def kinds(path: Path) -> list[str]:
    return [line["type"].removeprefix("io.mooring.") for line in lines(path)]


async def opened(store: Store) -> None:
    """What happens from now on is for the sink."""
    async with store.write() as connection:
        await EventFeed(store, "log").open(connection)


async def test_the_log_has_each_event_once_in_order_over_restarts(store: Store, events: Events, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = LogFile(path, 1024**2, 3)
    await opened(store)
    await happen(store, events, "module.built", "session.opened", "module.signed")  # while nobody runs
    async with sinking(store, log.take) as tally:
        await until(lambda: len(kinds(path)) >= 2, "two lines", 60)
        await happen(store, events, "module.released")
        await until(lambda: len(kinds(path)) >= 3, "three lines", 60)
    assert kinds(path) == ["module.built", "module.signed", "module.released"]
    assert tally["log", "taken"] >= 2
    assert path.stat().st_mode & 0o777 == 0o600
    assert len({line["id"] for line in lines(path)}) == len(lines(path))


async def test_a_log_that_cannot_be_written_holds_its_events_until_it_can(
    store: Store, events: Events, tmp_path: Path
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = LogFile(folder / "events.jsonl", 1024**2, 3)
    await opened(store)
    folder.rmdir()
    async with sinking(store, log.take) as tally:
        await happen(store, events, "module.built")
        await until(lambda: tally["log", "failed"] > 0, "a failure", 60)
        folder.mkdir()
        await until(lambda: "module.built" in kinds(folder / "events.jsonl"), "the event", 60)


@asynccontextmanager
async def bringing(paths: HubPaths, store: Store, events: Events, settings: OutwardSettings) -> AsyncIterator[None]:
    """Everything that brings events out, as a hub runs it; its link is for topics at its own broker only."""
    made = outward(HubConfig(outward=settings), paths, store, events, time.time, cast(HubLink, None))
    task = asyncio.create_task(made.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=30)


async def test_a_log_that_was_off_begins_anew(
    hub_paths: HubPaths, store: Store, events: Events, tmp_path: Path
) -> None:
    path, feed = tmp_path / "events.jsonl", EventFeed(store, "log")
    on, off = OutwardSettings(log=str(path)), OutwardSettings()

    async def has_cursor() -> bool:
        return await feed.position() > 0

    async def has_none() -> bool:
        return await feed.position() == 0

    await happen(store, events, "model.registered")
    async with bringing(hub_paths, store, events, on):
        await until_async(has_cursor, "the log to have its place", 60)
        await happen(store, events, "module.built")
        await until(lambda: kinds(path) == ["module.built"], "the event", 60)
    async with bringing(hub_paths, store, events, off):
        await until_async(has_none, "its place to be forgotten", 60)
    await happen(store, events, "module.signed")
    async with bringing(hub_paths, store, events, on):
        await until_async(has_cursor, "the log to have a place again", 60)
        await happen(store, events, "module.released")
        await until(lambda: "module.released" in kinds(path), "the event", 60)
    assert "module.signed" not in kinds(path)


def made(number: int) -> CloudEvent:
    from cloud_hub.chain import Event

    return cloud_event(Event(number, 0.0, "module.built", "a", "s", {"text": "x" * 400}, "", f"{number:064x}"), SOURCE)


async def test_the_log_is_put_aside_by_size_and_only_so_many_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = LogFile(path, 2000, 3)
    for number in range(1, 21):
        await log.take([made(number)])
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["events.jsonl", "events.jsonl.1", "events.jsonl.2"]
    assert all((tmp_path / name).stat().st_size <= 2000 for name in names)
    kept = [line["sequence"] for name in reversed(names) for line in lines(tmp_path / name)]
    assert kept == [f"{number:020d}" for number in range(21 - len(kept), 21)]


async def test_what_a_power_cut_left_of_a_line_is_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = LogFile(path, 10_000, 2)
    await log.take([made(1), made(2)])
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 100, 5):
        path.write_bytes(whole[:cut])
        await log.take([made(9)])
        assert [line["sequence"] for line in lines(path)][-1] == f"{9:020d}"
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("settings", "state", "words"),
    [
        (OutwardSettings(), "ok", "webhooks"),
        (OutwardSettings(private_addresses=True), "ok", "private_addresses"),
        (OutwardSettings(ca="/nowhere/ca.pem"), "problem", "outward.ca"),
        (OutwardSettings(log="/nowhere/events.jsonl"), "problem", "outward.log"),
        (OutwardSettings(mqtt_topic="t", mqtt_broker="mqtts://b", mqtt_ca="/nowhere"), "problem", "outward.mqtt"),
        (OutwardSettings(mqtt_topic="t", mqtt_broker="mqtts://b", mqtt_password_file="/nowhere"), "problem", "nowhere"),
        (OutwardSettings(mqtt_topic="mooring/events"), "ok", "mooring/events at the own broker"),
    ],
)
def test_doctor_says_what_would_keep_events_inside(settings: OutwardSettings, state: str, words: str) -> None:
    found = events_outward(HubConfig(outward=settings))
    assert (found.state, words in found.text) == (state, True), found


@pytest.mark.parametrize(
    "settings",
    [
        {"mqtt_topic": "a/#"}, {"mqtt_topic": "mooring/1/x"}, {"mqtt_topic": "a/"}, {"mqtt_topic": "$SYS/x"},
        {"mqtt_broker": "mqtt://plain"}, {"mqtt_certificate": "/c.pem"}, {"mqtt_readers": ("_hub",)},
        {"mqtt_readers": ("a b",)}, {"log": "relative"}, {"log_mib": 0}, {"timeout_s": 0.0}, {"kinds": ("user.*",)},
    ],
)  # fmt: skip
def test_settings_that_are_none_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="outward"):
        OutwardSettings(**settings)


def test_settings_are_kept_in_the_hubs_file(tmp_path: Path) -> None:
    settings = OutwardSettings(mqtt_topic="mooring/events", mqtt_readers=("grafana",), log="/l", kinds=("alert.*",))
    HubConfig(outward=settings, metrics=MetricsSettings(open=True)).write(tmp_path)
    loaded = HubConfig.load(tmp_path, {})
    assert (loaded.outward, loaded.metrics.open) == (settings, True)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    (tmp_path / "broker").mkdir()
    running = Mosquitto(tmp_path / "broker")
    await running.start()
    yield running
    await running.kill()


async def test_events_reach_another_broker_also_after_it_was_away(
    store: Store, events: Events, broker: Mosquitto, tmp_path: Path
) -> None:
    certificate, key = broker.client(HUB).write(tmp_path, "events")
    settings = OutwardSettings(
        mqtt_topic="mooring/events",
        mqtt_broker=f"mqtts://localhost:{broker.port}",
        mqtt_ca=str(broker.folder / "server-ca.crt"),
        mqtt_certificate=str(certificate),
        mqtt_key=str(key),
    )
    other = OtherBroker(settings)
    await opened(store)
    # The certificate's name is the client id there, so whoever listens needs another one.
    (broker.folder / "acl").write_text(
        f"user {HUB}\ntopic readwrite mooring/#\nuser eyes\ntopic read mooring/events/#\n"
    )
    await broker.kill()
    async with sinking(store, Topics(settings.mqtt_topic, other.publish).take) as tally:
        await happen(store, events, "module.built")
        await until(lambda: tally["log", "failed"] > 0, "a failure", 60)
        await broker.start()
        async with aiomqtt.Client(
            "localhost", broker.port, identifier="eyes", protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=broker.tls(broker.client("eyes"), "eyes"), timeout=10,
        ) as eyes:  # fmt: skip
            await eyes.subscribe("mooring/events/#", qos=1)
            await happen(store, events, "alert.opened")
            async with asyncio.timeout(60):
                async for message in eyes.messages:
                    if message.topic.value == "mooring/events/alert":
                        break
    await other.close()
    assert isinstance(message.payload, bytes)
    assert getattr(message.properties, "ContentType", "") == "application/cloudevents+json; charset=utf-8"
    event = from_http_event(HTTPMessage({"content-type": "application/cloudevents+json"}, message.payload))
    assert event.get_type() == "io.mooring.alert.opened"
