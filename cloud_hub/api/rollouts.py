"""Routes of rollouts: look ahead, create, steer, approve, and how they stand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

import msgspec

from cloud_hub.api.pages import Page, PageQuery, cut
from cloud_hub.api.route import Call, Route
from cloud_hub.roles import Role
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.preview import Preview
from cloud_hub.rollouts.states import Execution, Rollout
from cloud_hub.rollouts.status import RolloutStatus
from cloud_hub.rooms import Rooms

_Name = Annotated[str, msgspec.Meta(max_length=63)]
# Empty for all; else as in `states`, which a query string cannot hold beside an empty text.
AnyRolloutState = Literal[
    "", "draft", "running", "paused", "rolling_back", "finished", "aborted", "failed", "rolled_back"
]
AnyExecutionState = Literal[
    "", "waiting", "assigned", "updating", "verified", "failed", "reverted", "rejected", "timed_out", "silent",
    "cancelled", "returning", "returned", "stuck",
]  # fmt: skip


class RolloutQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which rollouts to list, newest first: all, those of one state, those of one module."""

    state: AnyRolloutState = ""
    module: _Name = ""


class ExecutionQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which devices of a rollout to list: all, those in one state, those of one group (from 0; -1: not eligible)."""

    state: AnyExecutionState = ""
    group: Annotated[int, msgspec.Meta(ge=-1, le=200)] | None = None


class Why(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why somebody does what they do, for the audit trail."""

    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""


class AbortRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why the rollout is aborted, for the audit trail. With `roll_back` verified devices go back, too."""

    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""
    roll_back: bool = False


class ApprovalRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A yes to a stage: `start`, or `group:2` (groups count from 1 here)."""

    stage: Annotated[str, msgspec.Meta(max_length=20)] = "start"
    comment: Annotated[str, msgspec.Meta(max_length=500)] = ""


async def create_rollout(rooms: Rooms, call: Call) -> RolloutStatus:
    new: NewRollout = call.body
    return await rooms.rollouts.create(new, call.actor, call.principal.scope)


async def preview_rollout(rooms: Rooms, call: Call) -> Preview:
    new: NewRollout = call.body
    return await rooms.previews.ask(new, call.principal.scope)


async def list_rollouts(rooms: Rooms, call: Call) -> Page[Rollout]:
    query: RolloutQuery = call.query
    mine = await call.access.rollouts()
    found = await rooms.rollouts.list(query.state, query.limit + 1, mine, query.module, query.after)
    page = cut(found, query.limit, lambda rollout: rollout.id)
    return page.showing(await call.access.shown(list(page.rows)))


async def show_rollout(rooms: Rooms, call: Call) -> RolloutStatus:
    found = await rooms.rollouts.get(call.path["id"], await call.access.devices())
    return await call.access.shown_status(found)


async def list_executions(rooms: Rooms, call: Call) -> Page[Execution]:
    query: ExecutionQuery = call.query
    mine = await call.access.devices()
    found = await rooms.rollouts.executions(
        call.path["id"], query.state, query.group, query.after, query.limit + 1, mine
    )
    return cut(found, query.limit, lambda execution: execution.device)


async def start_rollout(rooms: Rooms, call: Call) -> RolloutStatus:
    return await rooms.rollouts.start(call.path["id"], call.actor)


async def pause_rollout(rooms: Rooms, call: Call) -> RolloutStatus:
    return await rooms.rollouts.pause(call.path["id"], call.actor)


async def resume_rollout(rooms: Rooms, call: Call) -> RolloutStatus:
    return await rooms.rollouts.resume(call.path["id"], call.actor)


async def abort_rollout(rooms: Rooms, call: Call) -> RolloutStatus:
    request: AbortRequest = call.body
    return await rooms.rollouts.abort(call.path["id"], call.actor, request.reason, request.roll_back)


async def roll_back_rollout(rooms: Rooms, call: Call) -> RolloutStatus:
    request: Why = call.body
    return await rooms.rollouts.roll_back(call.path["id"], call.actor, request.reason)


async def finish_rollout(rooms: Rooms, call: Call) -> RolloutStatus:
    return await rooms.rollouts.finish(call.path["id"], call.actor)


async def retry_rollout(rooms: Rooms, call: Call) -> RolloutStatus:
    return await rooms.rollouts.retry(call.path["id"], call.actor)


async def approve_rollout(rooms: Rooms, call: Call) -> RolloutStatus:
    """Which role may is in the plan, so the route is open to whoever may see the rollout's devices, all of them."""
    request: ApprovalRequest = call.body
    principal = call.principal
    return await rooms.rollouts.approve(
        call.path["id"], principal.actor, principal.role, request.stage, request.comment
    )


_ROLLOUT = "/rollouts/{id}"


def _steering(
    act: str,
    handler: Callable[[Rooms, Call], Awaitable[RolloutStatus]],
    summary: str,
    body: type | None = None,
    role: Role = Role.OPERATOR,
) -> Route:
    return Route("POST", f"{_ROLLOUT}/{act}", handler, summary, returns=RolloutStatus, body=body, role=role)


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
        "POST",
        "/rollouts/preview",
        preview_rollout,
        "Say what a rollout would mean: which devices, how many bytes, how long; nothing is created",
        returns=Preview,
        body=NewRollout,
        role=Role.OPERATOR,
    ),
    Route(
        "GET",
        "/rollouts",
        list_rollouts,
        "List rollouts",
        returns=list[Rollout],
        query=RolloutQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route(
        "GET",
        _ROLLOUT,
        show_rollout,
        "Show a rollout with its groups, and the devices that need attention",
        returns=RolloutStatus,
        role=Role.VIEWER,
    ),
    Route(
        "GET",
        f"{_ROLLOUT}/executions",
        list_executions,
        "List the devices of a rollout with how they stand",
        returns=list[Execution],
        query=ExecutionQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    _steering("start", start_rollout, "Start a draft"),
    _steering("pause", pause_rollout, "Open no further group for now"),
    _steering("resume", resume_rollout, "Go on with a paused rollout"),
    _steering("abort", abort_rollout, "End a rollout now; devices in progress go back", AbortRequest),
    _steering("roll-back", roll_back_rollout, "Give every device back what it had before", Why),
    _steering("finish", finish_rollout, "End a rollout that devices go on to join"),
    _steering("retry", retry_rollout, "Begin again on devices that failed"),
    _steering("approve", approve_rollout, "Say yes to the start or to a group", ApprovalRequest, Role.VIEWER),
)
