"""Routes that give samples and windows away whole: as lines of JSON, or as Parquet."""

from __future__ import annotations

from typing import Literal

from cloud_hub.api.answers import Pieces
from cloud_hub.api.route import Call, Route
from cloud_hub.datasets.counts import CountQuery
from cloud_hub.datasets.parquet import MEDIA
from cloud_hub.monitoring.samples import SampleQuery
from cloud_hub.monitoring.scopes import is_group
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms

LINES = "application/x-ndjson"


class SampleExport(SampleQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As for the list of samples. With `format` parquet a module must be named: its tensors are the columns."""

    format: Literal["ndjson", "parquet"] = "ndjson"


async def export_samples(rooms: Rooms, call: Call) -> Pieces:
    query: SampleExport = call.query
    if query.device:
        await call.access.require_known_device(query.device)
    mine = await call.access.devices()
    if query.format == "parquet":
        return Pieces(MEDIA, rooms.datasets.exports.samples(query, mine))
    return Pieces(LINES, rooms.samples.export(query, mine))


async def export_windows(rooms: Rooms, call: Call) -> Pieces:
    query: CountQuery = call.query
    if query.device and not is_group(query.device):
        await call.access.require_known_device(query.device)
    return Pieces(MEDIA, rooms.datasets.exports.windows(query, await call.access.devices()))


ROUTES = (
    Route(
        "GET",
        "/samples/export",
        export_samples,
        "All sampled predictions that match, one JSON object per line, or as one Parquet file",
        query=SampleExport,
        media=LINES,
        role=Role.VIEWER,
        slow=True,
    ),
    Route(
        "GET",
        "/windows/export",
        export_windows,
        "The counts of windows, merged per look, as one Parquet file",
        query=CountQuery,
        media=MEDIA,
        role=Role.VIEWER,
        slow=True,
    ),
)
