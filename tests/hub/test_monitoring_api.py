"""The routes of monitoring, through the real application."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from cloud_hub.api import alerts, exports, monitoring
from cloud_hub.api.app import application
from cloud_hub.api.auth import add_token
from cloud_hub.blobs import Blobs
from cloud_hub.config import HubConfig
from cloud_hub.events import Events
from cloud_hub.monitoring.alert_book import Alert
from cloud_hub.monitoring.looks import LookSummary
from cloud_hub.monitoring.reports import DriftReport
from cloud_hub.monitoring.samples import Samples
from cloud_hub.rooms import Rooms
from cloud_hub.store.engine import Store
from support.clock import SetClock
from support.fleets import add_device
from support.monitoring import LOOK_S, Monitored, build_module, make_sample, make_window

TOKEN = "mho_a-token-for-tests"
RANDOM = np.random.default_rng(31)
Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def client(store: Store, blobs: Blobs, events: Events, clock: SetClock) -> AsyncIterator[Client]:
    """A hub where edge-a has drifted in its second feature, and edge-b has not."""
    hub = Monitored(store, blobs, events, clock)
    built = await build_module(store, blobs, RANDOM.normal(size=(2000, 3)))
    for look in range(6):
        for device, shift in (("edge-a", 1.0), ("edge-b", 0.0)):
            rows = RANDOM.normal(size=(100, 3)) + np.array([0.0, shift, 0.0])
            await hub.send(device, make_window(built, rows, clock()))
            await hub.send(device, make_sample(built, f"{device}-{look}", clock(), rows[0]))
        await hub.alerts.run_due()
        clock.advance(LOOK_S)
    samples = Samples(store)
    rooms = cast(
        Rooms, SimpleNamespace(config=HubConfig(), store=store, clock=clock, alerts=hub.alerts, samples=samples)
    )
    for device in ("edge-a", "edge-b"):
        await add_device(rooms, device, {})
    await add_token(store, clock, "alice", TOKEN)
    server = TestServer(application(rooms, (*monitoring.ROUTES, *alerts.ROUTES, *exports.ROUTES)))
    async with TestClient(server, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client


async def answer(client: Client, path: str, status: int = 200) -> bytes:
    response = await client.get(f"/api/v1{path}")
    body = await response.read()
    assert response.status == status, body
    return body


async def test_drift_of_a_device_tells_the_feature_that_moved(client: Client) -> None:
    body = await answer(client, "/drift?module=digits&version=1&device=edge-a")
    (report,) = msgspec.json.decode(body, type=list[DriftReport])
    assert report.alarm
    assert report.features[0].name == "x[1]"
    assert sum(report.features[0].current) == report.features[0].rows
    assert len(report.features[0].cells) == len(report.features[0].current) == len(report.features[0].reference)


async def test_drift_of_a_calm_device_alarms_nobody(client: Client) -> None:
    (report,) = msgspec.json.decode(await answer(client, "/drift?module=digits&device=edge-b"), type=list[DriftReport])
    assert (report.alarm, report.looks, report.rows) == (False, 6, 600)


async def test_an_infinite_input_has_no_mean_and_breaks_nothing(
    store: Store, blobs: Blobs, events: Events, clock: SetClock
) -> None:
    """A window's moments are infinite then: they are cut before they are stored, and null is said instead."""
    hub = Monitored(store, blobs, events, clock)
    built = await build_module(store, blobs, RANDOM.normal(size=(2000, 3)))
    for _ in range(3):
        rows = RANDOM.normal(size=(50, 3))
        rows[0, 1] = np.inf
        window = make_window(built, rows, clock())
        assert np.isinf(np.frombuffer(window.moments, "<f4")).any()
        await hub.send("edge-a", window)
        await hub.alerts.run_due()
        clock.advance(LOOK_S)
    (report,) = await hub.reports.drift_of("digits", 1, "edge-a")
    shifts = {feature.name: feature.mean_shift for feature in report.features if feature.role == "input"}
    assert shifts["x[1]"] is None
    assert abs(shifts["x[0]"] or 9.0) < 1.0
    assert (report.rows, report.looks) == (150, 3)
    said = msgspec.json.decode(msgspec.json.encode(report))
    assert [feature["mean_shift"] for feature in said["features"] if feature["name"] == "x[1]"] == [None]


async def test_alerts_are_listed_by_state(client: Client) -> None:
    alerts = msgspec.json.decode(await answer(client, "/alerts?state=open"), type=list[Alert])
    assert {(alert.kind, alert.scope) for alert in alerts if alert.kind == "drift"} == {("drift", "device:edge-a")}
    assert await answer(client, "/alerts?state=resolved") == b"[]"


async def test_samples_come_in_pages_and_as_json_lines(client: Client) -> None:
    page = msgspec.json.decode(await answer(client, "/samples?device=edge-b&limit=4"))
    rest = msgspec.json.decode(await answer(client, f"/samples?device=edge-b&limit=4&after={page[-1]['id']}"))
    assert [row["prediction_id"] for row in page + rest] == [f"edge-b-{look}" for look in range(6)]
    lines = (await answer(client, "/samples/export?device=edge-b")).splitlines()
    assert [msgspec.json.decode(line) for line in lines] == page + rest


async def test_an_export_of_nothing_is_empty(client: Client) -> None:
    assert await answer(client, "/samples/export?stratum=first") == b""


@pytest.mark.parametrize("path", ["/samples", "/samples/export", "/windows", "/windows/export"])
async def test_a_device_with_a_slip_in_its_name_is_refused_and_not_shown_as_empty(client: Client, path: str) -> None:
    assert b"no device edge-z" in await answer(client, f"{path}?device=edge-z", 404)


async def test_windows_are_summed_per_look(client: Client) -> None:
    looks = msgspec.json.decode(await answer(client, "/windows?module=digits"), type=list[LookSummary])
    assert [(look.device, look.rows) for look in looks] == [("*", 200)] * 6


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/drift?module=faces", 404, "no module faces"),
        ("/drift?module=digits&version=9", 404, "no module digits version 9"),
        ("/drift", 400, "module"),
        ("/alerts?state=loud", 400, "state"),
        ("/samples?limit=many", 400, "limit"),
        ("/samples/export?module=faces", 404, "no module faces"),
    ],
)
async def test_a_question_that_cannot_be_answered_says_why(client: Client, path: str, status: int, words: str) -> None:
    error: dict[str, Any] = msgspec.json.decode(await answer(client, path, status))["error"]
    assert words in error["message"]
