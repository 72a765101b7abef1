"""Users, sessions and service tokens: who has which role and scope, and the passwords of those who log in here.

Passwords are kept as Argon2id hashes, tokens as digests. Guessing is slowed down per user and sender. Every change is
one transaction with its event. Called by `api.people`; who a request comes from is `api.auth`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import Row, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.errors import BadRequest, Conflict, NotFound, TooMany, Unauthorized
from cloud_hub.events import Events
from cloud_hub.limits import Limiter, Rate
from cloud_hub.roles import Principal, Role, Scope
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import api_tokens, users
from cloud_hub.tokens import keep, new_token

SESSION_LIFE_S: Final = 12 * 3600.0
MIN_TOKEN_LIFE_S: Final = 60.0
MAX_TOKEN_LIFE_S: Final = 366 * 86_400.0
PASSWORD_CHARS: Final = (12, 256)
FAILURES_FROM_ONE_SENDER: Final = Rate(1 / 30, 5)
FAILURES_OF_ONE_USER: Final = Rate(1 / 60, 50)  # higher: nobody shall lock somebody else out with ease
HASHING_AT_ONCE: Final = 2  # each takes 64 MiB for a moment
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}"


class NewUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody who logs in here. `scope`: tag queries joined by ` or `; empty: every device."""

    name: str
    password: str
    role: Role = Role.VIEWER
    scope: str = ""


class UserChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What shall be different; null leaves it."""

    role: Role | None = None
    scope: str | None = None
    disabled: bool | None = None


class User(msgspec.Struct, frozen=True):
    """A user as others see them."""

    name: str
    role: Role
    scope: str
    created_at: float
    password_at: float
    disabled_at: float | None


class NewApiToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A service token to be made; `life_s` in seconds."""

    name: str
    role: Role = Role.VIEWER
    scope: str = ""
    life_s: float = 90 * 86_400.0

    def __post_init__(self) -> None:
        if not MIN_TOKEN_LIFE_S <= self.life_s <= MAX_TOKEN_LIFE_S:
            raise ValueError(f"life_s: expected {MIN_TOKEN_LIFE_S:.0f} to {MAX_TOKEN_LIFE_S:.0f}, got {self.life_s}")


class ApiToken(msgspec.Struct, frozen=True):
    """A service token as it is listed: never its secret. `used_at` is exact to some minutes."""

    id: str
    name: str
    role: Role
    scope: str
    created_at: float
    expires_at: float | None
    used_at: float | None


class NewSession(msgspec.Struct, frozen=True):
    """A secret that was just made; it cannot be had again."""

    token: str
    id: str
    expires_at: float


class People:
    """Every change is one transaction with its event."""

    def __init__(self, store: Store, events: Events, clock: Clock) -> None:
        self._store = store
        self._events = events
        self._clock = clock
        self._hasher = PasswordHasher()
        self._hashing = asyncio.Semaphore(HASHING_AT_ONCE)
        self._nobody = ""  # the hash that is checked for users who are not there
        self._by_sender = Limiter("logins that failed", FAILURES_FROM_ONE_SENDER, clock)
        self._by_user = Limiter("logins that failed", FAILURES_OF_ONE_USER, clock)

    # --- sessions -----------------------------------------------------------------------------------------------
    async def login(self, name: str, password: str, sender: str) -> NewSession:
        """A session for the right password. `sender` is where the request comes from.

        Raises Unauthorized `login-failed`, the same for a wrong name, and TooMany `login-throttled`.
        """
        self._take_attempt(name, sender)
        async with self._store.read() as connection:
            row = (await connection.execute(select(users).where(users.c.name == name))).one_or_none()
        right = await self._is_right(row, password)
        if row is None or not right or row.disabled_at is not None:
            await self._refused(name if row is not None else "", sender)
            raise Unauthorized("login-failed", "user name or password is wrong, or the user is disabled")
        self._by_sender.forget(_attempt(name, sender))
        self._by_user.forget(name)
        return await self._open_session(row, password)

    async def logout(self, principal: Principal) -> None:
        """Ends the session that the request came with. Raises Conflict `not-a-session`."""
        if principal.kind != "user":
            raise Conflict("not-a-session", "expected a session of a user; service tokens are revoked by an admin")
        async with self._store.write() as connection:
            await connection.execute(delete(api_tokens).where(api_tokens.c.id == principal.token_id))
            await self._events.record(connection, "session.closed", principal.actor, principal.name)

    async def _open_session(self, row: Row[Any], password: str) -> NewSession:
        token, now = new_token(), self._clock()
        fresh = await self._hash(password) if self._hasher.check_needs_rehash(row.password_hash) else None
        async with self._store.write() as connection:
            gone = api_tokens.c.user.is_not(None) & (api_tokens.c.expires_at <= now)
            await connection.execute(delete(api_tokens).where(gone))
            current = await self._user(connection, row.name)
            if current is None or (current.password_at, current.disabled_at) != (row.password_at, None):
                # It was right when it was checked, and has been changed since.
                raise Unauthorized("login-failed", "user name or password is wrong, or the user is disabled")
            if fresh is not None:
                await connection.execute(update(users).where(users.c.name == row.name).values(password_hash=fresh))
            expires_at = now + SESSION_LIFE_S
            made = await keep(connection, token, row.name, now, expires_at, Role(row.role), user=row.name)
            await self._events.record(connection, "session.opened", f"user:{row.name}", row.name, session=made)
        return NewSession(token, made, expires_at)

    async def _refused(self, name: str, sender: str) -> None:
        # A name that is not there may be a password in the wrong field: it is not kept.
        async with self._store.write() as connection:
            await self._events.record(connection, "session.refused", f"address:{sender}"[:80], name or "unknown")

    def _take_attempt(self, name: str, sender: str) -> None:
        """Taken before the password is checked, so that many attempts at once get no further than few in a row."""
        try:
            self._by_sender.take(_attempt(name, sender))
            self._by_user.take(name[:100])
        except TooMany as error:
            raise TooMany(
                "login-throttled",
                f"too many logins of this user have failed; try again in {error.retry_after_s:.0f} s",
                retry_after_s=error.retry_after_s,
            ) from error

    async def _is_right(self, row: Row[Any] | None, password: str) -> bool:
        """Takes as long for a user who is not there as for one who is."""
        self._nobody = self._nobody or await self._hash("nobody has this password")
        kept = self._nobody if row is None else str(row.password_hash)
        async with self._hashing:
            try:
                return await asyncio.to_thread(self._hasher.verify, kept, password[: PASSWORD_CHARS[1] + 1])
            except (VerificationError, InvalidHashError):
                return False

    async def _hash(self, password: str) -> str:
        async with self._hashing:
            return await asyncio.to_thread(self._hasher.hash, password)

    # --- users --------------------------------------------------------------------------------------------------
    async def add_user(self, new: NewUser, actor: str) -> User:
        """Raises BadRequest `name-invalid` `password-invalid` `scope-invalid`, Conflict `user-exists`."""
        scope = _scope_for(new.role, new.scope)
        check_name(new.name)
        check_password(new.password)
        hashed, now = await self._hash(new.password), self._clock()
        async with self._store.write() as connection:
            if await self._user(connection, new.name) is not None:
                raise Conflict("user-exists", f"there is a user {new.name} already; nothing was changed")
            row = {"name": new.name, "role": str(new.role), "scope": str(scope), "password_hash": hashed}
            await connection.execute(insert(users).values(**row, created_at=now, password_at=now))
            after = {"role": new.role, "scope": str(scope)}
            await self._events.record(connection, "user.created", actor, new.name, after=after)
            return _user(await self._required(connection, new.name))

    async def list_users(self) -> list[User]:
        async with self._store.read() as connection:
            return [_user(row) for row in await connection.execute(select(users).order_by(users.c.name))]

    async def get_user(self, name: str) -> User:
        """Raises NotFound `user-not-found`."""
        async with self._store.read() as connection:
            return _user(await self._required(connection, name))

    async def change_user(self, name: str, change: UserChange, actor: str) -> User:
        """Takes effect with the next request of the user. Raises NotFound `user-not-found`, Conflict `last-admin`."""
        now = self._clock()
        async with self._store.write() as connection:
            before = _user(await self._required(connection, name))
            role = before.role if change.role is None else change.role
            scope = _scope_for(role, before.scope if change.scope is None else change.scope)
            disabled_at = before.disabled_at
            if change.disabled is not None:
                disabled_at = (before.disabled_at or now) if change.disabled else None
            values = {"role": str(role), "scope": str(scope), "disabled_at": disabled_at}
            await connection.execute(update(users).where(users.c.name == name).values(values))
            await self._require_admin(connection)
            if disabled_at is not None:
                await connection.execute(delete(api_tokens).where(api_tokens.c.user == name))
            after = _user(await self._required(connection, name))
            await self._events.record(
                connection, "user.changed", actor, name, before=_rights(before), after=_rights(after)
            )
            return after

    async def set_password(self, name: str, password: str, principal: Principal, current: str, sender: str) -> None:
        """Ends every session of the user. Users set their own with the current one, admins anybody's.

        Raises NotFound `user-not-found` also for whoever may not set it, as `login` for a wrong current password.
        """
        check_password(password)
        own = principal.kind == "user" and principal.name == name
        if not own and principal.role is not Role.ADMIN:
            raise _unknown(name)
        if own:
            await self._check_current(name, current, sender)
        hashed = await self._hash(password)
        async with self._store.write() as connection:
            await self._required(connection, name)
            change = update(users).where(users.c.name == name)
            await connection.execute(change.values(password_hash=hashed, password_at=self._clock()))
            await connection.execute(delete(api_tokens).where(api_tokens.c.user == name))
            await self._events.record(connection, "user.password-set", principal.actor, name)

    async def _check_current(self, name: str, current: str, sender: str) -> None:
        self._take_attempt(name, sender)
        async with self._store.read() as connection:
            row = await self._required(connection, name)
        if not await self._is_right(row, current):
            await self._refused(name, sender)
            raise Unauthorized("login-failed", "the current password is wrong; nothing was changed")
        self._by_sender.forget(_attempt(name, sender))

    async def _user(self, connection: AsyncConnection, name: str) -> Row[Any] | None:
        return (await connection.execute(select(users).where(users.c.name == name))).one_or_none()

    async def _required(self, connection: AsyncConnection, name: str) -> Row[Any]:
        row = await self._user(connection, name)
        if row is None:
            raise _unknown(name)
        return row

    # --- service tokens -----------------------------------------------------------------------------------------
    async def create_token(self, new: NewApiToken, actor: str) -> NewSession:
        """Raises BadRequest `name-invalid` or `scope-invalid`."""
        scope = _scope_for(new.role, new.scope)
        check_name(new.name)
        token, now = new_token(), self._clock()
        expires_at = now + new.life_s
        async with self._store.write() as connection:
            made = await keep(connection, token, new.name, now, expires_at, new.role, scope)
            after = {"name": new.name, "role": new.role, "scope": str(scope), "expires_at": expires_at}
            await self._events.record(connection, "api-token.created", actor, made, after=after)
        return NewSession(token, made, expires_at)

    async def list_tokens(self) -> list[ApiToken]:
        """Service tokens, the expired ones too, oldest first."""
        query = select(api_tokens).where(api_tokens.c.user.is_(None)).order_by(api_tokens.c.created_at, api_tokens.c.id)
        async with self._store.read() as connection:
            return [msgspec.convert(row, ApiToken, from_attributes=True) for row in await connection.execute(query)]

    async def revoke_token(self, token_id: str, actor: str) -> None:
        """From now on the token is not known. Raises NotFound `api-token-not-found`, Conflict `last-admin`."""
        query = select(api_tokens).where(api_tokens.c.id == token_id, api_tokens.c.user.is_(None))
        async with self._store.write() as connection:
            row = (await connection.execute(query)).one_or_none()
            if row is None:
                raise NotFound("api-token-not-found", f"no service token {token_id[:40]}", id=token_id[:40])
            await connection.execute(delete(api_tokens).where(api_tokens.c.id == token_id))
            await self._require_admin(connection)
            before = {"name": row.name, "role": row.role, "scope": row.scope}
            await self._events.record(connection, "api-token.revoked", actor, token_id, before=before)

    async def _require_admin(self, connection: AsyncConnection) -> None:
        """Raises Conflict `last-admin` when nobody could change anything any more; the transaction ends with it."""
        lasting = or_(api_tokens.c.expires_at.is_(None), api_tokens.c.expires_at > self._clock())
        admin_tokens = select(func.count()).where(api_tokens.c.user.is_(None), api_tokens.c.role == "admin", lasting)
        admins = select(func.count()).where(users.c.role == "admin", users.c.disabled_at.is_(None))
        if not (await connection.execute(admin_tokens)).scalar_one() + (await connection.execute(admins)).scalar_one():
            raise Conflict("last-admin", "nobody would be admin any more; make another one first; nothing was changed")


def check_name(name: str) -> None:
    """Raises BadRequest `name-invalid` for a name that users and service tokens cannot have."""
    if re.fullmatch(_NAME, name) is None:
        raise BadRequest("name-invalid", f"name: expected 1 to 63 letters, digits or any of ._@-, got {name[:80]!r}")


def check_password(password: str) -> None:
    """Length is all that is asked: rules on characters make passwords no harder to guess."""
    low, high = PASSWORD_CHARS
    if not low <= len(password) <= high:
        raise BadRequest("password-invalid", f"password: expected {low} to {high} characters, got {len(password)}")


def _scope_for(role: Role, text: str) -> Scope:
    scope = Scope.parse(text)
    if role is Role.ADMIN and not scope.everything:
        raise BadRequest(
            "scope-invalid", "scope: an admin could give themselves any other; leave it empty or choose another role"
        )
    return scope


def _attempt(name: str, sender: str) -> str:
    return f"{name[:100]}\n{sender}"


def _user(row: Row[Any]) -> User:
    return msgspec.convert(row, User, from_attributes=True)


def _rights(user: User) -> Mapping[str, object]:
    return {"role": user.role, "scope": user.scope, "disabled": user.disabled_at is not None}


def _unknown(name: str) -> NotFound:
    return NotFound("user-not-found", f"no user {name[:63]}", name=name[:63])
