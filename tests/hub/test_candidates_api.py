"""Candidates over the API: who may start, see and end them, and what a terminal shows of one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console
from sqlalchemy import insert

from cloud_hub.arms.candidate import Candidate, CandidateReport
from cloud_hub.desired import Assignment
from cloud_hub.operator import render_candidates
from cloud_hub.roles import Role
from cloud_hub.store.tables import modules
from modules.manifest import encode_manifest
from support.built import build
from support.fleets import OURS, THEIRS, World, add_device, open_world
from support.reporting import module_row

NEW = {"module": "iris", "version": 2, "target": "site=lab", "share": 0.5, "way": "arm"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Two devices of different sites that run version 1 of iris; version 2 is signed."""
    async with open_world(tmp_path) as world:
        rooms = world.rooms
        for device, site in ((OURS, "lab"), (THEIRS, "lyon")):
            await add_device(rooms, device, {"site": site})
        for version in (1, 2):
            made = msgspec.structs.replace(build(version=version).manifest, profile="edge")
            digest = await rooms.blobs.put(encode_manifest(made))
            row = module_row(version, digest, version, "edge") | {"name": "iris"}
            async with rooms.store.write() as connection:
                await connection.execute(insert(modules).values(**row))
        async with rooms.store.write() as connection:
            for device in (OURS, THEIRS):
                await rooms.desired.assign(connection, device, Assignment("iris", 1, "edge", "first"))
        yield world


async def start(world: World, token: str, **changed: Any) -> Candidate:
    answer = await world.ask(token, "POST", "/candidates", NEW | changed)
    assert answer.status == 201, answer.text
    return msgspec.json.decode(answer.text, type=Candidate)


async def test_an_operator_starts_shares_and_drops_a_candidate_of_his_devices(world: World) -> None:
    operator = await world.token(Role.OPERATOR, "site=lab")
    candidate = await start(world, operator)
    assert (candidate.state, candidate.share, candidate.creator != "") == ("running", 0.5, True)
    (beside,) = [one for one in await world.rooms.desired.of(OURS) if one.role == "candidate"]
    assert (beside.mode, beside.share) == ("arm", 0.5)
    changed = await world.ask(operator, "POST", f"/candidates/{candidate.id}/share", {"share": 0.1})
    assert (changed.status, changed.json["share"]) == (200, 0.1)
    assert [one["id"] for one in (await world.ask(operator, "GET", "/candidates?module=iris")).json] == [candidate.id]
    report = await world.ask(operator, "GET", f"/candidates/{candidate.id}/report")
    assert report.json["outcomes"]["devices"] == 0
    dropped = await world.ask(operator, "POST", f"/candidates/{candidate.id}/drop", {"reason": "enough"})
    assert (dropped.status, dropped.json["state"]) == (200, "dropped")
    again = await world.ask(operator, "POST", f"/candidates/{candidate.id}/drop", {})
    assert (again.status, again.key) == (409, "candidate-state")
    assert [one.role for one in await world.rooms.desired.of(OURS)] == ["main"]


async def test_others_see_and_change_nothing_of_it(world: World) -> None:
    theirs = await start(world, world.admin, target="site=lyon")
    stranger, viewer = await world.token(Role.OPERATOR, "site=lab"), await world.token(Role.VIEWER)
    for path in ("", "/report"):
        answer = await world.ask(stranger, "GET", f"/candidates/{theirs.id}{path}")
        assert (answer.status, answer.key) == (404, "rollout-not-found")
    assert (await world.ask(stranger, "GET", "/candidates")).json == []
    for act, body in (("share", {"share": 1.0}), ("promote", {}), ("drop", {})):
        path = f"/candidates/{theirs.id}/{act}"
        assert (await world.ask(stranger, "POST", path, body)).status == 404
        assert (await world.ask(viewer, "POST", path, body)).status == 403
    assert (await world.ask(viewer, "GET", f"/candidates/{theirs.id}")).status == 200
    assert (await world.ask(world.admin, "GET", f"/candidates/{theirs.id}")).json["state"] == "running"


@pytest.mark.parametrize(
    ("changed", "status", "key"),
    [
        ({"version": 9}, 404, "module-not-found"),
        ({"version": 1}, 409, ""),
        ({"share": 1.5}, 400, ""),
        ({"way": "shadow", "split": "device"}, 400, "plan-invalid"),
        ({"target": "site=nowhere"}, 422, "no-device-matches"),
        ({"groups": ["0%"]}, 400, "plan-invalid"),
    ],
)
async def test_what_cannot_be_started_is_refused_and_leaves_nothing(
    world: World, changed: dict[str, Any], status: int, key: str
) -> None:
    answer = await world.ask(world.admin, "POST", "/candidates", NEW | changed)
    if changed == {"version": 1}:  # each device says why: it is no release after the one that serves
        assert answer.status == 201
        executions = (await world.ask(world.admin, "GET", f"/rollouts/{answer.json['id']}/executions")).json
        assert [one["reason_key"] for one in executions] == ["candidate-older"]
        return
    assert answer.status == status, answer.text
    assert key in ("", answer.key)
    assert (await world.ask(world.admin, "GET", "/candidates")).json == []


async def test_a_terminal_shows_what_is_known_of_a_candidate(world: World) -> None:
    candidate = await start(world, world.admin)
    answer = await world.ask(world.admin, "GET", f"/candidates/{candidate.id}/report")
    found = msgspec.json.decode(answer.text, type=CandidateReport)
    seen = msgspec.structs.replace(
        found.outcomes, devices=2, offered=100, fed=90, missed=10, compared=80, agreed=60, answered=7, fell_back=1,
        reasons={"missed-busy": 10, "fell-back-late": 1},
    )  # fmt: skip
    console = Console(width=140, record=True)
    console.print(render_candidates.report(msgspec.structs.replace(found, outcomes=seen, partial=True)))
    console.print(render_candidates.candidates([candidate]))
    text = console.export_text()
    for words in (
        "iris:2, arm by request of 0.5, running", "fed 90 of 100 predictions, 10 missed", "60 of 80 rows (75.00%)",
        "answered 7 requests; 1 fell back", "fell-back-late 1", "these are the first of them", "site=lab",
    ):  # fmt: skip
        assert words in text
