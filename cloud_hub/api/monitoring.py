"""Routes of monitoring: drift as it stands, samples, and the counts behind them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cloud_hub.api.pages import Cursor, Page, cut, make_cursor, read_cursor
from cloud_hub.api.route import Call, Route
from cloud_hub.bounds import AnyVersion, Limit
from cloud_hub.errors import BadRequest
from cloud_hub.monitoring.looks import LookSummary
from cloud_hub.monitoring.reference import TRAINING, parse
from cloud_hub.monitoring.reports import DriftReport
from cloud_hub.monitoring.samples import MAX_PAGE, SampleQuery, SampleRow
from cloud_hub.monitoring.scopes import is_group
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms


class DriftQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Without a version the newest that has been running; without a device or a group (KEY=VALUE) the fleet.
    `reference` is training, period:FROM..TO, version:N or fleet (all other devices); without it what is set.
    """

    module: str
    version: AnyVersion = 0
    device: str = ""
    group: Annotated[str, msgspec.Meta(max_length=264)] = ""
    reference: Annotated[str, msgspec.Meta(max_length=200)] = ""


class WindowQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Empty texts and zeros mean any; without a device the fleet (each of your devices
    where your scope is not everything). `since` is seconds since the epoch.
    """

    module: str = ""
    version: AnyVersion = 0
    device: str = ""
    since: float = 0.0
    limit: Limit = 100
    after: Cursor = ""


async def show_drift(rooms: Rooms, call: Call) -> list[DriftReport]:
    query: DriftQuery = call.query
    await call.access.require_one_device(query.device)
    if query.device:
        await call.access.require_known_device(query.device)  # an id with a slip in it must not look calm
    if query.group and (query.device or not is_group(query.group)):
        raise BadRequest("group-invalid", f"group: expected KEY=VALUE and no device, got {query.group[:80]!r}")
    reference = parse(query.reference) if query.reference else None
    if not call.access.everything:
        # Every other reference counts the devices of others.
        reference = TRAINING
    return await rooms.alerts.reports.drift_of(query.module, query.version, query.device or query.group, reference)


async def list_samples(rooms: Rooms, call: Call) -> Page[SampleRow]:
    query: SampleQuery = call.query
    if query.device:
        await call.access.require_known_device(query.device)
    limit = min(query.limit, MAX_PAGE)
    more = msgspec.structs.replace(query, limit=limit + 1)
    return cut(await rooms.samples.list(more, await call.access.devices()), limit, lambda row: row.id)


async def list_windows(rooms: Rooms, call: Call) -> Page[LookSummary]:
    query: WindowQuery = call.query
    if query.device and not is_group(query.device):
        await call.access.require_known_device(query.device)
    mine = await call.access.devices()
    after = read_cursor(query.after, float, str, str) if query.after else None
    found = await rooms.alerts.reports.looks(
        query.module, query.version, query.device, query.since, query.limit + 1, mine, after
    )
    return cut(found, query.limit, lambda look: make_cursor(look.start, look.device, look.manifest_sha256))


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
        "/samples",
        list_samples,
        "Sampled predictions",
        returns=list[SampleRow],
        query=SampleQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route(
        "GET",
        "/windows",
        list_windows,
        "Counts of predictions, errors and latency per look",
        returns=list[LookSummary],
        query=WindowQuery,
        role=Role.VIEWER,
        paged=True,
    ),
)
