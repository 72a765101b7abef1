"""People whom an OpenID provider vouches for: their JWT is checked against the provider's keys, their claims become
a role and a scope.

Only signatures of asymmetric keys count. The keys are fetched with a deadline and a size limit, kept for a while, and
fetched again at once (but not often) for a key id that is new. Called by `api.auth`.
"""

from __future__ import annotations

import asyncio
import json
import math
import ssl
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import msgspec
from joserfc import jwt
from joserfc.errors import ExpiredTokenError, InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from cloud_hub.clock import Clock
from cloud_hub.errors import Forbidden, Unauthorized, Unavailable
from cloud_hub.oidc_settings import OidcSettings, check_url
from cloud_hub.roles import Principal, Scope

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519")
FETCH_S: Final = 5.0
MAX_DOCUMENT_BYTES: Final = 256 * 1024
KEYS_LIFE_S: Final = 600.0
KEYS_STALE_S: Final = 86_400.0  # a provider that is down for a while does not lock everybody out
FIRST_PAUSE_S: Final = 5.0  # between attempts while there are no keys at all
REFETCH_PAUSE_S: Final = 30.0  # tokens with made-up key ids must not become requests to the provider
LEEWAY_S: Final = 60
_KEY_TYPES: Final = ("EC", "OKP", "RSA")


class _Discovery(msgspec.Struct):
    issuer: str
    jwks_uri: str


@dataclass(frozen=True)
class _Keys:
    at: float
    found: KeySet


class Provider:
    """One OpenID provider. A fetch is rare, so each has a connection of its own and nothing is to be closed."""

    def __init__(self, settings: OidcSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._keys: _Keys | None = None
        self._tried_at = -math.inf
        self._turn = asyncio.Lock()

    async def principal(self, token: str) -> Principal:
        """Who the token is about.

        Raises Unauthorized `token-expired` or `token-invalid`, Forbidden `no-role`, Unavailable `oidc-unavailable`.
        """
        claims = await self._claims(token)
        try:
            checks = jwt.JWTClaimsRegistry(
                now=lambda: int(self._clock()),
                leeway=LEEWAY_S,
                iss={"essential": True, "value": self._settings.issuer},
                aud={"essential": True, "value": self._settings.client_id},
                exp={"essential": True},
                sub={"essential": True},
            )
            checks.validate(claims)
        except ExpiredTokenError as error:
            raise Unauthorized("token-expired", "the token of the OpenID provider has expired") from error
        except (JoseError, TypeError, ValueError, OverflowError) as error:
            raise _invalid(str(error)) from error
        return self._granted(claims)

    def _granted(self, claims: dict[str, Any]) -> Principal:
        values = claims.get(self._settings.claim, ())
        has = {values} if isinstance(values, str) else {value for value in _listed(values) if isinstance(value, str)}
        name = claims.get(self._settings.name_claim) or claims["sub"]
        if self._settings.name_claim == "email" and claims.get("email_verified") is False:
            name = claims["sub"]  # at some providers people write any address there
        if not isinstance(name, str) or not name.isprintable():
            raise _invalid(f"{self._settings.name_claim} is no printable text")
        for value, grant in self._settings.grants.items():
            if value in has:
                expires_at = float(claims["exp"])
                return Principal("oidc", name[:63], grant.role, Scope.parse(grant.scope), expires_at=expires_at)
        raise Forbidden(
            "no-role", f"{name[:63]}: none of the values in the claim {self._settings.claim} has a role on this hub"
        )

    async def _claims(self, token: str) -> dict[str, Any]:
        keys = await self._current()
        try:
            return _decoded(token, keys)
        except InvalidKeyIdError as error:
            fresh = await self._current(newer_than=keys)
            if fresh is keys:
                raise _invalid("its key is not one of the provider's") from error
            return _decoded_anew(token, fresh)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise _invalid(str(error)) from error

    async def _current(self, newer_than: KeySet | None = None) -> KeySet:
        """The provider's keys; with `newer_than` others than those where the provider may be asked again."""
        async with self._turn:
            now = self._clock()
            have = self._keys
            if have is not None and now - have.at < KEYS_LIFE_S and have.found is not newer_than:
                return have.found
            if now - self._tried_at >= (FIRST_PAUSE_S if have is None else REFETCH_PAUSE_S):
                self._tried_at = now
                try:
                    self._keys = have = _Keys(now, await self._fetch())
                except Unavailable:
                    if have is None:
                        raise
            if have is None or now - have.at > KEYS_STALE_S:
                raise Unavailable("oidc-unavailable", "the OpenID provider's keys could not be fetched for too long")
            return have.found

    async def _fetch(self) -> KeySet:
        issuer = self._settings.issuer
        try:
            async with asyncio.timeout(FETCH_S), aiohttp.ClientSession(trust_env=False) as session:
                raw = await self._get(session, f"{issuer.rstrip('/')}/.well-known/openid-configuration")
                told = msgspec.json.decode(raw, type=_Discovery)
                if told.issuer != issuer:
                    raise ValueError(f"expected the issuer {issuer}, got {told.issuer[:200]!r}")
                check_url("jwks_uri", told.jwks_uri)
                keys = json.loads(await self._get(session, told.jwks_uri))
                return KeySet.import_key_set({"keys": [key for key in keys["keys"] if _is_for_signatures(key)]})
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, TypeError, KeyError, JoseError) as error:
            why = str(error) or type(error).__name__
            raise Unavailable(
                "oidc-unavailable", f"the keys of the OpenID provider {issuer} could not be fetched: {why[:300]}"
            ) from error

    async def _get(self, session: aiohttp.ClientSession, url: str) -> bytes:
        tls = ssl.create_default_context(cafile=self._settings.ca) if self._settings.ca else True
        async with session.get(url, ssl=tls, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"{url}: expected status 200, got {response.status}")
            body = await response.content.read(MAX_DOCUMENT_BYTES + 1)
            while len(body) <= MAX_DOCUMENT_BYTES and (more := await response.content.read(MAX_DOCUMENT_BYTES + 1)):
                body += more
            if len(body) > MAX_DOCUMENT_BYTES:
                raise ValueError(f"{url}: expected at most {MAX_DOCUMENT_BYTES} bytes")
            return body


def _is_for_signatures(key: dict[str, Any]) -> bool:
    """Secret keys shared with the provider do not count: whoever checks such a signature could also make it."""
    return key.get("kty") in _KEY_TYPES and key.get("use", "sig") == "sig"


def _decoded(token: str, keys: KeySet) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, keys, algorithms=ALGORITHMS).claims
    return claims


def _decoded_anew(token: str, keys: KeySet) -> dict[str, Any]:
    try:
        return _decoded(token, keys)
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise _invalid(str(error)) from error


def _listed(values: object) -> list[object]:
    return values if isinstance(values, list) else []


def _invalid(why: str) -> Unauthorized:
    return Unauthorized("token-invalid", f"the token of the OpenID provider does not count: {why[:200]}")
