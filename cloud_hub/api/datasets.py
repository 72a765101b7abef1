"""Routes of data sets: build, list, show, download, delete. Parses and calls `cloud_hub.datasets`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from cloud_hub.api.blobs import send_file
from cloud_hub.api.pages import Cursor, Page, cut, make_cursor, read_cursor
from cloud_hub.api.route import Call, Route
from cloud_hub.datasets.book import file_of
from cloud_hub.datasets.parquet import MEDIA
from cloud_hub.datasets.wishes import Dataset, NewDataset
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms


class DatasetQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which to list: of one name, at most `limit`, newest versions first."""

    name: str = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 100
    after: Cursor = ""


async def build_dataset(rooms: Rooms, call: Call) -> Dataset:
    return await rooms.datasets.book.build(call.body, call.actor, await call.access.devices())


async def list_datasets(rooms: Rooms, call: Call) -> Page[Dataset]:
    call.access.require_everything("the list of data sets")
    query: DatasetQuery = call.query
    after = read_cursor(query.after, str, int) if query.after else None
    found = await rooms.datasets.book.list(query.name, query.limit + 1, after)
    return cut(found, query.limit, lambda one: make_cursor(one.name, one.version))


async def show_dataset(rooms: Rooms, call: Call) -> Dataset:
    return await _dataset(rooms, call)


async def download_dataset(rooms: Rooms, call: Call) -> web.StreamResponse:
    file = file_of(await _dataset(rooms, call), call.path["path"])
    return await send_file(rooms, call, file.sha256, {"Content-Type": MEDIA})


async def delete_dataset(rooms: Rooms, call: Call) -> None:
    found = await _dataset(rooms, call)
    await rooms.datasets.book.delete(found.name, found.version, call.actor)


async def _dataset(rooms: Rooms, call: Call) -> Dataset:
    call.access.require_everything("a data set")  # it may hold rows of any device
    return await rooms.datasets.book.get(call.path["name"], call.int("version"))


_ONE = "/datasets/{name}/{version}"
ROUTES = (
    Route(
        "POST",
        "/datasets",
        build_dataset,
        "Build the next version of a data set from samples and labels",
        returns=Dataset,
        body=NewDataset,
        status=201,
        role=Role.PUBLISHER,
        slow=True,
    ),
    Route(
        "GET",
        "/datasets",
        list_datasets,
        "List data sets",
        returns=list[Dataset],
        query=DatasetQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route("GET", _ONE, show_dataset, "Show a data set", returns=Dataset, role=Role.VIEWER),
    Route(
        "GET",
        _ONE + "/files/{path:.+}",
        download_dataset,
        "Download a file of a data set",
        media=MEDIA,
        role=Role.VIEWER,
    ),
    Route("DELETE", _ONE, delete_dataset, "Delete a data set that no model names", role=Role.PUBLISHER),
)
