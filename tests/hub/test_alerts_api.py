"""The routes of alerts through the real application: who may see and change what, and what is refused."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cloud_hub.monitoring.alert_book import AlertEvidence, Fact
from cloud_hub.monitoring.looks import Group
from cloud_hub.roles import Role
from support.fleets import OURS, THEIRS, World, open_world, settle_two_fleets

SCOPE = "site=lab"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Two devices of different owners; both have drifted, so that the fleet's alert speaks for them."""
    async with open_world(tmp_path) as world:
        await settle_two_fleets(world)
        yield world


async def listed(world: World, token: str, query: str = "?state=live") -> list[Any]:
    answer = await world.ask(token, "GET", f"/alerts{query}")
    assert answer.status == 200, answer.text
    return list(answer.json)


async def raised(world: World, device: str) -> int:
    """An alert of one device."""
    assert world.built is not None
    evidence = AlertEvidence(threshold=0.0, since=world.clock(), facts=(Fact("accuracy", 0.5, 0.9, "worse"),))
    group = Group(world.built.manifest_sha256, device)
    return await world.rooms.alerts.raise_alert("performance", "digits", group, evidence, 1)


async def test_an_operator_sees_to_an_alert_and_a_viewer_reads_who_did(world: World) -> None:
    operator, viewer = await world.token(Role.OPERATOR, name="ann"), await world.token(Role.VIEWER, name="vic")
    number = await raised(world, OURS)
    for step, body, state in (
        ("acknowledge", {"comment": "on my way"}, "acknowledged"),
        ("snooze", {"for_s": 3600, "comment": "tomorrow"}, "snoozed"),
        ("resolve", {"comment": "cleaned"}, "resolved"),
    ):
        assert (await world.ask(viewer, "POST", f"/alerts/{number}/{step}", body)).status == 403
        answer = await world.ask(operator, "POST", f"/alerts/{number}/{step}", body)
        assert (answer.status, answer.json["alert"]["state"]) == (200, state)
    history = (await world.ask(viewer, "GET", f"/alerts/{number}")).json["history"]
    assert [(one["change"], one["actor"]) for one in history] == [
        ("opened", "hub"), ("acknowledged", "ann"), ("snoozed", "ann"), ("resolved", "ann"),
    ]  # fmt: skip
    assert number in [alert["id"] for alert in await listed(world, viewer, "?state=resolved")]


async def test_an_alert_of_somebody_elses_device_is_not_there(world: World) -> None:
    number = await raised(world, THEIRS)
    mine = await world.token(Role.OPERATOR, SCOPE)
    for step in ("", "/acknowledge", "/snooze", "/resolve"):
        method, body = ("POST", {"for_s": 60} if step == "/snooze" else {}) if step else ("GET", None)
        hidden = await world.ask(mine, method, f"/alerts/{number}{step}", body)
        absent = await world.ask(mine, method, f"/alerts/9999{step}", body)
        assert (hidden.status, hidden.key) == (absent.status, absent.key) == (404, "alert-not-found")
    assert (await world.rooms.alerts.detail(number)).alert.state == "open"


async def test_whoever_sees_one_device_learns_nothing_of_the_others_from_its_alert(world: World) -> None:
    mine = await world.token(Role.OPERATOR, SCOPE)
    number = await raised(world, OURS)
    answer = await world.ask(mine, "GET", f"/alerts/{number}")
    assert answer.status == 200
    assert THEIRS not in answer.text
    assert f"device:{OURS}" in {alert["scope"] for alert in await listed(world, mine)}


async def test_the_fleets_alert_is_shown_to_whoever_has_a_device_in_it_without_a_word_of_the_others(
    world: World,
) -> None:
    mine, nobodys = await world.token(Role.OPERATOR, SCOPE), await world.token(Role.OPERATOR, "site=none", name="none")
    wides = [alert for alert in await listed(world, mine) if alert["scope"] == "fleet"]
    (wide,) = (alert for alert in wides if alert["kind"] == "drift")
    assert wide["evidence"]["features"][0]["name"] == "x[1]"
    assert {tuple(one["current"]) for one in wide["evidence"]["features"]} == {()}
    assert [share["device"] for share in wide["evidence"]["devices"]] == [OURS]
    answer = await world.ask(mine, "GET", f"/alerts/{wide['id']}")
    assert (answer.status, THEIRS in answer.text) == (200, False)
    assert (await world.ask(mine, "POST", f"/alerts/{wide['id']}/resolve", {})).key == "scope-exceeded"
    assert await listed(world, nobodys) == []
    assert (await world.ask(nobodys, "GET", f"/alerts/{wide['id']}")).key == "alert-not-found"


async def test_what_a_module_is_compared_with_is_chosen_by_operators_who_see_all_of_it(world: World) -> None:
    operator, viewer = await world.token(Role.OPERATOR), await world.token(Role.VIEWER)
    mine = await world.token(Role.OPERATOR, SCOPE, name="scoped")
    wish = {"reference": "fleet"}
    assert (await world.ask(viewer, "PUT", "/watches/digits", wish)).status == 403
    assert (await world.ask(mine, "PUT", "/watches/digits", wish)).key == "scope-exceeded"
    theirs = await world.ask(mine, "PUT", "/watches/digits", wish | {"scope": f"device:{THEIRS}"})
    assert (theirs.status, theirs.key) == (404, "device-not-found")
    made = await world.ask(operator, "PUT", "/watches/digits", wish)
    assert (made.status, made.json["reference"]["kind"]) == (200, "fleet")
    assert [watch["module"] for watch in (await world.ask(operator, "GET", "/watches")).json] == ["digits"]
    assert (await world.ask(mine, "GET", "/watches")).json == []


REFUSED: tuple[tuple[str, str, dict[str, Any] | None, int, str], ...] = (
    ("GET", "/alerts?state=loud", None, 400, "query-invalid"),
    ("GET", "/alerts/x", None, 400, "path-invalid"),
    ("POST", "/alerts/1/snooze", {"for_s": 1e9}, 400, "snooze-invalid"),
    ("POST", "/alerts/1/snooze", {}, 400, "body-invalid"),
    ("PUT", "/watches/digits", {"reference": "yesterday"}, 400, "reference-invalid"),
    ("PUT", "/watches/digits", {"reference": "training", "scope": "cam-1"}, 400, "scope-invalid"),
    ("PUT", "/watches/digits", {"reference": "fleet", "scope": "group:camera=a"}, 400, "scope-invalid"),
    ("PUT", "/watches/faces", {"reference": "fleet"}, 404, "module-not-found"),
    ("PUT", "/watches/digits", {"reference": "version:7"}, 409, "reference-empty"),
    ("GET", "/drift?module=digits&group=north", None, 400, "group-invalid"),
    ("GET", "/drift?module=digits&reference=now", None, 400, "reference-invalid"),
)


async def test_what_cannot_be_done_says_why(world: World) -> None:
    for method, path, body, status, key in REFUSED:
        answer = await world.ask(world.admin, method, path, body)
        assert (answer.status, answer.key) == (status, key), answer.text


async def test_drift_of_a_group_and_against_another_reference_is_shown(world: World) -> None:
    (report,) = (await world.ask(world.admin, "GET", "/drift?module=digits&group=site=lab")).json
    assert (report["device"], report["rows"], report["reference"]) == ("site=lab", 400, "training")
    (report,) = (await world.ask(world.admin, "GET", "/drift?module=digits&reference=training")).json
    assert report["reference"] == "training"
    for query in ("reference=version:1", f"device={OURS}&reference=fleet"):  # of two nobody knows which one is odd
        answer = await world.ask(world.admin, "GET", f"/drift?module=digits&{query}")
        assert (answer.status, answer.key) == (409, "reference-empty")
