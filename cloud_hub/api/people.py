"""Routes of people and programs: login, who one is, users, service tokens, and the audit trail as a whole."""

from __future__ import annotations

import msgspec

from cloud_hub.api.answers import Pieces
from cloud_hub.api.pages import Page, WholeQuery, page_of_all
from cloud_hub.api.route import Call, Route
from cloud_hub.chain import Link
from cloud_hub.limits import network_of
from cloud_hub.people import ApiToken, NewApiToken, NewSession, NewUser, User, UserChange
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms


class Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A user's name and password."""

    name: str
    password: str


class NewPassword(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`current` is asked of users who change their own."""

    password: str
    current: str = ""


class WhoAmI(msgspec.Struct, frozen=True):
    """Who the token speaks for. `kind` is token, user or oidc; an empty `scope` is every device."""

    kind: str
    name: str
    role: Role
    scope: str
    actor: str
    expires_at: float | None


async def login(rooms: Rooms, call: Call) -> NewSession:
    body: Login = call.body
    return await rooms.people.login(body.name, body.password, network_of(call.request.remote))


async def logout(rooms: Rooms, call: Call) -> None:
    await rooms.people.logout(call.principal)


async def who_am_i(_rooms: Rooms, call: Call) -> WhoAmI:
    who = call.principal
    return WhoAmI(who.kind, who.name, who.role, str(who.scope), who.actor, who.expires_at)


async def list_users(rooms: Rooms, call: Call) -> Page[User]:
    query: WholeQuery = call.query
    return page_of_all(await rooms.people.list_users(), query, lambda user: (user.name,))


async def show_user(rooms: Rooms, call: Call) -> User:
    return await rooms.people.get_user(call.path["name"])


async def add_user(rooms: Rooms, call: Call) -> User:
    body: NewUser = call.body
    return await rooms.people.add_user(body, call.actor)


async def change_user(rooms: Rooms, call: Call) -> User:
    body: UserChange = call.body
    return await rooms.people.change_user(call.path["name"], body, call.actor)


async def set_password(rooms: Rooms, call: Call) -> None:
    body: NewPassword = call.body
    sender = network_of(call.request.remote)
    await rooms.people.set_password(call.path["name"], body.password, call.principal, body.current, sender)


async def list_tokens(rooms: Rooms, call: Call) -> Page[ApiToken]:
    query: WholeQuery = call.query
    found = await rooms.people.list_tokens()
    return page_of_all(found, query, lambda token: (token.created_at, token.id))


async def create_api_token(rooms: Rooms, call: Call) -> NewSession:
    body: NewApiToken = call.body
    return await rooms.people.create_token(body, call.actor)


async def revoke_api_token(rooms: Rooms, call: Call) -> None:
    await rooms.people.revoke_token(call.path["id"], call.actor)


async def audit_head(rooms: Rooms, call: Call) -> Link:
    call.access.require_everything("the audit trail as a whole")
    return await rooms.events.head()


async def export_audit(rooms: Rooms, call: Call) -> Pieces:
    call.access.require_everything("the audit trail as a whole")
    return Pieces("application/x-ndjson", rooms.events.export())


_USER = "/users/{name}"
ROUTES: tuple[Route, ...] = (
    Route("POST", "/login", login, "Log in with name and password", NewSession, body=Login, status=201, public=True),
    Route("POST", "/logout", logout, "End the session that this request came with", role=Role.VIEWER),
    Route("GET", "/whoami", who_am_i, "Who the token speaks for", WhoAmI, role=Role.VIEWER),
    Route("GET", "/users", list_users, "List users", list[User], query=WholeQuery, role=Role.ADMIN, paged=True),
    Route("GET", _USER, show_user, "Show a user", User, role=Role.ADMIN),
    Route("POST", "/users", add_user, "Add a user", User, body=NewUser, status=201, role=Role.ADMIN, whole=True),
    Route(
        "PATCH",
        _USER,
        change_user,
        "Change a user's role or scope, disable or enable them",
        User,
        body=UserChange,
        role=Role.ADMIN,
    ),
    Route(
        "PUT",
        f"{_USER}/password",
        set_password,
        "Set a password: one's own, or as an admin anybody's",
        body=NewPassword,
        role=Role.VIEWER,
    ),
    Route(
        "GET",
        "/api-tokens",
        list_tokens,
        "List service tokens",
        list[ApiToken],
        query=WholeQuery,
        role=Role.ADMIN,
        paged=True,
    ),
    Route(
        "POST",
        "/api-tokens",
        create_api_token,
        "Make a service token; its secret is shown once",
        NewSession,
        body=NewApiToken,
        status=201,
        role=Role.ADMIN,
        whole=True,
    ),
    Route("DELETE", "/api-tokens/{id}", revoke_api_token, "Revoke a service token", role=Role.ADMIN),
    Route("GET", "/audit/head", audit_head, "The end of the audit trail's chain of hashes", Link, role=Role.VIEWER),
    Route(
        "GET",
        "/audit/export",
        export_audit,
        "The whole audit trail, oldest first, one JSON object per line",
        media="application/x-ndjson",
        role=Role.VIEWER,
        slow=True,
    ),
)
