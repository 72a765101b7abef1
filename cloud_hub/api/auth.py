"""Who asks: the Authorization header becomes a principal, or a refusal that gives nothing away. Called by `gate`.

A token of this hub is looked up by its digest; a JWT, where an OpenID provider is configured, is checked by `oidc`.
"""

from __future__ import annotations

import hmac
from contextlib import suppress
from typing import Final

from cloud_hub.clock import Clock
from cloud_hub.errors import HubError, Unauthorized
from cloud_hub.oidc import Provider
from cloud_hub.roles import Principal, Role, Scope
from cloud_hub.store.engine import Store
from cloud_hub.tokens import PREFIX, add_token, find, new_token, note_use
from modules.bundle import sha256_hex

__all__ = ["add_token", "authenticate", "new_token"]

_SCHEME: Final = "bearer "
_MAX_HEADER: Final = 512
_MAX_JWT_HEADER: Final = 8192


async def authenticate(store: Store, clock: Clock, header: str | None, provider: Provider | None = None) -> Principal:
    """Who is behind an Authorization header. Raises Unauthorized."""
    if not header or not header.lower().startswith(_SCHEME):
        raise Unauthorized("token-missing", "expected the header Authorization: Bearer TOKEN")
    secret = header[len(_SCHEME) :].strip()
    if provider is not None and secret.count(".") == 2 and not secret.startswith(PREFIX):
        if len(header) > _MAX_JWT_HEADER:
            raise Unauthorized("token-invalid", f"expected a token of at most {_MAX_JWT_HEADER} characters")
        return await provider.principal(secret)
    if len(header) > _MAX_HEADER:
        raise Unauthorized("token-missing", "expected the header Authorization: Bearer TOKEN")
    return await _known(store, clock, sha256_hex(secret.encode("utf-8", "surrogateescape")))


async def _known(store: Store, clock: Clock, digest: str) -> Principal:
    async with store.read() as connection:
        row = await find(connection, digest)
    # The index was searched by a digest, of which timing tells nothing that helps to find the token.
    if row is None or not hmac.compare_digest(row.secret_sha256, digest):
        raise Unauthorized("token-unknown", "the token is not known to this hub")
    if row.expires_at is not None and row.expires_at <= clock():
        raise Unauthorized("token-expired", f"the token of {row.name} has expired")
    if row.user is not None and row.user_disabled_at is not None:
        raise Unauthorized("user-disabled", f"user {row.user} is disabled")
    with suppress(HubError):  # the database is busy: the request matters more than when the token was used
        await note_use(store, row, clock())
    if row.user is None:
        return Principal("token", row.name, Role(row.role), Scope.parse(row.scope), row.id, row.expires_at)
    return Principal("user", row.user, Role(row.user_role), Scope.parse(row.user_scope), row.id, row.expires_at)
