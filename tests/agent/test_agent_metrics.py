"""What the agent as a whole tells Prometheus: read by Prometheus' own parser, over real sockets, bounded."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.config import AgentConfig, StatePaths
from agent.link import LinkStatus
from agent.metrics.page import Facts, Process, page
from agent.metrics.process import this_process
from agent.metrics.server import MAX_CONNECTIONS, MetricsServer
from agent.metrics.settings import MetricsSettings
from agent.sandbox.protocol import SourceSeen, Stats
from cloud_hub.initialise import free_ports
from modules.messages import AttackReport, ModuleReport, UpdateReport
from support.agents import AgentProcess, enrolled
from support.devices import make_report
from support.mosquitto import Mosquitto
from support.waiting import until_async

Series = dict[str, dict[frozenset[tuple[str, str]], float]]


def read(text: str) -> Series:
    """By name and labels. Every family says its kind and meaning, and stands once."""
    values: Series = {}
    names: set[str] = set()
    for family in text_string_to_metric_families(text):
        assert family.type in ("counter", "gauge"), family.name
        assert family.documentation
        assert family.name not in names
        names.add(family.name)
        for sample in family.samples:
            of_name = values.setdefault(sample.name, {})
            assert frozenset(sample.labels.items()) not in of_name
            of_name[frozenset(sample.labels.items())] = sample.value
    return values


def value(series: Series, name: str, **labels: str) -> float:
    return series[name][frozenset(labels.items())]


def make_module(name: str, **more: object) -> ModuleReport:
    module = ModuleReport(name, 3, "ab" * 32, 1, "r-1", "serving", True)
    return msgspec.structs.replace(module, **more)


def make_facts(**more: object) -> Facts:
    report = msgspec.structs.replace(
        make_report("cam-17"),
        modules=(make_module("digits", restarts=2, samples_dropped={"quota": 4}), make_module("faces", state="failed")),
        current=UpdateReport("fetching", 9, attempt=2, done_bytes=10_000_000_001, total_bytes=20_000_000_002),
        attacks=(AttackReport("rollback", "older", 1.0, 3),),
        dropped_why={"sample.age": 5, "window.bytes": 6},
        heat="hot",
    )
    sources = (SourceSeen("mqtt", "open", 100, 2, 1), SourceSeen("mqtt", "not there", 0, 0, 0))
    facts = Facts(
        report, LinkStatus(True, 1.0, 0, ""), 4, {"window": 7}, {"window": 8192}, {"https": 123_456_789_012},
        {"digits": Stats(requests=50, rows=60, errors=1, refused=2, p50_us=1500.0, sampled=9, sources=sources)},
        Process(1.5, 40_000_000, 20, 1.7e9),
    )  # fmt: skip
    return msgspec.structs.replace(facts, **more)


def test_the_page_says_how_the_device_does() -> None:
    series = read(page(make_facts()))
    assert value(series, "mooring_agent_connected") == 1
    assert value(series, "mooring_agent_sessions_total") == 4
    assert value(series, "mooring_agent_heat") == 2
    assert value(series, "mooring_agent_outbox_entries", stream="window") == 7
    assert value(series, "mooring_agent_outbox_bytes", stream="window") == 8192
    assert value(series, "mooring_agent_outbox_dropped_total", stream="sample", reason="age") == 5
    assert value(series, "mooring_agent_update_state", state="fetching") == 1
    assert sum(series["mooring_agent_update_state"].values()) == 1
    assert value(series, "mooring_agent_update_done_bytes") == 10_000_000_001
    assert value(series, "mooring_agent_fetched_bytes_total", origin="https") == 123_456_789_012
    assert value(series, "mooring_agent_refused_total", key="rollback") == 3
    digits, faces = ({"module": name, "version": "3"} for name in ("digits", "faces"))
    assert [value(series, "mooring_agent_module_serving", **labels) for labels in (digits, faces)] == [1, 0]
    assert value(series, "mooring_agent_module_requests_total", **digits) == 50
    assert value(series, "mooring_agent_module_restarts_total", **digits) == 2
    assert value(series, "mooring_agent_module_latency_seconds", **digits, quantile="0.5") == 0.0015
    assert value(series, "mooring_agent_module_samples_dropped_total", **digits, reason="quota") == 4
    assert value(series, "process_resident_memory_bytes") == 40_000_000


def test_sources_are_told_apart_by_their_place_and_counted() -> None:
    series = read(page(make_facts()))
    first = {"module": "digits", "version": "3", "source": "mqtt", "number": "0"}
    counts = [
        value(series, "mooring_agent_source_items_total", **first, outcome=outcome)
        for outcome in ("taken", "failed", "dropped")
    ]
    assert counts == [100, 2, 1]
    assert value(series, "mooring_agent_source_open", **first) == 1
    assert value(series, "mooring_agent_source_open", **first | {"number": "1"}) == 0


def test_a_workers_words_break_nothing_and_make_no_more_series_than_there_may_be() -> None:
    odd = SourceSeen('q"\\\n{x}' * 100, "open", 1, 0, 0)
    report = msgspec.structs.replace(
        make_report("cam-17"),
        modules=tuple(make_module(f"m-{n}", samples_dropped={f'r"{i}\n': 1 for i in range(50)}) for n in range(300)),
    )
    stats = {f"m-{n}": Stats(sources=(odd,) * 50) for n in range(300)}
    series = read(page(make_facts(report=report, stats=stats)))
    assert len(series["mooring_agent_module_serving"]) == 256
    assert len(series["mooring_agent_module_samples_dropped_total"]) == 256 * 32
    assert len(series["mooring_agent_source_open"]) == 256 * 8


def test_a_process_knows_itself() -> None:
    found = this_process()
    assert found.cpu_s > 0
    assert found.resident_bytes > 1_000_000
    assert found.open_files > 2


@asynccontextmanager
async def offering(settings: MetricsSettings) -> AsyncIterator[None]:
    server = MetricsServer(settings, make_facts)
    task = asyncio.create_task(server.run())
    try:
        await until_async(lambda: _accepts(settings), "the metrics to be offered", 60)
        yield
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=30)


async def _connect(settings: MetricsSettings) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if settings.path:
        return await asyncio.open_unix_connection(settings.path)
    return await asyncio.open_connection(*settings.place)


async def _accepts(settings: MetricsSettings) -> bool:
    try:
        _, writer = await _connect(settings)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def ask(settings: MetricsSettings, head: bytes) -> bytes:
    reader, writer = await _connect(settings)
    try:
        writer.write(head)
        return await asyncio.wait_for(reader.read(), 60)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_a_scrape_over_a_port_and_over_a_socket(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    local = MetricsSettings(f"unix:{tmp_path}/metrics.sock")
    for settings in (MetricsSettings(f"127.0.0.1:{port}"), local):
        async with offering(settings):
            head, _, body = (await ask(settings, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert f"Content-Length: {len(body)}".encode() in head
            assert value(read(body.decode()), "mooring_agent_connected") == 1
    assert (tmp_path / "metrics.sock").stat().st_mode & 0o777 == 0o660
    async with offering(local):  # the socket of the one before is in the way, and nobody's
        assert (await ask(local, b"GET /metrics HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_what_is_no_scrape_is_refused_and_the_next_one_is_answered(tmp_path: Path) -> None:
    settings = MetricsSettings(f"unix:{tmp_path}/metrics.sock")
    async with offering(settings):
        assert (await ask(settings, b"GET /other HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        assert (await ask(settings, b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
        assert await ask(settings, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n") == b""
        assert (await ask(settings, b"\xff\x00\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        held = [await _connect(settings) for _ in range(MAX_CONNECTIONS)]
        assert await ask(settings, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        for _, writer in held:
            writer.close()

        async def answered() -> bool:
            return b"200 OK" in await ask(settings, b"GET /metrics HTTP/1.1\r\n\r\n")

        await until_async(answered, "an answer after the others went away", 60)


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("kept")
    server = MetricsServer(MetricsSettings(f"unix:{path}"), make_facts)
    with pytest.raises(FileExistsError, match="another file"):
        await server._start()
    assert path.read_text() == "kept"


@pytest.mark.parametrize("listen", ["9464", "host:0", "host:70000", "unix:relative", "unix:/" + "x" * 200, "a b:1"])
def test_a_place_that_is_none_is_refused(listen: str) -> None:
    with pytest.raises(ValueError, match=r"metrics\.listen"):
        MetricsSettings(listen)


def test_the_setting_is_kept_in_the_agents_file(agent_config: AgentConfig, state_dir: StatePaths) -> None:
    config = msgspec.structs.replace(agent_config, metrics=MetricsSettings("[::1]:9464"))
    state_dir.config.parent.mkdir(parents=True, exist_ok=True)
    state_dir.config.write_text(config.to_toml())
    assert AgentConfig.load(state_dir).metrics.place == ("::1", 9464)


async def test_a_running_agent_offers_them_where_it_is_told_to(
    agent_config: AgentConfig, state_dir: StatePaths, broker: Mosquitto
) -> None:
    settings = MetricsSettings(f"unix:{state_dir.root}/metrics.sock")
    enrolled(msgspec.structs.replace(agent_config, metrics=settings), state_dir, broker)
    process = AgentProcess(state_dir)
    await process.start()
    try:
        text = ""

        async def connected() -> bool:
            nonlocal text
            if not await _accepts(settings):
                return False
            head, _, body = (await ask(settings, b"GET /metrics HTTP/1.1\r\n\r\n")).partition(b"\r\n\r\n")
            text = body.decode()
            return b" 200 " in head and value(read(text), "mooring_agent_connected") == 1

        await until_async(connected, "the agent to say that it is connected", 60)
        series = read(text)
        assert value(series, "mooring_agent_sessions_total") >= 1
        assert value(series, "mooring_agent_update_state", state="idle") in (0, 1)
        assert value(series, "process_open_fds") > 3
    finally:
        await process.stop()


def test_the_page_needs_no_library(repository: Path) -> None:
    code = (
        "import sys, agent.metrics.server, agent.metrics.process; "
        "print([n for n in ('prometheus_client', 'numpy', 'aiohttp', 'onnxruntime') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository, timeout=60,
        env=os.environ,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
