"""Routes of versions against each other."""

from __future__ import annotations

from cloud_hub.api.route import Call, Route
from cloud_hub.arms.compare import Comparison
from cloud_hub.arms.comparisons import Question
from cloud_hub.arms.margins import ComparisonQuery, Margins
from cloud_hub.errors import BadRequest
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms


async def compare_versions(rooms: Rooms, call: Call) -> Comparison:
    query: ComparisonQuery = call.query
    if query.device:
        await call.access.require_known_device(query.device)
    mine = await call.access.devices()
    try:
        margins = Margins(query.errors, query.refused, query.slower, query.quality, query.answers)
    except ValueError as error:
        raise BadRequest("margins-invalid", str(error)) from error
    return await rooms.comparisons.ask(
        Question(
            query.module,
            query.candidate,
            query.baseline,
            frozenset([query.device]) if query.device else mine,
            query.since,
            query.until,
            margins,
            query.alpha,
        )
    )


ROUTES = (
    Route(
        "GET",
        "/comparisons",
        compare_versions,
        "One version of a module against another, on the devices that have run them",
        returns=Comparison,
        query=ComparisonQuery,
        role=Role.VIEWER,
    ),
)
