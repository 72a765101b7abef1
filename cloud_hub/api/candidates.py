"""Routes of candidates: start one beside what serves, see how it does, change its share, promote it or drop it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cloud_hub.api.pages import Page, PageQuery, cut
from cloud_hub.api.route import Call, Route
from cloud_hub.arms.candidate import Candidate, CandidateReport, Drop, NewCandidate, Promotion, ShareChange
from cloud_hub.bounds import AnyVersion
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms

_Name = Annotated[str, msgspec.Meta(max_length=63)]


class CandidateQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which candidates to list, newest first: all, those of one module, those in one state."""

    module: _Name = ""
    state: Literal["", "running", "promoted", "dropped"] = ""


class ReportQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Against which version; 0 is the newest one below the candidate."""

    baseline: AnyVersion = 0


async def start_candidate(rooms: Rooms, call: Call) -> Candidate:
    new: NewCandidate = call.body
    return await rooms.candidates.start(new, call.actor, call.principal.scope)


async def list_candidates(rooms: Rooms, call: Call) -> Page[Candidate]:
    query: CandidateQuery = call.query
    mine = await call.access.rollouts()
    found = await rooms.candidates.list(query.module, query.state, query.after, query.limit + 1, mine)
    return cut(found, query.limit, lambda candidate: candidate.id)


async def show_candidate(rooms: Rooms, call: Call) -> Candidate:
    return await rooms.candidates.get(await _seen(call))


async def report_candidate(rooms: Rooms, call: Call) -> CandidateReport:
    query: ReportQuery = call.query
    return await rooms.candidates.report(await _seen(call), query.baseline, await call.access.devices())


async def change_share(rooms: Rooms, call: Call) -> Candidate:
    wanted: ShareChange = call.body
    return await rooms.candidates.change_share(await _mine(call), wanted.share, call.actor)


async def promote_candidate(rooms: Rooms, call: Call) -> Candidate:
    how: Promotion = call.body
    return await rooms.candidates.promote(await _mine(call), how, call.actor, call.principal.scope)


async def drop_candidate(rooms: Rooms, call: Call) -> Candidate:
    why: Drop = call.body
    return await rooms.candidates.drop(await _mine(call), why.reason, call.actor)


async def _seen(call: Call) -> str:
    """The id, which is that of the candidate's rollout. Raises NotFound."""
    await call.access.require_rollout(call.path["id"], change=False)
    return call.path["id"]


async def _mine(call: Call) -> str:
    """Raises NotFound, Forbidden `scope-exceeded`."""
    await call.access.require_rollout(call.path["id"], change=True)
    return call.path["id"]


_ONE = "/candidates/{id}"

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/candidates",
        start_candidate,
        "Start a version beside the one that serves: as a shadow, or for a share of requests or devices",
        returns=Candidate,
        body=NewCandidate,
        status=201,
        role=Role.OPERATOR,
    ),
    Route(
        "GET",
        "/candidates",
        list_candidates,
        "List candidates",
        returns=list[Candidate],
        query=CandidateQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route("GET", _ONE, show_candidate, "Show a candidate", returns=Candidate, role=Role.VIEWER),
    Route(
        "GET",
        f"{_ONE}/report",
        report_candidate,
        "Say how a candidate does: what devices count of it, and the versions against each other",
        returns=CandidateReport,
        query=ReportQuery,
        role=Role.VIEWER,
    ),
    Route(
        "POST",
        f"{_ONE}/share",
        change_share,
        "Change a candidate's share of the predictions",
        returns=Candidate,
        body=ShareChange,
        role=Role.OPERATOR,
    ),
    Route(
        "POST",
        f"{_ONE}/promote",
        promote_candidate,
        "Make a candidate the main version, by a rollout that starts now",
        returns=Candidate,
        body=Promotion,
        role=Role.OPERATOR,
    ),
    Route(
        "POST",
        f"{_ONE}/drop",
        drop_candidate,
        "Take a candidate from its devices",
        returns=Candidate,
        body=Drop,
        role=Role.OPERATOR,
    ),
)
