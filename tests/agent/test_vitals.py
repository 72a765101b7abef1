"""How a machine is, read from its kernel's files; and how good its way to the hub is, counted by the link."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.errors import LinkError
from agent.link import Link
from agent.probe.tree import Tree
from agent.probe.vitals import vitals
from agent.quality import Quality
from modules.messages import Batch, decode_report, encode, encode_report
from modules.topics import up
from modules.vitals import LinkQuality, Vitals
from support.devices import make_report
from support.hub import FakeHub
from support.links import make_link, running
from support.mosquitto import Mosquitto
from support.waiting import until


def machine(root: Path, **files: str) -> Tree:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tree(root)


def test_a_machine_that_tells_all_is_told_so(tmp_path: Path) -> None:
    tree = machine(
        tmp_path,
        proc__uptime="3600.25 14000.10\n",
        proc__loadavg="2.00 1.50 1.00 3/400 12345\n",
        proc__meminfo="MemTotal:  1024000 kB\nMemFree:  1000 kB\nMemAvailable:   512000 kB\n",
        sys__class__thermal__thermal_zone0__temp="48200\n",
        sys__class__thermal__thermal_zone1__temp="71600\n",
        sys__class__thermal__thermal_zone2__temp="-273000\n",
        sys__class__thermal__thermal_zone3__temp="no\n",
        sys__class__thermal__cooling_device0__temp="99000\n",
    )
    found = vitals(tmp_path, LinkQuality(2), tree)
    assert (found.uptime_s, found.memory_free_mib, found.temperature_c) == (3600.25, 500, 72)
    assert found.load is not None
    assert found.load > 0
    assert found.disk_free_mib is not None
    assert 0 <= found.disk_free_mib <= found.disk_mib
    assert found.link == LinkQuality(2)


def test_a_machine_that_tells_nothing_fails_nothing(tmp_path: Path) -> None:
    found = vitals(tmp_path / "away", LinkQuality(), Tree(tmp_path / "empty"))
    assert found == Vitals()


def test_vitals_travel_in_the_report_and_an_old_report_has_none() -> None:
    said = Vitals(1.0, 2, 3, 4, 0.5, 6.0, LinkQuality(7, 8.5, 9, 10))
    report = msgspec.structs.replace(make_report("cam-1"), vitals=said)
    assert decode_report(encode_report(report)).vitals == said
    old = msgspec.json.decode(encode_report(report))
    del old["vitals"]
    assert decode_report(msgspec.json.encode(old)).vitals is None


def test_the_round_trip_is_the_median_of_the_last_ones() -> None:
    quality = Quality()
    assert quality.now() == LinkQuality()
    for after_s in [9.0] * 20 + [0.010] * 7 + [0.020] * 2 + [0.030] * 7:
        quality.acknowledged(after_s)
    quality.connected()
    quality.connected()
    assert quality.now() == LinkQuality(reconnects=1, rtt_ms=20.0)


@pytest.fixture
async def link(broker: Mosquitto) -> Link:
    return make_link(broker)


async def test_the_link_counts_what_goes_and_comes_and_how_often_it_began_anew(link: Link, broker: Mosquitto) -> None:
    async with FakeHub(broker, {("blob", "a" * 64): b"0123456789"}) as hub, running(link):
        await link.get("blob", "a" * 64)
        await link.publish(up("cam-17", "event"), encode(Batch("event", "life", 0, ((1, b"x" * 1000),))))
        first = link.quality.now()
        assert first.reconnects == 0
        assert first.rtt_ms > 0
        assert first.sent_bytes > 1000
        assert first.received_bytes > 10
        await broker.kill()
        await until(lambda: not link.connected.is_set(), "the loss")
        await broker.start()
        await until(lambda: link.session == 2, "the second connection")
        assert link.quality.now().reconnects == 1
        await until(lambda: hub._ready.is_set(), "the hub to come back")


async def test_a_broker_that_allows_no_presence_is_no_reason_to_stay_away(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    acl = broker.folder / "acl"
    acl.write_text(acl.read_text().replace("pattern write mooring/1/%u/up/#", "pattern write mooring/1/%u/up/event"))
    await broker.kill()
    await broker.start()
    link = make_link(broker)
    async with running(link):
        await link.publish(up("cam-17", "event"), b"hello")
        with pytest.raises(LinkError):
            await link.publish(up("cam-17", "presence"), b"hello")
    assert "the hub will not know when this device is gone" in caplog.text
