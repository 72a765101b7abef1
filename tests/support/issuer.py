"""The other party: an OpenID provider on a port of its own, with real keys. Tests make it rotate, lie or stall."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from joserfc import jwt
from joserfc.jwk import ECKey, KeyParameters, OctKey, OKPKey, RSAKey

AUDIENCE = "mooring"
Key = RSAKey | ECKey | OKPKey | OctKey
ALGORITHMS = {"RSA": "RS256", "EC": "ES256", "OKP": "Ed25519", "oct": "HS256"}


def make_key(kind: str, kid: str) -> Key:
    parameters: KeyParameters = {"kid": kid, "use": "sig"}
    if kind == "RSA":
        return RSAKey.generate_key(2048, parameters)
    if kind == "EC":
        return ECKey.generate_key("P-256", parameters)
    if kind == "OKP":
        return OKPKey.generate_key("Ed25519", parameters)
    return OctKey.generate_key(256, parameters)


@dataclass
class Issuer:
    """`published` are the keys that it tells; `asked` counts how often it was asked for them."""

    url: str = ""
    says: str | None = None  # another issuer in its discovery document
    published: list[Key] = field(default_factory=list)
    asked: int = 0
    down: bool = False
    stall: asyncio.Event | None = None
    padding: str = ""

    def claims(self, now: float, **more: Any) -> dict[str, Any]:
        base = {
            "iss": self.url, "aud": AUDIENCE, "sub": "u-17", "email": "ann@example.com", "groups": ["lab"],
            "iat": int(now), "exp": int(now) + 600,
        }  # fmt: skip
        return {name: value for name, value in (base | more).items() if value is not None}

    def token(self, key: Key, now: float, /, **more: Any) -> str:
        algorithm = ALGORITHMS[key.key_type]
        header = {"alg": algorithm, "kid": key.kid}
        return jwt.encode(header, self.claims(now, **more), key, algorithms=[algorithm])

    async def discovery(self, _request: web.Request) -> web.Response:
        if self.stall is not None:
            await self.stall.wait()
        if self.down:
            raise web.HTTPServiceUnavailable
        return web.json_response({"issuer": self.says or self.url, "jwks_uri": f"{self.url}/keys", "x": self.padding})

    async def keys(self, _request: web.Request) -> web.Response:
        self.asked += 1
        return web.json_response({"keys": [public(key) for key in self.published]})


def public(key: Key) -> dict[str, Any]:
    told: dict[str, Any] = dict(key.as_dict(private=isinstance(key, OctKey)))
    return told


@asynccontextmanager
async def open_issuer(*published: Key) -> AsyncIterator[Issuer]:
    issuer = Issuer(published=list(published))
    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", issuer.discovery)
    app.router.add_get("/keys", issuer.keys)
    async with TestServer(app, host="127.0.0.1") as server:
        issuer.url = str(server.make_url("/")).rstrip("/")
        yield issuer
