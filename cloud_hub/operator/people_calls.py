"""The part of the hub's client that has to do with people and programs. Mixed into `client.HubClient`."""

from __future__ import annotations

from cloud_hub.api.people import Login, NewPassword, WhoAmI
from cloud_hub.operator.transport import Transport, path_of
from cloud_hub.people import ApiToken, NewApiToken, NewSession, NewUser, User, UserChange
from cloud_hub.roles import Role


class PeopleCalls:
    _http: Transport

    async def login(self, name: str, password: str) -> NewSession:
        """Needs no token."""
        return await self._http.ask(NewSession, "POST", "/login", Login(name, password))

    async def logout(self) -> None:
        await self._http.raw("POST", "/logout")

    async def who_am_i(self) -> WhoAmI:
        return await self._http.ask(WhoAmI, "GET", "/whoami")

    async def users(self) -> list[User]:
        return await self._http.ask(list[User], "GET", "/users")

    async def user(self, name: str) -> User:
        return await self._http.ask(User, "GET", path_of("users", name))

    async def add_user(self, name: str, password: str, role: Role, scope: str = "") -> User:
        return await self._http.ask(User, "POST", "/users", NewUser(name, password, role, scope))

    async def change_user(
        self, name: str, role: Role | None = None, scope: str | None = None, disabled: bool | None = None
    ) -> User:
        """None leaves it as it is."""
        return await self._http.ask(User, "PATCH", path_of("users", name), UserChange(role, scope, disabled))

    async def set_password(self, name: str, password: str, current: str = "") -> None:
        await self._http.raw("PUT", path_of("users", name, "password"), NewPassword(password, current))

    async def api_tokens(self) -> list[ApiToken]:
        return await self._http.ask(list[ApiToken], "GET", "/api-tokens")

    async def create_api_token(self, name: str, role: Role, scope: str = "", life_s: float = 86_400.0) -> NewSession:
        """The token's text cannot be had again."""
        return await self._http.ask(NewSession, "POST", "/api-tokens", NewApiToken(name, role, scope, life_s))

    async def revoke_api_token(self, token_id: str) -> None:
        await self._http.raw("DELETE", path_of("api-tokens", token_id))
