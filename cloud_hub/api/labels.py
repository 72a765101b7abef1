"""Routes of labels and of what they say: labels in and out, quality, and how good a module is asked to be."""

from __future__ import annotations

import msgspec

from cloud_hub.api.pages import Page, WholeQuery, cut, page_of_all
from cloud_hub.api.route import Call, Route
from cloud_hub.labels.book import Label
from cloud_hub.labels.bounds import Bound, BoundQuery, NewBound
from cloud_hub.labels.report import QualityQuery, QualityReport
from cloud_hub.labels.rows import LabelQuery, LabelsTaken, NewLabels
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms


class BoundsQuery(WholeQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of one module, or of all."""

    module: str = ""
    output: str = ""  # read by nobody; clients of before may send it


async def add_labels(rooms: Rooms, call: Call) -> LabelsTaken:
    body: NewLabels = call.body
    mine = await call.access.devices()
    return await rooms.labels.desk.take(body.labels, call.actor, body.dry_run, mine)


async def list_labels(rooms: Rooms, call: Call) -> Page[Label]:
    query: LabelQuery = call.query
    more = msgspec.structs.replace(query, limit=query.limit + 1)
    found = await rooms.labels.desk.page(more, await call.access.devices())
    return cut(found, query.limit, lambda label: label.id)


async def show_quality(rooms: Rooms, call: Call) -> list[QualityReport]:
    query: QualityQuery = call.query
    if query.device:
        await call.access.require_known_device(query.device)  # an id with a slip in it must not look like no labels
    return await rooms.labels.quality.reports(query, await call.access.devices())


async def list_bounds(rooms: Rooms, call: Call) -> Page[Bound]:
    query: BoundsQuery = call.query
    found = await rooms.labels.bounds.list(query.module)
    return page_of_all(found, query, lambda bound: (bound.module, bound.output))


async def set_bound(rooms: Rooms, call: Call) -> Bound:
    call.access.require_everything("a bound for a module")
    return await rooms.labels.bounds.set(call.body, call.actor)


async def remove_bound(rooms: Rooms, call: Call) -> None:
    call.access.require_everything("a bound for a module")
    query: BoundQuery = call.query
    await rooms.labels.bounds.remove(query.module, query.output, call.actor)


ROUTES = (
    Route(
        "POST",
        "/labels",
        add_labels,
        "Keep labels of predictions; sending the same again changes nothing",
        returns=LabelsTaken,
        body=NewLabels,
        role=Role.OPERATOR,
    ),
    Route(
        "GET",
        "/labels",
        list_labels,
        "Labels, in the order in which they came",
        returns=list[Label],
        query=LabelQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route(
        "GET",
        "/quality",
        show_quality,
        "How good a module is by its labels, and what is estimated without",
        returns=list[QualityReport],
        query=QualityQuery,
        role=Role.VIEWER,
    ),
    Route(
        "GET",
        "/quality/bounds",
        list_bounds,
        "How good modules are asked to be",
        returns=list[Bound],
        query=BoundsQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route(
        "PUT",
        "/quality/bounds",
        set_bound,
        "Ask for an accuracy or a mean absolute error; worse is an alert",
        returns=Bound,
        body=NewBound,
        role=Role.OPERATOR,
    ),
    Route(
        "DELETE",
        "/quality/bounds",
        remove_bound,
        "Ask for nothing any more",
        query=BoundQuery,
        role=Role.OPERATOR,
    ),
)
