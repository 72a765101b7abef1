"""Groups and saved queries: over the API, in every query, within a scope, and in the audit trail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cloud_hub.groups.resolving import meant
from cloud_hub.query import Moment
from cloud_hub.roles import Role
from support.fleets import World, add_device, open_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        await furnish(world)
        yield world


async def furnish(world: World) -> None:
    for device, site in (("lab-1", "lab"), ("lab-2", "lab"), ("hq-1", "hq")):
        await add_device(world.rooms, device, {"site": site})


class Asking:
    """Requests of one principal."""

    def __init__(self, world: World, token: str) -> None:
        self.world, self.token = world, token

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None, status: int = 200) -> Any:
        answer = await self.world.ask(self.token, method, path, body)
        assert answer.status == status, answer.text
        return answer.json if answer.text else None

    async def key(self, method: str, path: str, body: dict[str, Any] | None = None) -> str:
        return (await self.world.ask(self.token, method, path, body)).key

    async def found(self, query: str) -> list[str]:
        answer = await self.world.ask(self.token, "GET", f"/devices?query={query}")
        assert answer.status == 200, answer.text
        return [device["id"] for device in answer.json]


@pytest.fixture
async def admin(world: World) -> Asking:
    return Asking(world, await world.token(Role.ADMIN))


@pytest.fixture
async def lab(world: World) -> Asking:
    return Asking(world, await world.token(Role.OPERATOR, "site=lab"))


async def test_a_group_is_filled_by_hand_and_by_a_query_and_named_in_queries(admin: Asking) -> None:
    await admin.ask("POST", "/groups", {"name": "pilot"}, 201)
    changed = await admin.ask("POST", "/groups/pilot/devices/add", {"devices": ["hq-1"]})
    assert changed == {"group": "pilot", "devices": 1}
    changed = await admin.ask("POST", "/groups/pilot/devices/add", {"query": "site=lab or group=pilot"})
    assert changed["devices"] == 2, "the one that is in it stays and is not counted"
    assert await admin.ask("GET", "/groups/pilot/devices") == ["hq-1", "lab-1", "lab-2"]
    assert await admin.ask("GET", "/groups/pilot/devices?limit=1&after=hq-1") == ["lab-1"]
    await admin.ask("POST", "/groups/pilot/devices/remove", {"query": "id=lab-*1"})
    assert await admin.found("group = pilot") == ["hq-1", "lab-2"]
    assert await admin.found("group != pilot") == ["lab-1"]
    assert (await admin.ask("GET", "/devices/hq-1"))["groups"] == ["pilot"]
    await admin.ask("DELETE", "/groups/pilot", status=204)
    assert await admin.key("GET", "/devices?query=group=pilot") == "group-unknown"


async def test_saved_queries_stand_in_others_and_mean_what_they_mean_now(admin: Asking) -> None:
    await admin.ask("PUT", "/queries/labs", {"query": "site=lab"})
    await admin.ask("PUT", "/queries/first-labs", {"query": "query=labs and id=*-1"})
    assert await admin.found("query=first-labs") == ["lab-1"]
    assert await admin.found("not query=first-labs and not query in (labs)") == ["hq-1"]
    await admin.ask("PUT", "/queries/labs", {"query": "site=hq"})
    assert await admin.found("query=first-labs") == ["hq-1"]
    assert await admin.key("DELETE", "/queries/labs") == "query-in-use"
    await admin.ask("DELETE", "/queries/first-labs", status=204)
    await admin.ask("DELETE", "/queries/labs", status=204)
    assert await admin.key("GET", "/devices?query=query=labs") == "query-unknown"


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ("query=one", "query-cycle"),
        ("query=two", "query-cycle"),
        ("query=nine", "query-unknown"),
        ("site=", "query-invalid"),
    ],
)
async def test_a_saved_query_that_would_mean_nothing_is_refused_and_the_old_one_stays(
    admin: Asking, query: str, key: str
) -> None:
    await admin.ask("PUT", "/queries/one", {"query": "site=lab"})
    await admin.ask("PUT", "/queries/two", {"query": "query=one or site=hq"})
    assert await admin.key("PUT", "/queries/one", {"query": query}) == key
    assert (await admin.ask("GET", "/queries/one"))["query"] == "site=lab"


async def test_saved_queries_that_grow_out_of_bounds_are_refused(admin: Asking) -> None:
    await admin.ask("PUT", "/queries/q0", {"query": " or ".join(f"a=b{number}" for number in range(30))})
    for number in range(1, 4):
        text = " or ".join([f"query=q{number - 1}"] + [f"c=d{n} and query=q{number - 1}" for n in range(8)])
        answer = await admin.world.ask(admin.token, "PUT", f"/queries/q{number}", {"query": text})
        if answer.status != 200:
            assert answer.key == "query-invalid"
            assert "at most 500 conditions" in answer.text
            return
    pytest.fail("nobody has counted")


async def test_members_that_are_none_change_nothing(admin: Asking) -> None:
    await admin.ask("POST", "/groups", {"name": "pilot"}, 201)
    bodies: list[tuple[dict[str, Any], str]] = [
        ({"devices": ["nobody"]}, "device-not-found"),
        ({"devices": ["lab-1", "nobody"]}, "device-not-found"),
        ({}, "members-invalid"),
        ({"devices": ["lab-1"], "query": "all"}, "members-invalid"),
        ({"query": "site="}, "query-invalid"),
        ({"query": "group=none"}, "group-unknown"),
    ]
    for body, key in bodies:
        assert await admin.key("POST", "/groups/pilot/devices/add", body) == key
        assert (await admin.ask("GET", "/groups/pilot"))["devices"] == 0


async def test_a_name_that_no_query_could_say_is_refused(admin: Asking) -> None:
    for name in ("", "Pilot", "a b", "x" * 64, "-a"):
        assert await admin.key("POST", "/groups", {"name": name}) == "name-invalid"


async def test_a_group_is_made_once(admin: Asking) -> None:
    await admin.ask("POST", "/groups", {"name": "pilot"}, 201)
    assert await admin.key("POST", "/groups", {"name": "pilot"}) == "group-exists"
    assert await admin.key("GET", "/groups/other") == "group-not-found"
    assert await admin.key("POST", "/groups/other/devices/add", {"query": "all"}) == "group-not-found"


async def test_whoever_has_a_scope_sees_and_changes_their_own_part_of_groups(admin: Asking, lab: Asking) -> None:
    for name in ("mixed", "theirs", "empty"):
        await admin.ask("POST", "/groups", {"name": name}, 201)
    await admin.ask("POST", "/groups/mixed/devices/add", {"query": "all"})
    await admin.ask("POST", "/groups/theirs/devices/add", {"query": "site=hq"})
    shown = {group["name"]: group["devices"] for group in await lab.ask("GET", "/groups")}
    assert shown == {"mixed": 2, "empty": 0}
    assert await lab.ask("GET", "/groups/mixed/devices") == ["lab-1", "lab-2"]
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/devices")):
        assert await lab.key(method, f"/groups/theirs{path}") == "group-not-found"
    assert await lab.key("DELETE", "/groups/mixed") == "scope-exceeded"
    assert await lab.key("POST", "/groups/empty/devices/add", {"devices": ["hq-1"]}) == "device-not-found"
    await lab.ask("POST", "/groups/empty/devices/add", {"query": "all"})
    await lab.ask("POST", "/groups/mixed/devices/remove", {"query": "all"})
    assert await admin.ask("GET", "/groups/empty/devices") == ["lab-1", "lab-2"]
    assert await admin.ask("GET", "/groups/mixed/devices") == ["hq-1"]
    assert await lab.key("PUT", "/queries/mine", {"query": "site=lab"}) == "scope-exceeded"


async def test_a_device_that_is_retired_leaves_its_groups(admin: Asking, world: World) -> None:
    await admin.ask("POST", "/groups", {"name": "pilot"}, 201)
    await admin.ask("POST", "/groups/pilot/devices/add", {"query": "all"})
    await world.rooms.devices.retire("lab-1", "operator")
    assert await admin.ask("GET", "/groups/pilot/devices") == ["hq-1", "lab-2"]


async def test_every_change_stands_in_the_audit_trail(admin: Asking) -> None:
    await admin.ask("POST", "/groups", {"name": "pilot"}, 201)
    await admin.ask("POST", "/groups/pilot/devices/add", {"query": "site=lab"})
    await admin.ask("POST", "/groups/pilot/devices/remove", {"devices": ["lab-1"]})
    await admin.ask("PUT", "/queries/labs", {"query": "site=lab"})
    await admin.ask("PUT", "/queries/labs", {"query": "site=hq"})
    told = await admin.ask("GET", "/events?limit=5")
    assert [event["kind"] for event in told] == [
        "query.saved", "query.saved", "group.taken", "group.added", "group.created"
    ]  # fmt: skip
    assert told[0]["details"] == {"query": "site=hq", "before": "site=lab"}
    assert told[3]["details"] == {"devices": 2, "first": ["lab-1", "lab-2"], "query": "site=lab"}


async def test_rooms_ask_for_the_devices_that_a_text_means(world: World, admin: Asking) -> None:
    await admin.ask("PUT", "/queries/labs", {"query": "site=lab"})
    async with world.rooms.store.read() as connection:
        moment = Moment(world.rooms.clock(), 900.0)
        assert await meant(connection, "query=labs or id=hq*", moment) == ["hq-1", "lab-1", "lab-2"]
