"""Routes of what devices are asked to do beside their desired state: ask, list, show, download, cancel."""

from __future__ import annotations

from typing import Final, Literal

from aiohttp import web

from cloud_hub.api.pages import Page, PageQuery, cut, make_cursor, read_cursor
from cloud_hub.api.route import Call, Route
from cloud_hub.asking.book import AskedCommand
from cloud_hub.asking.commands import CommandBatch
from cloud_hub.asking.results import brought
from cloud_hub.asking.wanted import MEDIA, NewCommand
from cloud_hub.errors import BadRequest
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms

_ENDINGS: Final = {"text/plain": "log", "application/json": "json"}


class CommandQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Newest first; empty texts mean any. `batch` are those that were asked together."""

    device: str = ""
    module: str = ""
    kind: Literal["", "samples", "logs", "restart", "diagnostics"] = ""
    state: Literal["", "pending", "done", "refused", "failed", "expired", "cancelled"] = ""
    batch: str = ""


async def ask_devices(rooms: Rooms, call: Call) -> CommandBatch:
    new: NewCommand = call.body
    if new.device:
        await call.access.require_known_device(new.device)
    return await rooms.asking.commands.ask(new, call.actor, call.principal.scope)


async def list_commands(rooms: Rooms, call: Call) -> Page[AskedCommand]:
    query: CommandQuery = call.query
    found = await rooms.asking.commands.listed(
        query.device,
        query.module,
        query.state,
        query.limit + 1,
        await call.access.devices(),
        kind=query.kind,
        batch=query.batch,
        after=_place(query.after),
    )
    return cut(found, query.limit, lambda one: make_cursor(repr(one.created_at), one.id))


async def show_command(rooms: Rooms, call: Call) -> AskedCommand:
    found = await rooms.asking.commands.get(call.path["id"])
    await call.access.require_device(found.device)
    return found


async def download_result(rooms: Rooms, call: Call) -> web.Response:
    """Unpacked, as a file: text of logs, JSON of diagnostics."""
    found = await show_command(rooms, call)
    data = await brought(found, rooms.asking.blobs)
    media = MEDIA.get(found.kind, "application/octet-stream")
    name = f"{found.device}-{found.module or found.kind}-{found.id}.{_ENDINGS.get(media, 'bin')}"
    headers = {
        "Content-Disposition": f'attachment; filename="{name}"',
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, max-age=3600",
    }
    charset = "utf-8" if media.startswith("text/") else None
    return web.Response(body=data, content_type=media, charset=charset, headers=headers)


async def cancel_command(rooms: Rooms, call: Call) -> AskedCommand:
    await show_command(rooms, call)
    return await rooms.asking.commands.cancel(call.path["id"], call.actor)


def _place(cursor: str) -> tuple[float, str] | None:
    if not cursor:
        return None
    at, id_ = read_cursor(cursor, str, str)
    try:
        return float(at), id_
    except ValueError as error:
        raise BadRequest("cursor-invalid", "after: expected the cursor of a page before", field="after") from error


_COMMAND: Final = "/commands/{id}"
ROUTES = (
    Route(
        "POST",
        "/commands",
        ask_devices,
        "Ask one device, or those that match, for logs, a restart or diagnostics",
        returns=CommandBatch,
        body=NewCommand,
        status=201,
        role=Role.OPERATOR,
    ),
    Route(
        "GET",
        "/commands",
        list_commands,
        "What devices were asked to do, and what became of it",
        returns=list[AskedCommand],
        query=CommandQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route(
        "GET",
        _COMMAND,
        show_command,
        "One command",
        returns=AskedCommand,
        role=Role.VIEWER,
    ),
    Route(
        "GET",
        f"{_COMMAND}/result",
        download_result,
        "What a command has brought: lines of a log as text, diagnostics as JSON",
        role=Role.OPERATOR,
        media="application/octet-stream",
    ),
    Route(
        "POST",
        f"{_COMMAND}/cancel",
        cancel_command,
        "Give up a command that the device has not answered",
        returns=AskedCommand,
        role=Role.OPERATOR,
    ),
)
