"""Users, sessions and service tokens over the API: who gets in, for how long, with which rights, and who sees to it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Row, select, update

from cloud_hub.errors import Unauthorized
from cloud_hub.people import SESSION_LIFE_S, People
from cloud_hub.roles import Role, Scope
from cloud_hub.store.tables import users
from support.fleets import OURS, THEIRS, Answer, World, add_device, open_world

PASSWORD = "correct horse battery"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


async def add(world: World, name: str = "ann", **more: object) -> Answer:
    return await world.ask(world.admin, "POST", "/users", {"name": name, "password": PASSWORD, **more})


async def login(world: World, name: str = "ann", password: str = PASSWORD) -> Answer:
    return await world.ask("", "POST", "/login", {"name": name, "password": password})


async def session(world: World, name: str = "ann") -> str:
    answer = await login(world, name)
    assert answer.status == 201, answer.text
    return str(answer.json["token"])


async def kinds(world: World) -> list[tuple[str, str, str]]:
    events = (await world.ask(world.admin, "GET", "/events")).json
    return [(event["kind"], event["actor"], event["subject"]) for event in events]


# --- users and sessions -------------------------------------------------------------------------------------------
async def test_a_user_logs_in_and_is_who_they_are(world: World) -> None:
    added = await add(world, role="operator", scope="site=lab")
    assert (added.status, added.json["role"], "password" in added.text.replace("password_at", "")) == (
        201,
        "operator",
        False,
    )
    who = (await world.ask(await session(world), "GET", "/whoami")).json
    assert (who["kind"], who["name"], who["actor"], who["role"]) == ("user", "ann", "user:ann", "operator")
    assert (who["scope"], who["expires_at"]) == ("site=lab", world.clock() + SESSION_LIFE_S)
    assert ("session.opened", "user:ann", "ann") in await kinds(world)


async def test_a_session_ends_after_its_life(world: World) -> None:
    await add(world)
    token = await session(world)
    world.clock.advance(SESSION_LIFE_S)
    assert (await world.ask(token, "GET", "/whoami")).key == "token-expired"


async def test_a_session_ends_with_logout(world: World) -> None:
    await add(world)
    token, other = await session(world), await session(world)
    assert (await world.ask(token, "POST", "/logout")).status == 204
    assert (await world.ask(token, "GET", "/whoami")).key == "token-unknown"
    assert (await world.ask(other, "GET", "/whoami")).status == 200


async def test_a_wrong_password_and_a_wrong_name_are_answered_alike(world: World) -> None:
    await add(world)
    wrong, nobody = await login(world, password="wrong password"), await login(world, "bob")
    assert (wrong.status, wrong.key) == (401, "login-failed")
    assert (wrong.status, wrong.text) == (nobody.status, nobody.text)


async def test_a_name_that_is_nobodys_is_not_written_down(world: World) -> None:
    await login(world, PASSWORD)
    assert all(PASSWORD not in subject for _, _, subject in await kinds(world))


async def test_guessing_is_slowed_down_and_a_right_password_then_waits_too(world: World) -> None:
    await add(world)
    keys = [(await login(world, password=f"guess number {number}")).key for number in range(6)]
    assert keys == ["login-failed"] * 5 + ["login-throttled"]
    refused = await login(world)
    assert (refused.status, refused.headers["Retry-After"]) == (429, "30")
    world.clock.advance(30)
    assert (await login(world)).status == 201


async def test_guesses_at_the_same_time_get_no_further_than_guesses_in_a_row(world: World) -> None:
    await add(world)
    answers = await asyncio.gather(*(login(world, password=f"guess number {number}") for number in range(12)))
    assert sorted(answer.status for answer in answers) == [401] * 5 + [429] * 7


async def test_one_user_does_not_lock_out_another(world: World) -> None:
    await add(world)
    await add(world, "bob")
    for number in range(6):
        await login(world, password=f"guess number {number}")
    assert (await login(world, "bob")).status == 201


async def test_passwords_and_tokens_are_kept_as_hashes_only(world: World) -> None:
    await add(world)
    token = await session(world)
    async with world.rooms.store.read() as connection:
        kept = (await connection.execute(select(users.c.password_hash))).scalar_one()
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    database = world.rooms.paths.database
    content = b"".join(file.read_bytes() for file in database.parent.glob(f"{database.name}*"))
    assert PASSWORD.encode() not in content
    assert token.encode() not in content


async def test_a_password_that_is_changed_while_it_is_checked_opens_no_session(world: World) -> None:
    await add(world)

    class Overtaken(People):
        async def _is_right(self, row: Row[Any] | None, password: str) -> bool:
            right = await super()._is_right(row, password)
            world.clock.now += 1.0
            body = {"password": f"new {PASSWORD}"}
            assert (await world.ask(world.admin, "PUT", "/users/ann/password", body)).status == 204
            return right

    people = Overtaken(world.rooms.store, world.rooms.events, world.clock)
    with pytest.raises(Unauthorized, match="password is wrong"):
        await people.login("ann", PASSWORD, "here")
    assert "session.opened" not in [kind for kind, _, _ in await kinds(world)]


async def test_a_hash_of_older_parameters_is_made_anew_at_the_next_login(world: World) -> None:
    from argon2 import PasswordHasher

    await add(world)
    weak = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
    async with world.rooms.store.write() as connection:
        await connection.execute(update(users).values(password_hash=weak))
    await session(world)
    async with world.rooms.store.read() as connection:
        assert "m=65536" in (await connection.execute(select(users.c.password_hash))).scalar_one()


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ({"name": "a b", "password": PASSWORD}, "name-invalid"),
        ({"name": "", "password": PASSWORD}, "name-invalid"),
        ({"name": "x" * 64, "password": PASSWORD}, "name-invalid"),
        ({"name": "ann", "password": "short"}, "password-invalid"),
        ({"name": "ann", "password": "x" * 257}, "password-invalid"),
        ({"name": "ann", "password": PASSWORD, "role": "king"}, "body-invalid"),
        ({"name": "ann", "password": PASSWORD, "scope": "not a query"}, "scope-invalid"),
        ({"name": "ann", "password": PASSWORD, "role": "admin", "scope": "site=lab"}, "scope-invalid"),
    ],
)
async def test_a_user_that_does_not_fit_is_refused(world: World, body: dict[str, Any], key: str) -> None:
    answer = await world.ask(world.admin, "POST", "/users", body)
    assert (answer.status, answer.key) == (400, key)


async def test_a_name_is_given_once(world: World) -> None:
    await add(world)
    assert (await add(world)).key == "user-exists"


async def test_a_disabled_user_is_out_at_once_and_can_come_back(world: World) -> None:
    await add(world)
    token = await session(world)
    changed = await world.ask(world.admin, "PATCH", "/users/ann", {"disabled": True})
    assert changed.json["disabled_at"] == world.clock()
    assert (await world.ask(token, "GET", "/whoami")).status == 401
    assert (await login(world)).key == "login-failed"
    await world.ask(world.admin, "PATCH", "/users/ann", {"disabled": False})
    assert (await login(world)).status == 201
    assert (await world.ask(token, "GET", "/whoami")).status == 401


async def test_a_new_role_and_scope_hold_from_the_next_request_on(world: World) -> None:
    await add_device(world.rooms, OURS, {"site": "lab"})
    await add_device(world.rooms, THEIRS, {"site": "lyon"})
    await add(world, role="operator", scope="site=lab")
    token = await session(world)
    assert (await world.ask(token, "GET", f"/devices/{THEIRS}")).status == 404
    await world.ask(world.admin, "PATCH", "/users/ann", {"role": "viewer", "scope": "site=lyon"})
    assert (await world.ask(token, "GET", f"/devices/{THEIRS}")).status == 200
    assert (await world.ask(token, "GET", f"/devices/{OURS}")).status == 404
    assert (await world.ask(token, "POST", "/tokens", {})).key == "role-missing"
    event = (await world.ask(world.admin, "GET", "/events?kind=user.changed")).json[0]
    assert event["details"]["before"] == {"role": "operator", "scope": "site=lab", "disabled": False}
    assert event["details"]["after"] == {"role": "viewer", "scope": "site=lyon", "disabled": False}


async def test_users_set_their_own_password_with_the_current_one(world: World) -> None:
    await add(world)
    token, fresh = await session(world), "another long password"
    path, body = "/users/ann/password", {"password": fresh}
    assert (await world.ask(token, "PUT", path, body)).key == "login-failed"
    assert (await world.ask(token, "PUT", path, body | {"current": PASSWORD})).status == 204
    assert (await world.ask(token, "GET", "/whoami")).status == 401
    assert (await login(world)).key == "login-failed"
    assert (await login(world, password=fresh)).status == 201


async def test_only_admins_set_the_passwords_of_others(world: World) -> None:
    await add(world)
    await add(world, "bob", role="operator")
    body = {"password": "another long password", "current": PASSWORD}
    theirs = await world.ask(await session(world, "bob"), "PUT", "/users/ann/password", body)
    nobodys = await world.ask(await session(world, "bob"), "PUT", "/users/joe/password", body)
    assert (theirs.status, theirs.text.replace("ann", "joe")) == (404, nobodys.text)
    assert (await world.ask(world.admin, "PUT", "/users/ann/password", body)).status == 204
    assert (await login(world, password="another long password")).status == 201


# --- service tokens -----------------------------------------------------------------------------------------------
async def create(world: World, **body: object) -> Answer:
    return await world.ask(world.admin, "POST", "/api-tokens", {"name": "ci", **body})


async def test_a_service_token_has_its_role_its_scope_and_its_end(world: World) -> None:
    made = (await create(world, role="operator", scope="site=lab", life_s=120)).json
    who = (await world.ask(made["token"], "GET", "/whoami")).json
    assert (who["kind"], who["actor"], who["role"], who["scope"]) == ("token", "ci", "operator", "site=lab")
    world.clock.advance(120)
    assert (await world.ask(made["token"], "GET", "/whoami")).key == "token-expired"


async def test_tokens_are_listed_without_their_secrets_and_with_their_last_use(world: World) -> None:
    made = (await create(world)).json
    await world.ask(made["token"], "GET", "/whoami")
    listed = await world.ask(world.admin, "GET", "/api-tokens")
    assert made["token"] not in listed.text
    (row,) = [row for row in listed.json if row["id"] == made["id"]]
    assert (row["name"], row["role"], row["used_at"]) == ("ci", "viewer", world.clock())


async def test_sessions_are_not_listed_as_service_tokens(world: World) -> None:
    await add(world)
    await session(world)
    assert [row["name"] for row in (await world.ask(world.admin, "GET", "/api-tokens")).json] == ["operator"]


async def test_a_revoked_token_is_out_at_once(world: World) -> None:
    made = (await create(world)).json
    assert (await world.ask(world.admin, "DELETE", f"/api-tokens/{made['id']}")).status == 204
    assert (await world.ask(made["token"], "GET", "/whoami")).key == "token-unknown"
    assert (await world.ask(world.admin, "DELETE", f"/api-tokens/{made['id']}")).key == "api-token-not-found"


async def test_the_last_admin_cannot_be_taken_away(world: World) -> None:
    (first,) = (await world.ask(world.admin, "GET", "/api-tokens")).json
    assert (await world.ask(world.admin, "DELETE", f"/api-tokens/{first['id']}")).key == "last-admin"
    assert (await world.ask(world.admin, "GET", "/whoami")).status == 200
    await add(world, role="admin")
    assert (await world.ask(world.admin, "DELETE", f"/api-tokens/{first['id']}")).status == 204
    token = await session(world)
    for change in ({"disabled": True}, {"role": "viewer"}):
        assert (await world.ask(token, "PATCH", "/users/ann", change)).key == "last-admin"


@pytest.mark.parametrize("life_s", [0, 59, 400 * 86_400, -1])
async def test_a_service_token_has_an_end_within_bounds(world: World, life_s: float) -> None:
    assert (await create(world, life_s=life_s)).key == "body-invalid"


# --- scopes -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["", "  ", "all", "site=lab or all"])
def test_these_scopes_are_every_device(text: str) -> None:
    assert Scope.parse(text).everything


def test_a_scope_reads_as_it_was_written() -> None:
    assert str(Scope.parse(" site=lab,rack=7  or  id=demo-* ")) == "site=lab,rack=7 or id=demo-*"


def test_operator_and_publisher_do_not_include_each_other() -> None:
    assert not Role.OPERATOR.allows(Role.PUBLISHER)
    assert not Role.PUBLISHER.allows(Role.OPERATOR)
