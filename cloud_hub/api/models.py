"""Models over HTTP: register from uploads, list, show, download, delete. Parses and calls `registry`."""

from __future__ import annotations

from urllib.parse import quote

import msgspec
from aiohttp import web

from cloud_hub.api.blobs import send_file
from cloud_hub.api.pages import Page, cut
from cloud_hub.api.route import Call, Route
from cloud_hub.errors import BadRequest
from cloud_hub.registry import ModelVersion, NewModel
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms


class FileReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An uploaded file under its path in the model."""

    path: str
    sha256: str


class RegisterModel(NewModel, frozen=True, kw_only=True):
    """A new model version: what is said about it, and its files, uploaded before."""

    files: tuple[FileReference, ...]


class ModelQuery(msgspec.Struct, frozen=True):
    """`tag` is NAME=VALUE and may be given more than once; `after` is NAME:VERSION of the last one seen."""

    name: str = ""
    tag: tuple[str, ...] = ()
    limit: int = 100
    after: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= 500:
            raise ValueError(f"limit: expected 1 to 500, got {self.limit}")


async def register(rooms: Rooms, call: Call) -> ModelVersion:
    body: RegisterModel = call.body
    paths = [file.path for file in body.files]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise BadRequest("files-invalid", f"files: expected each path once, got {twice[:200]!r} more than once")
    files = {file.path: (file.sha256, await rooms.blobs.size(file.sha256)) for file in body.files}
    said = {name: getattr(body, name) for name in NewModel.__struct_fields__}
    return await rooms.registry.register(NewModel(**said), files, call.actor)


async def list_models(rooms: Rooms, call: Call) -> Page[ModelVersion]:
    query: ModelQuery = call.query
    tags = dict(_tag(text) for text in query.tag)
    found = await rooms.registry.list(query.name, tags, query.limit + 1, query.after)
    return cut(found, query.limit, lambda model: f"{model.name}:{model.version}")


async def get(rooms: Rooms, call: Call) -> ModelVersion:
    return await rooms.registry.get(call.path["name"], call.int("version"))


async def download(rooms: Rooms, call: Call) -> web.StreamResponse:
    model = await rooms.registry.get(call.path["name"], call.int("version"))
    file = model.file(call.path["path"])
    name = quote(file.path.rpartition("/")[2])
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
    }
    return await send_file(rooms, call, file.sha256, headers)


async def delete(rooms: Rooms, call: Call) -> None:
    await rooms.registry.delete(call.path["name"], call.int("version"), call.actor)


def _tag(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found:
        raise BadRequest("query-invalid", f"tag: expected NAME=VALUE, got {text[:80]!r}", field="tag")
    return name, value


_ONE = "/models/{name}/{version}"
ROUTES = (
    Route(
        "POST",
        "/models",
        register,
        "Register a model version",
        ModelVersion,
        body=RegisterModel,
        status=201,
        role=Role.PUBLISHER,
    ),
    Route(
        "GET",
        "/models",
        list_models,
        "List model versions",
        list[ModelVersion],
        query=ModelQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route("GET", _ONE, get, "Show a model version", ModelVersion, role=Role.VIEWER),
    Route(
        "GET",
        _ONE + "/files/{path:.+}",
        download,
        "Download a file of a model",
        media="application/octet-stream",
        role=Role.VIEWER,
    ),
    Route("DELETE", _ONE, delete, "Delete a model version that nothing uses", role=Role.PUBLISHER),
)
