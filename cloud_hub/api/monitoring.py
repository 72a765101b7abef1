"""Routes of monitoring: drift as it stands, alerts, samples, and the counts behind them."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloud_hub.api.route import Call, Route
from cloud_hub.bounds import AnyVersion, Limit, RowId
from cloud_hub.monitoring.alert_book import Alert
from cloud_hub.monitoring.looks import LookSummary
from cloud_hub.monitoring.reports import DriftReport
from cloud_hub.monitoring.samples import SampleQuery, SampleRow
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms


class DriftQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Without a version the newest that has been running; without a device the fleet."""

    module: str
    version: AnyVersion = 0
    device: str = ""


class AlertQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Newest first; `before` is the id of the last alert of the page before."""

    state: Literal["", "open", "resolved"] = ""
    module: str = ""
    before: RowId = 0
    limit: Limit = 100


class WindowQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Empty texts and zeros mean any; without a device the fleet (each of your devices
    where your scope is not everything). `since` is seconds since the epoch.
    """

    module: str = ""
    version: AnyVersion = 0
    device: str = ""
    since: float = 0.0
    limit: Limit = 100


async def show_drift(rooms: Rooms, call: Call) -> list[DriftReport]:
    query: DriftQuery = call.query
    await call.access.require_one_device(query.device)
    if query.device:
        await call.access.require_known_device(query.device)  # an id with a slip in it must not look calm
    return await rooms.alerts.reports.drift_of(query.module, query.version, query.device)


async def list_alerts(rooms: Rooms, call: Call) -> list[Alert]:
    query: AlertQuery = call.query
    mine = await call.access.devices()
    found = await rooms.alerts.list(query.state, query.module, query.before, query.limit, mine)
    return [await call.access.shown_alert(alert) for alert in found]


async def list_samples(rooms: Rooms, call: Call) -> list[SampleRow]:
    return await rooms.samples.list(call.query, await call.access.devices())


async def list_windows(rooms: Rooms, call: Call) -> list[LookSummary]:
    query: WindowQuery = call.query
    mine = await call.access.devices()
    return await rooms.alerts.reports.looks(query.module, query.version, query.device, query.since, query.limit, mine)


ROUTES = (
    Route(
        "GET",
        "/drift",
        show_drift,
        "Evidence per feature that a module's inputs or answers have changed",
        returns=list[DriftReport],
        query=DriftQuery,
        role=Role.VIEWER,
    ),
    Route(
        "GET",
        "/alerts",
        list_alerts,
        "Alerts with their evidence",
        returns=list[Alert],
        query=AlertQuery,
        role=Role.VIEWER,
    ),
    Route(
        "GET",
        "/samples",
        list_samples,
        "Sampled predictions",
        returns=list[SampleRow],
        query=SampleQuery,
        role=Role.VIEWER,
    ),
    Route(
        "GET",
        "/windows",
        list_windows,
        "Counts of predictions, errors and latency per look",
        returns=list[LookSummary],
        query=WindowQuery,
        role=Role.VIEWER,
    ),
)
