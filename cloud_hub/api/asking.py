"""Routes of what is asked of devices: samples of their rings, sampling policies, and the large tensors of samples."""

from __future__ import annotations

from aiohttp import web

from cloud_hub.api.pages import Page, WholeQuery, page_of_all
from cloud_hub.api.route import Call, Route
from cloud_hub.asking.book import AskedCommand
from cloud_hub.asking.commands import NewSampleRequest
from cloud_hub.asking.policies import DevicePolicy, PolicyChange
from cloud_hub.errors import NotFound
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms

PIECE_BYTES = 256 * 1024


class PolicyQuery(WholeQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`target` is a query for devices; empty is all that hold the module."""

    module: str
    target: str = ""


async def ask_samples(rooms: Rooms, call: Call) -> AskedCommand:
    new: NewSampleRequest = call.body
    await call.access.require_known_device(new.device)
    return await rooms.asking.commands.ask_samples(new, call.actor)


async def show_policies(rooms: Rooms, call: Call) -> Page[DevicePolicy]:
    query: PolicyQuery = call.query
    found = await rooms.asking.policies.show(query.module, query.target, await call.access.devices())
    return page_of_all(found, query, lambda one: (one.device, one.version, one.profile))


async def change_policies(rooms: Rooms, call: Call) -> list[DevicePolicy]:
    return await rooms.asking.policies.change(call.body, call.actor, await call.access.devices())


async def download_sample_blob(rooms: Rooms, call: Call) -> web.StreamResponse:
    """Only through a sample that names it, which says whose it is."""
    sample, device = await rooms.samples.sample(call.int("sample"))
    await call.access.require_device(device)
    sha256 = call.path["sha256"]
    if not any(one.sha256 == sha256 for one in sample.withheld if one.sha256):
        raise NotFound("blob-not-found", f"sample {call.path['sample']} has no tensor {sha256[:64]}")
    size = await rooms.asking.blobs.size(sha256)
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
    response = web.StreamResponse(headers=headers)
    await response.prepare(call.request)
    async for piece in rooms.asking.blobs.pages(sha256, PIECE_BYTES):
        await response.write(piece)
    await response.write_eof()
    return response


ROUTES = (
    Route(
        "POST",
        "/samples/requests",
        ask_samples,
        "Ask a device for predictions that it has kept",
        returns=AskedCommand,
        body=NewSampleRequest,
        status=201,
        role=Role.OPERATOR,
    ),
    Route(
        "GET",
        "/sampling",
        show_policies,
        "The sampling policy that counts on each device",
        returns=list[DevicePolicy],
        query=PolicyQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route(
        "POST",
        "/sampling",
        change_policies,
        "Change the sampling policy of devices, without a new version of the module",
        returns=list[DevicePolicy],
        body=PolicyChange,
        role=Role.OPERATOR,
    ),
    Route(
        "GET",
        "/samples/{sample}/blobs/{sha256}",
        download_sample_blob,
        "A large tensor of a sample, as raw little-endian bytes",
        role=Role.VIEWER,
        media="application/octet-stream",
    ),
)
