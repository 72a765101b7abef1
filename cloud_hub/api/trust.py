"""Routes of trust: how it stands, what waits for signatures, and metadata signed where the offline keys are."""

from __future__ import annotations

from typing import Literal

import msgspec
from aiohttp import web

from cloud_hub.api.pages import Page, WholeQuery, page_of_all
from cloud_hub.api.route import Call, Route
from cloud_hub.errors import NotFound
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms
from cloud_hub.trust.ceremony import Outcome, Pending
from cloud_hub.trust.standing import RoleState


class SignedMetadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A TUF metadata file as text, as python-tuf writes it."""

    metadata: str


class TrustStatus(msgspec.Struct, frozen=True):
    """Every role, and sentences about what ends soon or waits for signatures. `now` is the hub's clock."""

    now: float
    roles: list[RoleState]
    warnings: list[str]


async def trust_status(rooms: Rooms, call: Call) -> TrustStatus:
    del call
    now, roles, pending = rooms.clock(), await rooms.ceremony.states(), await rooms.ceremony.pending()
    warnings = [warning for state in roles if (warning := state.warning(now))]
    warnings += [f"{one.repository} {one.role} version {one.version} waits for signatures" for one in pending]
    return TrustStatus(now, roles, warnings)


async def trust_pending(rooms: Rooms, call: Call) -> Page[Pending]:
    query: WholeQuery = call.query
    found = await rooms.ceremony.pending()
    return page_of_all(found, query, lambda one: (one.repository, one.role, one.version))


async def put_publisher(rooms: Rooms, call: Call) -> Outcome:
    body: SignedMetadata = call.body
    return await rooms.ceremony.submit_publisher(call.path["publisher"], body.metadata, call.actor)


async def put_targets(rooms: Rooms, call: Call) -> Outcome:
    body: SignedMetadata = call.body
    return await rooms.ceremony.submit_targets(body.metadata, call.actor)


async def put_root(rooms: Rooms, call: Call) -> Outcome:
    body: SignedMetadata = call.body
    return await rooms.ceremony.submit_root(_repository(call), body.metadata, call.actor)


async def director_root(rooms: Rooms, call: Call) -> web.Response:
    body = await rooms.director.root_file(call.path["filename"])
    return web.Response(body=body, content_type="application/json")


def _repository(call: Call) -> Literal["image", "director"]:
    name = call.path["repository"]
    if name == "image":
        return "image"
    if name == "director":
        return "director"
    raise NotFound("repository-not-found", f"no repository {name[:40]!r}; there are image and director")


ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/trust/status",
        trust_status,
        "Show roles, keys, thresholds, versions and expiry of both repositories",
        returns=TrustStatus,
        role=Role.VIEWER,
    ),
    Route(
        "GET",
        "/trust/pending",
        trust_pending,
        "List metadata that waits for more signatures",
        returns=list[Pending],
        query=WholeQuery,
        paged=True,
        role=Role.VIEWER,
    ),
    Route(
        "PUT",
        "/trust/publishers/{publisher}",
        put_publisher,
        "Publish a publisher's signed list of modules, or add a signature to it",
        returns=Outcome,
        body=SignedMetadata,
        role=Role.PUBLISHER,
    ),
    Route(
        "PUT",
        "/trust/targets",
        put_targets,
        "Publish signed top-level targets: who publishes, with which keys",
        returns=Outcome,
        body=SignedMetadata,
        role=Role.ADMIN,
    ),
    Route(
        "PUT",
        "/trust/roots/{repository}",
        put_root,
        "Publish the next root of a repository, or add a signature to it",
        returns=Outcome,
        body=SignedMetadata,
        role=Role.ADMIN,
    ),
    Route(
        "GET",
        "/trust/director/{filename}",
        director_root,
        "Download a root of the director, such as 1.root.json",
        public=True,
        media="application/json",
    ),
)
