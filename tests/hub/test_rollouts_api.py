"""Routes of rollouts: pages, dry runs, approval by role and scope, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import pytest

from cloud_hub.api.rollouts import AnyExecutionState, AnyRolloutState
from cloud_hub.roles import Role
from cloud_hub.rollouts.states import ExecutionState, RolloutState
from support.fleets import OURS, THEIRS, Answer, World, add_device, open_world, settle_two_fleets

ORDER = {"module": "digits", "version": 1, "target": "site=lab"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        await settle_two_fleets(world)
        yield world


async def post(world: World, path: str, body: object = None, token: str = "") -> Answer:
    return await world.ask(token or world.admin, "POST", path, {} if body is None else body)


async def pages(world: World, path: str) -> list[list[Any]]:
    found = []
    while path:
        answer = await world.ask(world.admin, "GET", path)
        assert answer.status == 200, answer.text
        found.append(answer.json)
        _, _, link = answer.headers.get("Link", "").partition("/api/v1")
        path = link.partition(">")[0]
    return found


def test_the_states_that_can_be_asked_for_are_those_that_there_are() -> None:
    assert set(get_args(AnyRolloutState)) == {"", *RolloutState}
    assert set(get_args(AnyExecutionState)) == {"", *ExecutionState}


async def test_rollouts_come_newest_first_and_each_once_over_the_pages(world: World) -> None:
    assert [[one["id"] for one in page] for page in await pages(world, "/rollouts?limit=2")] == [["r3", "r2"], ["r1"]]
    assert [one["id"] for one in (await pages(world, "/rollouts?state=draft"))[0]] == ["r1"]
    assert await pages(world, "/rollouts?module=faces") == [[]]
    assert await pages(world, "/rollouts?after=no-such") == [[]]


async def test_devices_of_a_rollout_come_by_id_over_the_pages(world: World) -> None:
    listed = await pages(world, "/rollouts/r1/executions?limit=1")
    assert [[one["device"] for one in page] for page in listed] == [[OURS], [THEIRS]]
    assert await pages(world, "/rollouts/r1/executions?state=verified") == [[]]
    assert len((await pages(world, "/rollouts/r1/executions?group=0"))[0]) == 2
    assert await pages(world, "/rollouts/r1/executions?group=1") == [[]]


async def test_somebody_with_a_scope_sees_their_own_devices_of_a_rollout(world: World) -> None:
    token = await world.token(Role.VIEWER, "site=lab")
    answer = await world.ask(token, "GET", "/rollouts/r1/executions")
    assert [one["device"] for one in answer.json] == [OURS]
    assert (await world.ask(token, "GET", "/rollouts/r2/executions")).status == 404


async def test_a_dry_run_creates_nothing_and_stays_in_scope(world: World) -> None:
    found = await post(world, "/rollouts/preview", ORDER | {"target": "all"})
    assert (found.status, found.json["devices"], found.json["elsewhere"]) == (200, 2, 2)
    token = await world.token(Role.OPERATOR, "site=lab")
    mine = await post(world, "/rollouts/preview", ORDER | {"target": "all"}, token)
    assert [group["devices"] for group in mine.json["groups"]] == [[OURS]]
    assert THEIRS not in mine.text
    assert len((await pages(world, "/rollouts"))[0]) == 3
    viewer = await world.token(Role.VIEWER)
    assert (await post(world, "/rollouts/preview", ORDER, viewer)).key == "role-missing"


async def test_somebody_else_with_the_role_approves_and_only_for_devices_they_may_change(world: World) -> None:
    await add_device(world.rooms, "lab-2", {"site": "attic"})
    approval = {"role": "publisher", "stages": ["start"]}
    order = ORDER | {"target": "id=lab-2", "approval": approval, "start": True}
    made = await post(world, "/rollouts", order)
    path = f"/rollouts/{made.json['rollout']['id']}/approve"
    assert [wait["kind"] for wait in made.json["waits"]] == ["approval"]
    assert made.json["groups"][0]["states"] == {"waiting": 1}
    operator = await world.token(Role.OPERATOR)
    refused = await post(world, path, token=operator)
    assert (refused.status, refused.key) == (409, "approval-refused")
    elsewhere = await world.token(Role.PUBLISHER, "site=lab", "elsewhere")
    assert (await post(world, path, token=elsewhere)).status == 404
    publisher = await world.token(Role.PUBLISHER, "site=attic", "attic")
    approved = await post(world, path, {"stage": "start", "comment": "looks well"}, publisher)
    assert (approved.status, approved.json["waits"]) == (200, [])
    assert approved.json["groups"][0]["states"] == {"assigned": 1}
    (event,) = await world.rooms.events.list("rollout.approved")
    assert (event.actor, event.details["comment"]) == ("attic", "looks well")


REFUSED: tuple[tuple[str, object, int, str], ...] = (
    ("/rollouts/r1/approve", {"stage": "group:1"}, 409, "approval-refused"),
    ("/rollouts/r1/approve", {"stage": "x" * 21}, 400, "body-invalid"),
    ("/rollouts/r1/roll-back", {}, 409, "rollout-state"),
    ("/rollouts/r1/finish", None, 409, "rollout-state"),
    ("/rollouts/r1/retry", None, 409, "rollout-state"),
    ("/rollouts/r3/retry", None, 409, "nothing-to-retry"),
    ("/rollouts/r9/retry", None, 404, "rollout-not-found"),
    ("/rollouts/preview", {"module": "digits", "version": 1, "target": "site="}, 400, "query-invalid"),
    ("/rollouts/preview", ORDER | {"windows": [{"start": "2", "end": "5"}]}, 400, "body-invalid"),
    ("/rollouts/preview", ORDER | {"approval": {"people": 0}}, 400, "body-invalid"),
    ("/rollouts/preview", ORDER | {"alert_gate": {"kinds": ["rain"]}}, 400, "body-invalid"),
    ("/rollouts/preview", ORDER | {"rate": {"per_minute": 0}}, 400, "body-invalid"),
    ("/rollouts/preview", ORDER | {"soak_s": -1}, 400, "plan-invalid"),
    ("/rollouts/preview", ORDER | {"no-such": 1}, 400, "body-invalid"),
)


async def test_what_cannot_be_done_or_asked_is_refused_by_key(world: World) -> None:
    for path, body, status, key in REFUSED:
        answer = await post(world, path, body)
        assert (answer.status, answer.key) == (status, key), f"{path} {body}: {answer.text}"
    for query in ("state=lost", "group=-2", "group=first", "limit=0", "after=" + "x" * 600):
        answer = await world.ask(world.admin, "GET", f"/rollouts/r1/executions?{query}")
        assert (answer.status, answer.key) == (400, "query-invalid"), query
