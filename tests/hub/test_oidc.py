"""People of an OpenID provider: its real tokens are taken, everything that looks like one is not."""

import asyncio
import base64
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import RSAKey

from cloud_hub import oidc
from cloud_hub.config import HubConfig
from cloud_hub.errors import BadRequest, Forbidden, HubError, Unauthorized, Unavailable
from cloud_hub.oidc import KEYS_LIFE_S, KEYS_STALE_S, REFETCH_PAUSE_S, Provider
from cloud_hub.oidc_settings import Grant, OidcSettings, check_url
from cloud_hub.roles import Principal, Role
from support.clock import SetClock
from support.fleets import OURS, THEIRS, open_world, settle_two_fleets
from support.issuer import AUDIENCE, Issuer, Key, make_key, open_issuer

GRANTS = {"admins": Grant(Role.ADMIN), "lab": Grant(Role.VIEWER, "site=lab")}
RSA, EC, OKP = (make_key(kind, kind.lower()) for kind in ("RSA", "EC", "OKP"))


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with open_issuer(RSA, EC, OKP) as issuer:
        yield issuer


def provider(issuer: Issuer, clock: SetClock) -> Provider:
    return Provider(OidcSettings(issuer.url, AUDIENCE, grants=GRANTS), clock)


async def refused(provider: Provider, token: str, family: type[HubError] = Unauthorized) -> HubError:
    with pytest.raises(family) as caught:
        await provider.principal(token)
    return caught.value


@pytest.mark.parametrize("key", [RSA, EC, OKP], ids=["rsa", "ec", "ed25519"])
async def test_a_token_by_any_kind_of_key_is_taken(issuer: Issuer, clock: SetClock, key: Key) -> None:
    who = await provider(issuer, clock).principal(issuer.token(key, clock()))
    assert isinstance(who, Principal)
    assert (who.actor, who.role, str(who.scope)) == ("oidc:ann@example.com", Role.VIEWER, "site=lab")
    assert who.expires_at == int(clock()) + 600


async def test_an_address_that_nobody_checked_is_not_a_name(issuer: Issuer, clock: SetClock) -> None:
    token = issuer.token(EC, clock(), email="boss@example.com", email_verified=False)
    assert (await provider(issuer, clock).principal(token)).actor == "oidc:u-17"


@pytest.mark.parametrize(
    ("groups", "role"), [(["lab", "admins"], Role.ADMIN), (["x", "lab"], Role.VIEWER), ("lab", Role.VIEWER)]
)
async def test_the_first_grant_that_somebody_has_counts(
    issuer: Issuer, clock: SetClock, groups: object, role: Role
) -> None:
    who = await provider(issuer, clock).principal(issuer.token(EC, clock(), groups=groups))
    assert who.role is role


@pytest.mark.parametrize("groups", [[], ["others"], None, 7, {"lab": True}, [["lab"]]])
async def test_somebody_without_a_grant_gets_nothing(issuer: Issuer, clock: SetClock, groups: object) -> None:
    error = await refused(provider(issuer, clock), issuer.token(EC, clock(), groups=groups), Forbidden)
    assert error.key == "no-role"


@pytest.mark.parametrize(
    "spoiled",
    [
        {"iss": "https://elsewhere.example.com"},
        {"iss": None},
        {"aud": "another-client"},
        {"aud": ["a", "b"]},
        {"aud": None},
        {"exp": None},
        {"exp": "tomorrow"},
        {"sub": None},
        {"nbf": 1_900_000_000},
        {"iat": 1_900_000_000},
        {"email": "a\nb"},
    ],
    ids=lambda spoiled: "-".join(f"{name}={value}" for name, value in spoiled.items())[:40],
)
async def test_claims_that_do_not_fit_are_refused(issuer: Issuer, clock: SetClock, spoiled: dict[str, Any]) -> None:
    error = await refused(provider(issuer, clock), issuer.token(EC, clock(), **spoiled))
    assert error.key == "token-invalid"


async def test_an_audience_among_others_is_enough(issuer: Issuer, clock: SetClock) -> None:
    who = await provider(issuer, clock).principal(issuer.token(EC, clock(), aud=["x", AUDIENCE]))
    assert who.role is Role.VIEWER


async def test_an_expired_token_is_refused_after_a_small_leeway(issuer: Issuer, clock: SetClock) -> None:
    one, token = provider(issuer, clock), issuer.token(EC, clock())
    clock.advance(630)
    await one.principal(token)
    clock.advance(60)
    assert (await refused(one, token)).key == "token-expired"


def written(head: dict[str, str], claims: dict[str, Any]) -> str:
    """Head and claims as a JWT has them, not signed yet."""
    return ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (head, claims)
    )


async def test_a_token_without_a_signature_is_refused(issuer: Issuer, clock: SetClock) -> None:
    assert (
        await refused(provider(issuer, clock), written({"alg": "none", "kid": "ec"}, issuer.claims(clock())) + ".")
    ).key == "token-invalid"


async def test_the_public_key_is_no_secret_to_sign_with(issuer: Issuer, clock: SetClock) -> None:
    """The classic: HS256 with the bytes of the RSA key that everybody can fetch."""
    assert isinstance(RSA, RSAKey)
    content = written({"alg": "HS256", "kid": "rsa"}, issuer.claims(clock()))
    mac = hmac.digest(RSA.as_pem(private=False), content.encode(), "sha256")
    forged = f"{content}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    assert (await refused(provider(issuer, clock), forged)).key == "token-invalid"


async def test_a_secret_key_in_the_providers_set_does_not_count(clock: SetClock) -> None:
    secret = make_key("oct", "shared")
    async with open_issuer(EC, secret) as issuer:
        assert (await refused(provider(issuer, clock), issuer.token(secret, clock()))).key == "token-invalid"


async def test_a_token_of_a_stranger_with_the_right_key_id_is_refused(issuer: Issuer, clock: SetClock) -> None:
    forged = issuer.token(make_key("EC", "ec"), clock())
    assert (await refused(provider(issuer, clock), forged)).key == "token-invalid"


@pytest.mark.parametrize("token", ["a.b.c", "..", "e30.e30.e30", "é.é.é", "e30.e30." + "A" * 5000, "W10.W10.W10"])
async def test_nonsense_is_refused(issuer: Issuer, clock: SetClock, token: str) -> None:
    assert (await refused(provider(issuer, clock), token)).key == "token-invalid"


async def test_a_changed_payload_is_refused(issuer: Issuer, clock: SetClock) -> None:
    _, _, signature = issuer.token(EC, clock()).split(".")
    changed = written({"alg": "ES256", "kid": "ec"}, issuer.claims(clock(), groups=["admins"]))
    assert (await refused(provider(issuer, clock), f"{changed}.{signature}")).key == "token-invalid"


# --- keys ---------------------------------------------------------------------------------------------------------
async def test_keys_are_fetched_once_and_again_after_their_life(issuer: Issuer, clock: SetClock) -> None:
    one = provider(issuer, clock)
    for _ in range(5):
        await one.principal(issuer.token(EC, clock()))
    assert issuer.asked == 1
    clock.advance(KEYS_LIFE_S)
    await one.principal(issuer.token(EC, clock()))
    assert issuer.asked == 2


async def test_a_new_key_is_fetched_when_a_token_names_it(issuer: Issuer, clock: SetClock) -> None:
    one, new = provider(issuer, clock), make_key("EC", "new")
    await one.principal(issuer.token(EC, clock()))
    issuer.published = [new]
    clock.advance(REFETCH_PAUSE_S)
    await one.principal(issuer.token(new, clock()))
    assert (await refused(one, issuer.token(EC, clock()))).key == "token-invalid"


async def test_made_up_key_ids_do_not_become_requests(issuer: Issuer, clock: SetClock) -> None:
    one = provider(issuer, clock)
    for number in range(20):
        await refused(one, issuer.token(make_key("EC", f"made-up-{number}"), clock()))
    assert issuer.asked == 1


async def test_a_provider_that_is_down_locks_nobody_out_for_a_day(issuer: Issuer, clock: SetClock) -> None:
    one = provider(issuer, clock)
    await one.principal(issuer.token(EC, clock()))
    issuer.down = True
    clock.advance(KEYS_LIFE_S + 1)
    await one.principal(issuer.token(EC, clock()))
    clock.advance(KEYS_STALE_S)
    assert (await refused(one, issuer.token(EC, clock()), Unavailable)).key == "oidc-unavailable"


async def test_without_keys_nobody_is_let_in_and_the_provider_is_not_flooded(issuer: Issuer, clock: SetClock) -> None:
    issuer.down = True
    one = provider(issuer, clock)
    for _ in range(5):
        assert (await refused(one, issuer.token(EC, clock()), Unavailable)).key == "oidc-unavailable"
    issuer.down = False
    clock.advance(10)
    await one.principal(issuer.token(EC, clock()))


async def test_a_provider_that_stalls_is_given_up(
    issuer: Issuer, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "FETCH_S", 0.2)
    issuer.stall = asyncio.Event()
    error = await refused(provider(issuer, clock), issuer.token(EC, clock()), Unavailable)
    issuer.stall.set()
    assert error.key == "oidc-unavailable"


@pytest.mark.parametrize("spoiled", [{"says": "https://elsewhere.example.com"}, {"padding": "x" * 300_000}])
async def test_a_discovery_document_that_does_not_fit_is_refused(
    issuer: Issuer, clock: SetClock, spoiled: dict[str, str]
) -> None:
    for name, value in spoiled.items():
        setattr(issuer, name, value)
    error = await refused(provider(issuer, clock), issuer.token(EC, clock()), Unavailable)
    assert "expected" in error.message


# --- settings -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("url", ["http://id.example.com", "file:///etc/passwd", "ftp://localhost", "https://", ""])
def test_an_address_without_tls_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected an address with https"):
        check_url("issuer", url)


@pytest.mark.parametrize(
    "settings",
    [
        {"issuer": "https://id.example.com"},
        {"issuer": "https://id.example.com", "client_id": "m"},
        {"issuer": "https://id.example.com", "client_id": "m", "grants": {"a": Grant(Role.VIEWER, "not a query")}},
        {"issuer": "https://id.example.com", "client_id": "m", "grants": {"a": Grant(Role.ADMIN, "site=lab")}},
        {"issuer": "https://id.example.com", "client_id": "m", "grants": GRANTS, "ca": "/nowhere.pem"},
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="oidc"):
        OidcSettings(**settings)


def test_the_table_in_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    config = HubConfig(oidc=OidcSettings("https://id.example.com", "mooring", grants=GRANTS | {'a"b': GRANTS["lab"]}))
    config.write(tmp_path)
    assert HubConfig.load(tmp_path, {}) == config


def test_a_table_that_cannot_work_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "hub.toml").write_text('[oidc]\nissuer = "http://id.example.com"\n')
    with pytest.raises(BadRequest, match="expected an address with https"):
        HubConfig.load(tmp_path, {})


# --- over the API -------------------------------------------------------------------------------------------------
async def test_a_token_of_the_provider_works_as_a_bearer_token_within_its_scope(issuer: Issuer, tmp_path: Path) -> None:
    clock = SetClock()
    async with open_world(tmp_path, provider(issuer, clock)) as world:
        await settle_two_fleets(world)
        token = issuer.token(RSA, clock())
        assert (await world.ask(token, "GET", "/whoami")).json["actor"] == "oidc:ann@example.com"
        assert [device["id"] for device in (await world.ask(token, "GET", "/devices")).json] == [OURS]
        assert (await world.ask(token, "GET", f"/devices/{THEIRS}")).status == 404
        assert (await world.ask(token, "GET", "/users")).key == "role-missing"
        assert (await world.ask(token, "POST", "/logout")).key == "not-a-session"
        assert (await world.ask("mho_a.b.c", "GET", "/whoami")).key == "token-unknown"


async def test_without_a_provider_a_jwt_is_an_unknown_token(issuer: Issuer, tmp_path: Path, clock: SetClock) -> None:
    async with open_world(tmp_path) as world:
        answer = await world.ask(issuer.token(OKP, clock()), "GET", "/whoami")
        assert (answer.status, answer.key) == (401, "token-unknown")
