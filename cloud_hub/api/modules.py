"""Routes of modules: build, sign, list, and everything that offline verification needs."""

from __future__ import annotations

import msgspec
from aiohttp import web

from cloud_hub.api.pages import Cursor, Page, cut, make_cursor, read_cursor
from cloud_hub.api.route import Call, Route
from cloud_hub.bounds import Limit
from cloud_hub.building.request import BuildRequest
from cloud_hub.packaging import ModuleRelease
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms


class ModuleQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which modules to list: of one name, at most `limit`, newest versions first."""

    name: str = ""
    limit: Limit = 200
    after: Cursor = ""


async def build_module(rooms: Rooms, call: Call) -> ModuleRelease:
    request: BuildRequest = call.body
    return await rooms.packaging.build(request, call.actor)


async def list_modules(rooms: Rooms, call: Call) -> Page[ModuleRelease]:
    query: ModuleQuery = call.query
    after = read_cursor(query.after, str, int, str) if query.after else None
    found = await rooms.packaging.list(query.name, query.limit + 1, after)
    return cut(found, query.limit, lambda one: make_cursor(one.name, one.version, one.profile))


async def show_module(rooms: Rooms, call: Call) -> ModuleRelease:
    return await rooms.packaging.get(*_key(call))


async def module_manifest(rooms: Rooms, call: Call) -> web.Response:
    body = await rooms.packaging.manifest(*_key(call))
    return web.Response(body=body, content_type="application/json")


async def sign_module(rooms: Rooms, call: Call) -> ModuleRelease:
    await rooms.packaging.get(*_key(call))
    await rooms.image.sign_module(*_key(call), call.actor)
    return await rooms.packaging.get(*_key(call))


async def image_metadata(rooms: Rooms, call: Call) -> web.Response:
    body = await rooms.image.metadata(call.path["filename"])
    return web.Response(body=body, content_type="application/json")


def _key(call: Call) -> tuple[str, int, str]:
    return call.path["name"], call.int("version"), call.path["profile"]


_MODULE = "/modules/{name}/{version}/{profile}"
ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/modules",
        build_module,
        "Build a module from a model version for a device profile",
        returns=ModuleRelease,
        body=BuildRequest,
        status=201,
        role=Role.PUBLISHER,
        slow=True,
    ),
    Route(
        "GET",
        "/modules",
        list_modules,
        "List modules",
        returns=list[ModuleRelease],
        query=ModuleQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route("GET", _MODULE, show_module, "Show one module", returns=ModuleRelease, role=Role.VIEWER),
    Route(
        "GET",
        f"{_MODULE}/manifest",
        module_manifest,
        "Download a module's manifest, as it is signed",
        media="application/json",
        role=Role.VIEWER,
    ),
    Route(
        "POST",
        f"{_MODULE}/sign",
        sign_module,
        "Sign a module into the image repository, or give it a new release counter",
        returns=ModuleRelease,
        role=Role.PUBLISHER,
    ),
    Route(
        "GET",
        "/trust/image/{filename}",
        image_metadata,
        "Download a file of the image repository's TUF metadata",
        public=True,
        media="application/json",
    ),
)
