"""Routes of webhooks: where events go, what became of them, and those that could not be delivered.

For administrators only: a URL is often what lets one in, and secrets are made here.
"""

from __future__ import annotations

import msgspec

from cloud_hub.api.pages import Page, WholeQuery, cut, page_of_all
from cloud_hub.api.route import Call, Route
from cloud_hub.bounds import Limit, RowId
from cloud_hub.outward.book import Delivery, Webhook
from cloud_hub.outward.webhooks import Asked, Counted, Detail, NewSecret, NewWebhook, Tried, WithSecret
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms


class Resumed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """With `skip` it goes on behind the newest event, and does not get those that waited."""

    skip: bool = False


class Again(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The number of a dead delivery, or 0 for all of them."""

    delivery: RowId = 0


class DeadQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Newest first; `before` is the id of the last delivery of the page before."""

    before: RowId = 0
    limit: Limit = 100


async def create_webhook(rooms: Rooms, call: Call) -> WithSecret:
    body: NewWebhook = call.body
    return await rooms.outward.webhooks.create(body, call.actor)


async def list_webhooks(rooms: Rooms, call: Call) -> Page[Counted]:
    query: WholeQuery = call.query
    found = await rooms.outward.webhooks.overview()
    return page_of_all(found, query, lambda one: (one.webhook.created_at, one.webhook.id))


async def show_webhook(rooms: Rooms, call: Call) -> Detail:
    return await rooms.outward.webhooks.show(call.path["id"])


async def delete_webhook(rooms: Rooms, call: Call) -> None:
    await rooms.outward.webhooks.delete(call.path["id"], call.actor)


async def pause_webhook(rooms: Rooms, call: Call) -> Webhook:
    return await rooms.outward.webhooks.pause(call.path["id"], call.actor)


async def resume_webhook(rooms: Rooms, call: Call) -> Webhook:
    body: Resumed = call.body
    return await rooms.outward.webhooks.resume(call.path["id"], call.actor, body.skip)


async def rotate_secret(rooms: Rooms, call: Call) -> WithSecret:
    body: NewSecret = call.body
    return await rooms.outward.webhooks.rotate(call.path["id"], body, call.actor)


async def ping_webhook(rooms: Rooms, call: Call) -> Tried:
    return await rooms.outward.webhooks.ping(call.path["id"], call.actor, rooms.outward.sender)


async def list_dead(rooms: Rooms, call: Call) -> Page[Delivery]:
    query: DeadQuery = call.query
    found = await rooms.outward.webhooks.dead(call.path["id"], query.before, query.limit + 1)
    return cut(found, query.limit, lambda delivery: delivery.id, parameter="before")


async def redeliver(rooms: Rooms, call: Call) -> Asked:
    body: Again = call.body
    return await rooms.outward.webhooks.redeliver(call.path["id"], body.delivery or None, call.actor)


_ONE = "/webhooks/{id}"
ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/webhooks",
        list_webhooks,
        "List webhooks",
        list[Counted],
        query=WholeQuery,
        role=Role.ADMIN,
        paged=True,
    ),
    Route(
        "POST",
        "/webhooks",
        create_webhook,
        "Send events to a URL; the only answer with the secret",
        WithSecret,
        body=NewWebhook,
        status=201,
        role=Role.ADMIN,
        whole=True,
    ),
    Route("GET", _ONE, show_webhook, "One webhook and its last deliveries", Detail, role=Role.ADMIN),
    Route("DELETE", _ONE, delete_webhook, "Remove a webhook and its deliveries", role=Role.ADMIN),
    Route("POST", f"{_ONE}/pause", pause_webhook, "Let events wait from now on", Webhook, role=Role.ADMIN),
    Route(
        "POST",
        f"{_ONE}/resume",
        resume_webhook,
        "Send again after a pause, or after it was disabled",
        Webhook,
        body=Resumed,
        role=Role.ADMIN,
    ),
    Route(
        "POST",
        f"{_ONE}/secret",
        rotate_secret,
        "Give it a new secret; the old one signs too for a while",
        WithSecret,
        body=NewSecret,
        role=Role.ADMIN,
    ),
    Route("POST", f"{_ONE}/ping", ping_webhook, "Send an event of its own at once", Tried, role=Role.ADMIN),
    Route(
        "GET",
        f"{_ONE}/dead",
        list_dead,
        "Deliveries that are not tried any more",
        list[Delivery],
        query=DeadQuery,
        role=Role.ADMIN,
        paged=True,
    ),
    Route("POST", f"{_ONE}/redeliver", redeliver, "Send dead deliveries once more", Asked, body=Again, role=Role.ADMIN),
)
