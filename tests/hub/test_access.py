"""One filter for everything about devices: whoever has a scope never sees, counts or changes what is outside it."""

import itertools
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_hub.api.route import Route
from cloud_hub.api.table import EVERY_ROUTE
from cloud_hub.roles import Role
from support.fleets import NOBODY, OURS, THEIRS, World, open_world, settle_two_fleets

SCOPE = "site=lab"
READING = [route for route in EVERY_ROUTE if route.method == "GET"]
CHANGING = [
    route for route in EVERY_ROUTE if route.method != "GET" and re.match(r"/(devices|rollouts)/\{id\}", route.path)
]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        await settle_two_fleets(world)
        yield world


def paths(route: Route, device: str, manifest: str) -> Iterator[str]:
    """The route with everything plausible in the place of its parameters; `device` wherever a device may stand."""
    choices = {
        "id": (device, "r1", "r2", "r3") if "rollouts" in route.path else (device,),
        "name": ("digits",),
        "version": ("1",),
        "profile": ("edge",),
        "sha256": (manifest,),
        "filename": ("1.root.json",),
        "path": ("model.onnx",),
    }
    names = re.findall(r"\{(\w+)", route.path)
    for values in itertools.product(*(choices.get(name, (device, "1")) for name in names)):
        path = route.path
        for name, value in zip(names, values, strict=True):
            path = re.sub(rf"\{{{name}[^}}]*\}}", value, path)
        yield from (f"{path}{query}" for query in queries(route, device))


def queries(route: Route, device: str) -> Iterator[str]:
    fields = {field.encode_name for field in msgspec.structs.fields(route.query)} if route.query else set[str]()
    base = "module=digits&" if route.path == "/drift" else ""
    base += "after=0&for_s=0.02&" if "for_s" in fields else ""  # a stream, from the beginning, that has an end
    yield f"?{base.rstrip('&')}" if base else ""
    values = {
        "device": device, "subject": device, "query": f"id={device}", "module": "digits", "name": "digits",
        "retired": "true", "limit": "500", "state": "open" if route.path == "/alerts" else "running",
    }  # fmt: skip
    for name in sorted(fields & set(values)):
        yield f"?{base}{name}={values[name]}"


def manifest_of(world: World) -> str:
    assert world.built is not None
    return world.built.manifest_sha256


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR, Role.PUBLISHER])
async def test_no_get_route_shows_a_device_out_of_scope_anywhere(world: World, role: Role) -> None:
    token = await world.token(role, SCOPE)
    asked = 0
    for route in READING:
        for path in paths(route, OURS, manifest_of(world)):
            answer = await world.ask(token, "GET", path)
            assert THEIRS not in answer.text + str(answer.headers), f"{path}: {answer.text[:2000]}"
            assert answer.status < 500, path
            asked += 1
    assert asked > len(READING)


async def test_a_device_out_of_scope_is_answered_exactly_as_one_that_is_not_there(world: World) -> None:
    token = await world.token(Role.VIEWER, SCOPE)
    for route in READING:
        pairs = zip(paths(route, THEIRS, "0" * 64), paths(route, NOBODY, "0" * 64), strict=True)
        for theirs, nobodys in pairs:
            one, other = await world.ask(token, "GET", theirs), await world.ask(token, "GET", nobodys)
            assert (one.status, one.text.replace(THEIRS, NOBODY)) == (other.status, other.text), theirs


async def test_what_is_in_scope_is_shown(world: World) -> None:
    token = await world.token(Role.VIEWER, SCOPE)
    for path in ("/devices", "/alerts", "/samples", "/windows", "/events", f"/drift?module=digits&device={OURS}"):
        answer = await world.ask(token, "GET", path)
        assert answer.status == 200, answer.text
        assert OURS in answer.text, path
    assert [one["id"] for one in (await world.ask(token, "GET", "/rollouts")).json] == ["r3", "r1"]


async def test_without_a_scope_everything_is_shown(world: World) -> None:
    token = await world.token(Role.VIEWER)
    for path in ("/devices", "/alerts", "/samples", "/samples/export", "/events", f"/devices/{THEIRS}", "/rollouts/r1"):
        assert THEIRS in (await world.ask(token, "GET", path)).text, path


async def test_drift_of_a_device_that_is_not_there_is_not_called_calm(world: World) -> None:
    answer = await world.ask(await world.token(Role.VIEWER), "GET", f"/drift?module=digits&device={NOBODY}")
    assert answer.status == 404, answer.text
    assert NOBODY in answer.text


async def test_counts_are_of_ones_own_devices_only(world: World) -> None:
    token = await world.token(Role.VIEWER, SCOPE)
    assert len((await world.ask(token, "GET", "/samples?limit=500")).json) == 4
    looks = (await world.ask(token, "GET", "/windows")).json
    assert {(look["device"], look["rows"]) for look in looks} == {(OURS, 100)}
    (group,) = (await world.ask(token, "GET", "/rollouts/r1")).json["groups"]
    assert (group["size"], group["states"]) == (1, {"waiting": 1})
    assert (await world.ask(token, "GET", "/drift?module=digits")).key == "scope-needs-device"


async def test_target_and_reason_of_a_shared_rollout_are_not_told(world: World) -> None:
    token = await world.token(Role.VIEWER, SCOPE)
    shared = (await world.ask(token, "GET", "/rollouts/r1")).json["rollout"]
    own = (await world.ask(token, "GET", "/rollouts/r3")).json["rollout"]
    assert (shared["target"], own["target"]) == ("(not only your devices)", "site=lab")


@pytest.mark.parametrize("route", CHANGING, ids=lambda route: f"{route.method} {route.path}")
async def test_nothing_out_of_scope_can_be_changed(world: World, route: Route) -> None:
    token = await world.token(Role.OPERATOR, SCOPE)
    before = await everything(world)
    for target, status in ((THEIRS, 404), ("r2", 404), ("r1", 403), (NOBODY, 404)):
        if target.startswith("r") == route.path.startswith("/rollouts"):
            path = route.path.replace("{id}", target)
            # Who may approve is a matter of the plan.
            assert route.role in (Role.OPERATOR, Role.ADMIN) or path.endswith("/approve")
            expected = 403 if route.role is Role.ADMIN else status
            assert (await world.ask(token, route.method, path, {})).status == expected, path
    assert await everything(world) == before


async def everything(world: World) -> Any:
    paths = (f"/devices/{THEIRS}", "/rollouts/r1", "/rollouts/r2")
    return [(await world.ask(world.admin, "GET", path)).json for path in paths]


async def test_a_rollout_reaches_devices_in_scope_only(world: World) -> None:
    token = await world.token(Role.OPERATOR, SCOPE)
    await world.ask(world.admin, "POST", "/rollouts/r3/abort", {})
    order = {"module": "digits", "version": 1, "target": "all"}
    made = await world.ask(token, "POST", "/rollouts", order)
    assert made.status == 201, made.text
    assert [part["device"] for part in made.json["executions"]] == [OURS]
    refused = await world.ask(token, "POST", "/rollouts", order | {"target": f"id={THEIRS}"})
    assert refused.key == "no-device-matches"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"device": "lab-2", "tags": {"site": "lab"}}, 201),
        ({"tags": {"site": "lab"}}, 201),
        ({"device": "lab-2"}, 403),
        ({"device": "lab-2", "tags": {"site": "lyon"}}, 403),
        ({"device": THEIRS, "tags": {"site": "lab"}}, 403),
    ],
)
async def test_a_claim_token_lets_in_only_what_will_be_in_scope(
    world: World, body: dict[str, object], status: int
) -> None:
    token = await world.token(Role.OPERATOR, SCOPE)
    assert (await world.ask(token, "POST", "/tokens", body)).status == status


async def test_claim_tokens_of_others_can_be_neither_seen_nor_revoked(world: World) -> None:
    token = await world.token(Role.OPERATOR, SCOPE)
    everybodys = {one["device"]: one["id"] for one in (await world.ask(world.admin, "GET", "/tokens")).json}
    assert [one["device"] for one in (await world.ask(token, "GET", "/tokens")).json] == [OURS]
    theirs = await world.ask(token, "DELETE", f"/tokens/{everybodys[THEIRS]}")
    nobodys = await world.ask(token, "DELETE", "/tokens/not-here")
    assert (theirs.status, theirs.text.replace(everybodys[THEIRS], "not-here")) == (nobodys.status, nobodys.text)
    assert (await world.ask(token, "DELETE", f"/tokens/{everybodys[OURS]}")).status == 204


async def test_a_pattern_of_ids_covers_no_more_than_the_scope(world: World) -> None:
    named = await world.token(Role.OPERATOR, "id=demo-*")
    for device, status in (("demo-*", 201), ("demo-1*", 201), ("de*", 403), ("*", 403)):
        assert (await world.ask(named, "POST", "/tokens", {"device": device})).status == status, device
    others = await world.token(Role.OPERATOR, "id!=demo-1")
    for device, status in (("demo-*", 403), ("demo-1", 403), ("demo-2", 201)):
        assert (await world.ask(others, "POST", "/tokens", {"device": device})).status == status, device


async def test_a_scope_on_ids_needs_claim_tokens_with_an_id(world: World) -> None:
    token = await world.token(Role.OPERATOR, "id=demo-*")
    assert (await world.ask(token, "POST", "/tokens", {})).key == "scope-exceeded"
    assert (await world.ask(token, "POST", "/tokens", {"device": "demo-1"})).status == 201


async def test_tags_cannot_take_a_device_out_of_scope(world: World) -> None:
    token = await world.token(Role.OPERATOR, SCOPE)
    moved = await world.ask(token, "PUT", f"/devices/{OURS}/tags", {"tags": {"site": "lyon"}})
    assert (moved.status, moved.key) == (403, "scope-exceeded")
    kept = await world.ask(token, "PUT", f"/devices/{OURS}/tags", {"tags": {"site": "lab", "owner": "ann"}})
    assert kept.status == 200


async def test_a_scope_of_several_groups_is_their_union(world: World) -> None:
    token = await world.token(Role.VIEWER, "site=lab or site=lyon")
    assert [device["id"] for device in (await world.ask(token, "GET", "/devices")).json] == [OURS, THEIRS]


async def test_the_audit_trail_as_a_whole_needs_an_empty_scope(world: World) -> None:
    token = await world.token(Role.VIEWER, SCOPE)
    for path in ("/audit/export", "/audit/head"):
        assert (await world.ask(token, "GET", path)).key == "scope-exceeded"


async def test_refusals_of_somebody_known_are_in_the_audit_trail(world: World) -> None:
    token = await world.token(Role.VIEWER, SCOPE, "nosy")
    await world.ask(token, "GET", f"/devices/{THEIRS}")
    await world.ask(token, "DELETE", f"/devices/{OURS}")
    events = (await world.ask(world.admin, "GET", "/events?kind=access.refused")).json
    assert [(event["actor"], event["subject"], event["details"]["key"]) for event in events] == [
        ("nosy", "DELETE /devices/{id}", "role-missing"),
        ("nosy", "GET /devices/{id}", "device-not-found"),
    ]


ROLES = {
    Role.VIEWER: {Role.VIEWER},
    Role.OPERATOR: {Role.VIEWER, Role.OPERATOR},
    Role.PUBLISHER: {Role.VIEWER, Role.PUBLISHER},
    Role.ADMIN: set(Role),
}


@pytest.mark.parametrize("role", list(Role))
async def test_each_route_takes_exactly_the_roles_that_it_should(world: World, role: Role) -> None:
    token = await world.token(role)
    for route in EVERY_ROUTE:
        if route.public or route.path == "/logout":
            continue
        path = re.sub(r"\{\w+[^}]*\}", "77", route.path)
        path += "?for_s=0.02" if route.media == "text/event-stream" else ""
        answer = await world.ask(token, route.method, path, {"no-such-field": 1} if route.body else None)
        refused = answer.status == 403 and answer.key == "role-missing"
        assert refused == (route.role not in ROLES[role]), f"{role}: {route.method} {route.path}: {answer.text}"
