"""GET /metrics of a real hub: who may read it, what it says, and that asking costs little."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, insert

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.initialise import free_ports, initialise
from cloud_hub.metrics.settings import MetricsSettings
from cloud_hub.operator.client import HubClient
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms
from cloud_hub.service import open_hub
from cloud_hub.store.tables import devices
from modules.messages import Batch
from support.hubs import running_hub

ODD = ("PROPFIND", "LOCK", "MKCOL")
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Series:
    """By Prometheus' own parser: every sample by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float:
    return series[name, frozenset(labels.items())]


async def scrape(hub: HubClient, token: str | None = None) -> tuple[int, str]:
    context = ssl.create_default_context(cafile=hub.context.ca)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{hub.context.url}/metrics", ssl=context, headers=headers) as response,
    ):
        return response.status, await response.text()


async def test_a_hub_tells_its_state_to_those_who_may_see_all_of_it(tmp_path: Path) -> None:
    async with running_hub(tmp_path / "hub") as hub:
        assert (await scrape(hub))[0] == 401
        narrow = (await hub.create_api_token("narrow", Role.VIEWER, "site=lab")).token
        assert (await scrape(hub, narrow))[0] == 403
        viewer = (await hub.create_api_token("prometheus", Role.VIEWER)).token
        status, text = await scrape(hub, viewer)
        assert status == 200, text
        series = parsed(text)
        assert value(series, "mooring_hub_broker_connected") == 1
        assert value(series, "mooring_hub_devices", state="reporting") == 0
        assert value(series, "mooring_hub_events_total", kind="api-token.created") == 2
        created = {"method": "POST", "route": "/api/v1/api-tokens"}
        assert value(series, "mooring_hub_http_requests_total", **created, status="201") == 2
        assert value(series, "mooring_hub_http_request_seconds_count", **created) == 2
        assert value(series, "mooring_hub_http_requests_total", method="GET", route="/metrics", status="403") == 1
        assert value(series, "mooring_hub_database_bytes") > 10_000
        for file in ("server.crt", "server-ca.crt", "device-ca.crt", "hub-client.crt", "crl.pem"):
            assert value(series, "mooring_hub_certificate_expires_timestamp_seconds", file=file) > 1.7e9
        root = {"repository": "director", "role": "root"}
        assert value(series, "mooring_hub_metadata_expires_timestamp_seconds", **root) > 1.7e9
        assert value(series, "process_resident_memory_bytes") > 1e6


async def test_whoever_asks_for_odd_things_makes_no_series(tmp_path: Path) -> None:
    async with running_hub(tmp_path / "hub", metrics=MetricsSettings(open=True)) as hub:
        context = ssl.create_default_context(cafile=hub.context.ca)
        async with aiohttp.ClientSession() as session:
            before = 0
            await scrape(hub)  # whose own series stands in the next
            for number in range(30):
                for method, path in (("GET", f"/odd-{number}"), (ODD[number % 3], "/api/v1/health")):
                    async with session.request(method, f"{hub.context.url}{path}", ssl=context) as response:
                        assert response.status in (404, 405)
                if number == 2:
                    before = len(parsed((await scrape(hub))[1]))
        assert len(parsed((await scrape(hub))[1])) == before


@asynccontextmanager
async def rooms_of(folder: Path, settings: MetricsSettings) -> AsyncIterator[Rooms]:
    api, mqtt = free_ports(2)
    config = msgspec.structs.replace(HubConfig(dev=True, api_port=api, mqtt_port=mqtt), metrics=settings)
    paths = await initialise(folder, config)
    async with open_hub(HubPaths(paths.root)) as rooms:
        yield rooms


async def test_however_often_it_is_asked_the_database_is_looked_into_once(tmp_path: Path) -> None:
    async with rooms_of(tmp_path / "hub", MetricsSettings(refresh_s=3600.0)) as rooms:
        asked: list[str] = []
        engine = rooms.store._readers.sync_engine
        event.listen(engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
        await rooms.metrics.text()
        first = len(asked)
        for _ in range(50):
            await rooms.metrics.text()
        assert 0 < first < 40
        assert len(asked) == first


async def test_devices_are_counted_by_how_they_are_seen(tmp_path: Path) -> None:
    async with rooms_of(tmp_path / "hub", MetricsSettings(refresh_s=0.001)) as rooms:
        now = rooms.clock()
        rows = [("a", now, None), ("b", now - 1e6, None), ("c", None, None), ("d", now, now), ("e", now - 1, None)]
        async with rooms.store.write() as connection:
            for name, report_at, retired_at in rows:
                values = {
                    "id": name, "profile": "p", "tags": {}, "certificate": "", "created_at": now, "report_counter": 0,
                    "director_version": 0, "report_at": report_at, "retired_at": retired_at,
                }  # fmt: skip
                await connection.execute(insert(devices).values(values))
        series = parsed((await rooms.metrics.text()).decode())
        states = ("reporting", "silent", "never", "retired")
        assert [value(series, "mooring_hub_devices", state=state) for state in states] == [2, 1, 1, 1]


async def test_what_devices_send_is_counted_once_and_what_cannot_be_used_too(tmp_path: Path) -> None:
    async with rooms_of(tmp_path / "hub", MetricsSettings()) as rooms:
        values = {
            "id": "edge-1", "profile": "p", "tags": {}, "certificate": "", "created_at": 0.0, "report_counter": 0,
            "director_version": 0,
        }  # fmt: skip
        async with rooms.store.write() as connection:
            await connection.execute(insert(devices).values(values))
        batch = Batch("window", "epoch", 0, ((1, b"no window"), (2, b"none either")))
        for _ in range(2):
            await rooms.ingest.commit("edge-1", batch)
        series = parsed((await rooms.metrics.text()).decode())
        assert value(series, "mooring_hub_entries_total", stream="window", outcome="refused") == 2
        assert value(series, "mooring_hub_entry_bytes_total", stream="window") == len(b"no windownone either")


def test_a_refresh_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="refresh_s"):
        MetricsSettings(refresh_s=0)
