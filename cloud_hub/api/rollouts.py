"""Routes of rollouts: create, start, pause, resume, abort, and how they stand."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cloud_hub.api.route import Call, Route
from cloud_hub.roles import Role
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.states import Rollout
from cloud_hub.rollouts.status import RolloutStatus
from cloud_hub.rooms import Rooms


class RolloutQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which rollouts to list: all or those of one state, at most `limit`, newest first."""

    state: Literal["", "draft", "running", "paused", "finished", "aborted", "failed"] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


class AbortRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why the rollout is aborted, for the audit trail."""

    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""


async def create_rollout(rooms: Rooms, call: Call) -> RolloutStatus:
    new: NewRollout = call.body
    return await rooms.rollouts.create(new, call.actor, call.principal.scope)


async def list_rollouts(rooms: Rooms, call: Call) -> list[Rollout]:
    query: RolloutQuery = call.query
    found = await rooms.rollouts.list(query.state, query.limit, await call.access.rollouts())
    return await call.access.shown(found)


async def show_rollout(rooms: Rooms, call: Call) -> RolloutStatus:
    found = await rooms.rollouts.get(call.path["id"], await call.access.devices())
    return await call.access.shown_status(found)


async def start_rollout(rooms: Rooms, call: Call) -> RolloutStatus:
    return await rooms.rollouts.start(call.path["id"], call.actor)


async def pause_rollout(rooms: Rooms, call: Call) -> RolloutStatus:
    return await rooms.rollouts.pause(call.path["id"], call.actor)


async def resume_rollout(rooms: Rooms, call: Call) -> RolloutStatus:
    return await rooms.rollouts.resume(call.path["id"], call.actor)


async def abort_rollout(rooms: Rooms, call: Call) -> RolloutStatus:
    request: AbortRequest = call.body
    return await rooms.rollouts.abort(call.path["id"], call.actor, request.reason)


_ROLLOUT = "/rollouts/{id}"
ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/rollouts",
        create_rollout,
        "Create a rollout, as a draft or started at once",
        returns=RolloutStatus,
        body=NewRollout,
        status=201,
        role=Role.OPERATOR,
    ),
    Route(
        "GET", "/rollouts", list_rollouts, "List rollouts", returns=list[Rollout], query=RolloutQuery, role=Role.VIEWER
    ),
    Route(
        "GET",
        _ROLLOUT,
        show_rollout,
        "Show a rollout with its groups and executions",
        returns=RolloutStatus,
        role=Role.VIEWER,
    ),
    Route("POST", f"{_ROLLOUT}/start", start_rollout, "Start a draft", returns=RolloutStatus, role=Role.OPERATOR),
    Route(
        "POST",
        f"{_ROLLOUT}/pause",
        pause_rollout,
        "Open no further group for now",
        returns=RolloutStatus,
        role=Role.OPERATOR,
    ),
    Route(
        "POST",
        f"{_ROLLOUT}/resume",
        resume_rollout,
        "Go on with a paused rollout",
        returns=RolloutStatus,
        role=Role.OPERATOR,
    ),
    Route(
        "POST",
        f"{_ROLLOUT}/abort",
        abort_rollout,
        "End a rollout now; devices in progress go back",
        returns=RolloutStatus,
        body=AbortRequest,
        role=Role.OPERATOR,
    ),
)
