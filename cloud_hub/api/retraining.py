"""Routes of retraining: plans, runs of them, and the counter where runners come for work."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from cloud_hub.api.blobs import send_file
from cloud_hub.api.pages import Cursor, Page, WholeQuery, cut, make_cursor, page_of_all, read_cursor
from cloud_hub.api.route import Call, Route
from cloud_hub.errors import BadRequest, NotFound
from cloud_hub.retraining.jobs import Job, TrainedCandidate
from cloud_hub.retraining.plan import RetrainPlan
from cloud_hub.retraining.records import KnownPlan, Run
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms

Text = Annotated[str, msgspec.Meta(max_length=500)]
RunnerName = Annotated[str, msgspec.Meta(min_length=1, max_length=80)]
LogText = Annotated[str, msgspec.Meta(max_length=100_000)]


class RunQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which runs: of one plan or state, or all; newest first."""

    plan: str = ""
    state: str = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 100
    after: Cursor = ""


class StartRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a plan is run by hand, for its history."""

    why: Text = "by hand"


class CancelRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a run is ended, for the audit trail."""

    reason: Text = ""


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A runner asks for work: a run that waits, of these plans or of any, or this one only."""

    runner: RunnerName
    plans: tuple[str, ...] = ()
    run: str = ""


class Heard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A runner is there; `log` is the end of what its command has said."""

    runner: RunnerName
    log: LogText = ""


class GoOn(msgspec.Struct, frozen=True):
    """Whether the runner is to go on with its run."""

    go_on: bool


class TrainingFailure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a runner has no candidate; `log` is the end of what its command said."""

    runner: RunnerName
    reason: Annotated[str, msgspec.Meta(max_length=2000)]
    log: LogText = ""


async def put_plan(rooms: Rooms, call: Call) -> KnownPlan:
    call.access.require_everything("a retraining plan")
    plan: RetrainPlan = call.body
    if plan.name != call.path["name"]:
        raise BadRequest("plan-invalid", f"plan: expected the name {call.path['name']}, got {plan.name}", field="name")
    for sha256 in (*plan.training.files.values(), *filter(None, (plan.data.base,))):
        await rooms.blobs.size(sha256)
    return await rooms.retraining.triggers.put(plan, call.actor)


async def list_plans(rooms: Rooms, call: Call) -> Page[KnownPlan]:
    call.access.require_everything("the list of retraining plans")
    query: WholeQuery = call.query
    return page_of_all(await rooms.retraining.plans(), query, lambda known: (known.plan.name,))


async def show_plan(rooms: Rooms, call: Call) -> KnownPlan:
    call.access.require_everything("a retraining plan")
    return await rooms.retraining.plan(call.path["name"])


async def stop_plan(rooms: Rooms, call: Call) -> KnownPlan:
    call.access.require_everything("a retraining plan")
    return await rooms.retraining.triggers.stop(call.path["name"], call.actor)


async def download_plan_file(rooms: Rooms, call: Call) -> web.StreamResponse:
    files = (await show_plan(rooms, call)).plan.training.files
    path = call.path["path"]
    if path not in files:
        raise NotFound("file-not-found", f"plan {call.path['name']} has no file {path[:200]!r}")
    return await send_file(rooms, call, files[path], {"Content-Type": "application/octet-stream"})


async def start_run(rooms: Rooms, call: Call) -> Run:
    call.access.require_everything("a retraining run")
    body: StartRun = call.body
    return await rooms.retraining.triggers.start(call.path["name"], body.why, call.actor)


async def list_runs(rooms: Rooms, call: Call) -> Page[Run]:
    call.access.require_everything("the list of retraining runs")
    query: RunQuery = call.query
    after = read_cursor(query.after, float, str) if query.after else None
    found = await rooms.retraining.history(query.plan, query.state, query.limit + 1, after)
    return cut(found, query.limit, lambda run: make_cursor(run.created_at, run.id))


async def show_run(rooms: Rooms, call: Call) -> Run:
    call.access.require_everything("a retraining run")
    return await rooms.retraining.run(call.path["id"])


async def cancel_run(rooms: Rooms, call: Call) -> Run:
    call.access.require_everything("a retraining run")
    body: CancelRun = call.body
    return await rooms.retraining.runs.cancel(call.path["id"], call.actor, body.reason)


async def claim_run(rooms: Rooms, call: Call) -> list[Job]:
    """One job, or none."""
    call.access.require_everything("a retraining run")
    body: Claim = call.body
    job = await rooms.retraining.desk.claim(body.runner, body.plans, body.run)
    return [] if job is None else [job]


async def hear_run(rooms: Rooms, call: Call) -> GoOn:
    call.access.require_everything("a retraining run")
    body: Heard = call.body
    return GoOn(await rooms.retraining.desk.heard(call.path["id"], body.runner, body.log))


async def take_candidate(rooms: Rooms, call: Call) -> Run:
    call.access.require_everything("a retraining run")
    body: TrainedCandidate = call.body
    return await rooms.retraining.desk.made(call.path["id"], body)


async def fail_run(rooms: Rooms, call: Call) -> Run:
    call.access.require_everything("a retraining run")
    body: TrainingFailure = call.body
    return await rooms.retraining.desk.failed(call.path["id"], body.runner, body.reason, body.log)


_PLAN = "/retraining/plans/{name}"
_RUN = "/retraining/runs/{id}"
ROUTES: tuple[Route, ...] = (
    Route(
        "PUT",
        _PLAN,
        put_plan,
        "Make a retraining plan, or change it: it runs commands, registers models and starts rollouts",
        returns=KnownPlan,
        body=RetrainPlan,
        role=Role.ADMIN,
    ),
    Route(
        "GET",
        "/retraining/plans",
        list_plans,
        "List retraining plans",
        returns=list[KnownPlan],
        query=WholeQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route("GET", _PLAN, show_plan, "Show a retraining plan", returns=KnownPlan, role=Role.VIEWER),
    Route(
        "DELETE",
        _PLAN,
        stop_plan,
        "Stop a retraining plan; its history stays",
        returns=KnownPlan,
        role=Role.PUBLISHER,
    ),
    Route(
        "GET",
        _PLAN + "/files/{path:.+}",
        download_plan_file,
        "Download a file of a retraining plan",
        media="application/octet-stream",
        role=Role.PUBLISHER,
    ),
    Route(
        "POST",
        _PLAN + "/runs",
        start_run,
        "Run a retraining plan now",
        returns=Run,
        body=StartRun,
        status=201,
        role=Role.PUBLISHER,
    ),
    Route(
        "GET",
        "/retraining/runs",
        list_runs,
        "List retraining runs, newest first",
        returns=list[Run],
        query=RunQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route("GET", _RUN, show_run, "Show a retraining run", returns=Run, role=Role.VIEWER),
    Route("POST", _RUN + "/cancel", cancel_run, "End a run", returns=Run, body=CancelRun, role=Role.PUBLISHER),
    Route(
        "POST",
        "/retraining/claim",
        claim_run,
        "Ask for a run to train, as a runner",
        returns=list[Job],
        body=Claim,
        role=Role.PUBLISHER,
    ),
    Route(
        "POST",
        _RUN + "/heard",
        hear_run,
        "Say that the runner is there",
        returns=GoOn,
        body=Heard,
        role=Role.PUBLISHER,
    ),
    Route(
        "POST",
        _RUN + "/candidate",
        take_candidate,
        "Hand in what was trained",
        returns=Run,
        body=TrainedCandidate,
        role=Role.PUBLISHER,
    ),
    Route(
        "POST",
        _RUN + "/failed",
        fail_run,
        "Say that the training failed",
        returns=Run,
        body=TrainingFailure,
        role=Role.PUBLISHER,
    ),
)
