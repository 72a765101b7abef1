"""The reporter over a real broker: one signed report for many changes, one for each connection, none lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec
import pytest

from agent.config import AgentConfig, ReportLimits, StatePaths
from agent.identity import Identity
from agent.link import Link, LinkStatus
from agent.report import Reporter, Status, read_status, write_status
from agent.store import AgentStore
from modules.messages import DeviceReport, decode_report
from support.agents import enrolled
from support.devices import make_report
from support.hub import FakeHub
from support.links import make_link, running
from support.mosquitto import Mosquitto
from support.waiting import until

LIMITS = ReportLimits(debounce_s=0.05, every_s=3600.0)


@dataclass
class Bench:
    reporter: Reporter
    hub: FakeHub
    link: Link
    image_version: int = 1
    composed: list[DeviceReport] = field(default_factory=list)

    def reports(self) -> list[DeviceReport]:
        return [decode_report(signed.body) for signed in self.hub.reports]


@pytest.fixture
async def bench(
    agent_config: AgentConfig, state_dir: StatePaths, agent_store: AgentStore, broker: Mosquitto
) -> AsyncIterator[Bench]:
    enrolled(agent_config, state_dir, broker)
    async with FakeHub(broker) as hub, running(make_link(broker)) as link:

        def compose() -> DeviceReport:
            return msgspec.structs.replace(make_report("cam-17"), image_version=bench.image_version)

        def on_change(_: LinkStatus) -> None:
            reporter.changed()

        identity = Identity.load(state_dir)
        reporter = Reporter(identity, agent_store, link, LIMITS, compose, lambda report: bench.composed.append(report))
        link.on_change(on_change)
        bench = Bench(reporter, hub, link)
        task = asyncio.create_task(reporter.run())
        yield bench
        task.cancel()
        await asyncio.wait([task])


async def test_the_first_report_comes_by_itself(bench: Bench) -> None:
    await until(lambda: len(bench.reports()) == 1, "a report")
    assert bench.reports()[0].device == "cam-17"


async def test_changes_that_come_together_are_one_report_with_the_newest_content(bench: Bench) -> None:
    await until(lambda: len(bench.reports()) == 1, "the first report")
    for version in range(2, 20):
        bench.image_version = version
        bench.reporter.changed()
    await until(lambda: bench.reports()[-1].image_version == 19, "the newest content")
    assert len(bench.reports()) == 2
    assert [report.counter for report in bench.reports()] == [1, 2]


async def test_a_broker_that_comes_back_gets_the_report_again(bench: Bench, broker: Mosquitto) -> None:
    await until(lambda: len(bench.reports()) == 1, "the first report")
    await broker.kill()
    await until(lambda: not bench.link.connected.is_set(), "the loss")
    bench.image_version = 7
    bench.reporter.changed()
    await broker.start()
    await until(lambda: bench.reports()[-1].image_version == 7, "the report after the loss")


async def test_the_status_file_is_read_back_and_replaced(state_dir: StatePaths) -> None:
    assert read_status(state_dir.status) is None
    for pid in (1, 2):
        write_status(state_dir.status, Status(make_report("cam-17"), LinkStatus(), {"window": 3}, pid, 5.0))
        status = read_status(state_dir.status)
        assert status is not None
        assert (status.pid, status.waiting) == (pid, {"window": 3})
    assert [path.name for path in state_dir.root.iterdir() if path.name.endswith(".new")] == []
