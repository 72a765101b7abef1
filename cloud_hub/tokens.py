"""API tokens as rows: service tokens and sessions of users. Of each only the digest is kept. Rows only.

Part of `people`, which decides who gets one; the hub's set-up adds the first.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.roles import EVERYTHING, Role, Scope
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import api_tokens, users
from modules.bundle import sha256_hex

TOKEN_BYTES: Final = 32
PREFIX: Final = "mho_"
USE_NOTED_S: Final = 300.0  # how exactly it is known when a token was last used


def new_token() -> str:
    """A fresh secret. It is shown or written once and cannot be had again."""
    return f"{PREFIX}{secrets.token_urlsafe(TOKEN_BYTES)}"


async def add_token(
    store: Store,
    clock: Clock,
    name: str,
    token: str,
    expires_at: float | None = None,
    role: Role = Role.ADMIN,
    scope: Scope = EVERYTHING,
) -> None:
    """From now on `token` speaks for `name`, until `expires_at` (seconds since the epoch) where given."""
    async with store.write() as connection:
        await keep(connection, token, name, clock(), expires_at, role, scope)


async def keep(
    connection: AsyncConnection,
    token: str,
    name: str,
    now: float,
    expires_at: float | None,
    role: Role,
    scope: Scope = EVERYTHING,
    user: str | None = None,
) -> str:
    """The id of the new row, by which the token can be named without telling it."""
    row = {
        "id": secrets.token_hex(6),
        "secret_sha256": sha256_hex(token.encode()),
        "name": name,
        "user": user,
        "role": str(role),
        "scope": str(scope),
        "created_at": now,
        "expires_at": expires_at,
    }
    await connection.execute(insert(api_tokens).values(row))
    return str(row["id"])


async def find(connection: AsyncConnection, secret_sha256: str) -> Row[Any] | None:
    """The token's row with its user's `user_role`, `user_scope` and `user_disabled_at` (null for a service token)."""
    query = (
        select(
            api_tokens,
            users.c.role.label("user_role"),
            users.c.scope.label("user_scope"),
            users.c.disabled_at.label("user_disabled_at"),
        )
        .join(users, users.c.name == api_tokens.c.user, isouter=True)
        .where(api_tokens.c.secret_sha256 == secret_sha256)
    )
    return (await connection.execute(query)).one_or_none()


async def note_use(store: Store, row: Row[Any], now: float) -> None:
    """Remembers that the token is in use; most of the time that is known already."""
    if row.used_at is not None and now - row.used_at < USE_NOTED_S:
        return
    async with store.write() as connection:
        await connection.execute(update(api_tokens).where(api_tokens.c.id == row.id).values(used_at=now))
