"""Routes of what is carried between hubs: packs, merges, receipts, and modules that another hub has released."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cloud_hub.api.answers import Pieces
from cloud_hub.api.pages import Page, PageQuery, WholeQuery, cut, page_of_all
from cloud_hub.api.route import Call, Route
from cloud_hub.packaging import ModuleRelease
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms
from cloud_hub.sites.book import Site
from cloud_hub.sites.merging import Merged
from cloud_hub.sites.receipts import MAX_CHARS, Receipt
from cloud_hub.sites.registry import CarriedDevice, NewSite
from cloud_hub.sites.seal import fingerprint

PACK = "application/octet-stream"
_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class SiteKey(msgspec.Struct, frozen=True):
    """This hub's public key for packs and receipts (PEM, Ed25519), and its SHA-256."""

    public_key: str
    fingerprint: str


class MergeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pack that has been uploaded, by its digest.

    With `skip_unknown` what belongs to modules that this hub does not have is left out for good; else it is held back.
    """

    sha256: _Digest
    skip_unknown: bool = False


class ReceiptText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A receipt, as a merge gave it."""

    receipt: Annotated[str, msgspec.Meta(max_length=MAX_CHARS)]


class ImportModule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A module of another hub, by the digest of its manifest; manifest and files have been uploaded."""

    manifest_sha256: _Digest
    publisher: Annotated[str, msgspec.Meta(max_length=63)] = ""


async def show_key(rooms: Rooms, call: Call) -> SiteKey:
    key = rooms.sites.seal.public_key
    return SiteKey(key, fingerprint(key))


async def list_sites(rooms: Rooms, call: Call) -> Page[Site]:
    call.access.require_everything("the list of sites")
    return page_of_all(await rooms.sites.registry.list(), call.query, lambda site: (site.name,))


async def show_site(rooms: Rooms, call: Call) -> Site:
    call.access.require_everything("a site")
    return await rooms.sites.registry.get(call.path["name"])


async def add_site(rooms: Rooms, call: Call) -> Site:
    return await rooms.sites.registry.add(call.body, call.actor)


async def remove_site(rooms: Rooms, call: Call) -> None:
    await rooms.sites.registry.remove(call.path["name"], call.actor)


async def list_site_devices(rooms: Rooms, call: Call) -> Page[CarriedDevice]:
    call.access.require_everything("the devices of a site")
    query: PageQuery = call.query
    found = await rooms.sites.registry.devices(call.path["name"], query.limit + 1, query.after)
    return cut(found, query.limit, lambda device: device.id)


async def pack_site(rooms: Rooms, call: Call) -> Pieces:
    call.access.require_everything("a pack of all devices")
    return Pieces(PACK, rooms.sites.packing.pack(call.actor))


async def merge_pack(rooms: Rooms, call: Call) -> Merged:
    call.access.require_everything("a merge")
    body: MergeRequest = call.body
    return await rooms.sites.merging.merge(call.path["name"], body.sha256, call.actor, body.skip_unknown)


async def take_receipt(rooms: Rooms, call: Call) -> Receipt:
    call.access.require_everything("a receipt")
    body: ReceiptText = call.body
    return await rooms.sites.receipts.take(body.receipt, await rooms.sites.packing.epoch(), call.actor)


async def import_module(rooms: Rooms, call: Call) -> ModuleRelease:
    body: ImportModule = call.body
    return await rooms.packaging.take_in(body.manifest_sha256, body.publisher, call.actor)


_SITE = "/sites/{name}"
ROUTES: tuple[Route, ...] = (
    Route("GET", "/site/key", show_key, "Show this hub's key for packs", returns=SiteKey, role=Role.VIEWER),
    Route(
        "GET",
        "/site/pack",
        pack_site,
        "Pack what devices have sent since the last receipt",
        media=PACK,
        role=Role.OPERATOR,
    ),
    Route(
        "POST",
        "/site/receipts",
        take_receipt,
        "Take another hub's receipt for a pack",
        returns=Receipt,
        body=ReceiptText,
        role=Role.OPERATOR,
    ),
    Route(
        "GET",
        "/sites",
        list_sites,
        "List hubs whose packs or receipts count here",
        returns=list[Site],
        query=WholeQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route("POST", "/sites", add_site, "Add a hub by its key", returns=Site, body=NewSite, status=201, role=Role.ADMIN),
    Route("GET", _SITE, show_site, "Show a hub", returns=Site, role=Role.VIEWER),
    Route("DELETE", _SITE, remove_site, "Forget a hub; what was merged stays", role=Role.ADMIN),
    Route(
        "GET",
        f"{_SITE}/devices",
        list_site_devices,
        "List a site's devices as its newest pack has them",
        returns=list[CarriedDevice],
        query=PageQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route(
        "POST",
        f"{_SITE}/merge",
        merge_pack,
        "Merge a site's pack, each entry once",
        returns=Merged,
        body=MergeRequest,
        role=Role.OPERATOR,
    ),
    Route(
        "POST",
        "/modules/import",
        import_module,
        "Take in a module that another hub has built, to be signed here",
        returns=ModuleRelease,
        body=ImportModule,
        status=201,
        role=Role.PUBLISHER,
    ),
)
