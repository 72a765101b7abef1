"""What every request passes before it is worked on: how often, who, may they, and which devices.

Refusals of somebody who is known go into the audit trail, those of strangers too, at a bounded rate. Called by `app`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from aiohttp import web

from cloud_hub.access import Access
from cloud_hub.api.auth import authenticate
from cloud_hub.api.route import Route
from cloud_hub.capabilities import Purpose
from cloud_hub.clock import Clock
from cloud_hub.errors import Forbidden, HubError, NotFound, Unauthorized
from cloud_hub.events import Events
from cloud_hub.limits import Limiter, Rate, network_of
from cloud_hub.oidc import Provider
from cloud_hub.roles import Principal, Role
from cloud_hub.store.engine import Store

PRINCIPAL: Final = Rate(100, 1000)
# Devices behind one address enrol all at once when a site is set up.
STRANGER: Final = Rate(20, 200)
LOGIN: Final = Rate(0.5, 20)  # each costs the hub 64 MiB for a moment
FILES: Final = Rate(500, 5000)  # ranges of files, by those who have a right to them; a site may be one address
REFUSALS: Final = Rate(1 / 60, 10)
NOBODY: Final = Principal("token", "", Role.VIEWER)
_LOGIN_PATH: Final = "/login"


class Gate:
    """One per API; holds the buckets. `allows` says whether a right opens a file; without it none does."""

    def __init__(
        self,
        store: Store,
        events: Events,
        clock: Clock,
        provider: Provider | None = None,
        principal: Rate = PRINCIPAL,
        stranger: Rate = STRANGER,
        allows: Callable[[Purpose, str, str], bool] = lambda _purpose, _digest, _right: False,
    ) -> None:
        self._allows = allows
        self._store = store
        self._events = events
        self._clock = clock
        self._provider = provider
        self._principals = Limiter("your requests", principal, clock)
        self._strangers = Limiter("requests without a token from your address", stranger, clock)
        self._files = Limiter("files asked for from your address", FILES, clock)
        self._logins = Limiter("logins from your address", LOGIN, clock)
        self._refusals = Limiter("refusals", REFUSALS, clock)

    async def enter(self, route: Route, request: web.Request) -> Access:
        """Raises TooMany `rate-limited`, Unauthorized, Forbidden `role-missing`, `scope-exceeded` and `right-invalid`,
        NotFound.
        """
        sender = network_of(request.remote)
        if route.public:
            (self._logins if route.path == _LOGIN_PATH else self._strangers).take(sender)
            return Access(NOBODY, self._store)
        if route.by_right and "right" in request.query:
            self._check_right(request, sender)
            return Access(NOBODY, self._store)
        principal = await self._principal(request, sender)
        self._principals.take(principal.token_id or principal.actor)
        access = Access(principal, self._store)
        try:
            _check_role(route, principal)
            await _check_subject(route, request.match_info, access)
        except (Forbidden, NotFound) as error:
            await self._record(principal.actor, route, error)
            raise
        return access

    def _check_right(self, request: web.Request, sender: str) -> None:
        """Not in the audit trail: devices come with rights that have ended, and ask for new ones."""
        digest, right = request.match_info["sha256"], request.query.get("right", "")
        if not self._allows("url", digest, right):
            self._strangers.take(sender)
            raise Forbidden("right-invalid", f"{digest[:80]}: this right is not one to this file, or it has ended")
        self._files.take(sender)

    async def _principal(self, request: web.Request, sender: str) -> Principal:
        try:
            return await authenticate(self._store, self._clock, request.headers.get("Authorization"), self._provider)
        except Unauthorized:
            self._strangers.take(sender)
            raise

    async def _record(self, actor: str, route: Route, error: HubError) -> None:
        """One line in the audit trail; somebody who is refused all the time does not fill it."""
        if not self._refusals.try_take(actor):
            return
        with suppress(HubError):  # the refusal stands, written down or not
            async with self._store.write() as connection:
                await self._events.record(
                    connection, "access.refused", actor, f"{route.method} {route.path}"[:200], key=error.key
                )


def _check_role(route: Route, principal: Principal) -> None:
    needed = route.role or Role.ADMIN
    if not principal.role.allows(needed):
        raise Forbidden(
            "role-missing",
            f"{route.method} {route.path}: expected the role {needed}, {principal.name} is {principal.role}; "
            "nothing was done",
            role=str(needed),
        )


async def _check_subject(route: Route, path: Mapping[str, str], access: Access) -> None:
    """A route below one device or one rollout is closed to whoever may not see it."""
    if route.path.startswith("/devices/{id}"):
        await access.require_device(path["id"])
    elif route.path.startswith("/rollouts/{id}"):
        await access.require_rollout(path["id"], change=route.method != "GET")
