"""Rows of the attack table about identity: who gets a certificate, who may connect with one."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloud_hub.broker import Broker
from cloud_hub.claims import NewToken
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.doctor import Finding, examine
from cloud_hub.errors import HubError
from cloud_hub.initialise import initialise
from cloud_hub.revocations import ALARM_BELOW, ROUTINE_S, Revocations, read_list
from cloud_hub.trust.ca import Identity
from cloud_hub.trust.issuer import Issuer
from modules.enrolment import EnrollRequest
from support.clock import SetClock
from support.devices import PROFILE, make_request
from support.door import is_let_in
from support.trust import OPERATOR, TrustWorld, free_port, trust_world
from support.waiting import until_async

DAY_S = 86_400.0


@pytest.fixture
async def world(hub_paths: HubPaths) -> AsyncIterator[TrustWorld]:
    async with trust_world(hub_paths, SetClock(time.time())) as world:
        yield world


@pytest.fixture
async def broker(world: TrustWorld) -> AsyncIterator[Broker]:
    async with Broker(world.config, world.paths) as broker:
        await broker.ready()
        yield broker


def made_by_hand(world: TrustWorld, name: str, usage: x509.ObjectIdentifier, ends: timedelta) -> tuple[str, str]:
    """A certificate and its key (PEM) as the hub's authority never gives them out, signed with its real key."""
    authority = Identity.load(world.paths.device_ca_crt, world.paths.device_ca_key)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    )
    certificate = builder.sign(authority.key, hashes.SHA256())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return certificate.public_bytes(Encoding.PEM).decode(), pem


def context(world: TrustWorld, folder: Path, pair: tuple[str, str] | None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(world.paths.server_ca_crt))
    if pair is not None:
        for name, text in zip(("crt", "key"), pair, strict=True):
            (folder / name).write_text(text)
        made.load_cert_chain(folder / "crt", folder / "key")
    return made


async def test_row_50_only_a_good_client_certificate_of_this_hub_connects(
    world: TrustWorld, broker: Broker, tmp_path: Path
) -> None:
    client, week, port = ExtendedKeyUsageOID.CLIENT_AUTH, timedelta(days=7), world.config.mqtt_port
    assert await is_let_in(port, context(world, tmp_path, made_by_hand(world, "cam-1", client, week)))
    assert not await is_let_in(port, context(world, tmp_path, None)), "without one"
    server = made_by_hand(world, "cam-1", ExtendedKeyUsageOID.SERVER_AUTH, week)
    assert not await is_let_in(port, context(world, tmp_path, server)), "with one for servers"
    expired = made_by_hand(world, "cam-1", client, timedelta(days=-1))
    assert not await is_let_in(port, context(world, tmp_path, expired)), "with one that has expired"


async def test_row_50_a_revoked_certificate_does_not_connect(world: TrustWorld, broker: Broker, tmp_path: Path) -> None:
    tls = (await world.enrol("cam-1")).context(tmp_path)
    assert await is_let_in(world.config.mqtt_port, tls)
    await world.devices.retire("cam-1", OPERATOR)
    broker.reload()

    async def refused() -> bool:
        return not await is_let_in(world.config.mqtt_port, tls)

    await until_async(refused, "the broker to refuse the revoked certificate")
    assert await is_let_in(world.config.mqtt_port, (await world.enrol("cam-2")).context(tmp_path))


async def test_row_60_the_list_is_written_anew_long_before_it_ends(hub_paths: HubPaths, clock: SetClock) -> None:
    async with trust_world(hub_paths, clock) as world:
        ends = read_list(hub_paths.crl, clock())
        assert ends is not None
        await world.revoker.tick()
        told = len(world.revocations)
        clock.advance(world.config.crl_days * DAY_S * 0.4)
        await world.revoker.tick()
        renewed = read_list(hub_paths.crl, clock())
        assert renewed is not None
        assert renewed.ends_at > ends.ends_at
        assert len(world.revocations) == told + 1, "the broker has been told"


async def test_what_another_replica_has_revoked_comes_on_the_list(hub_paths: HubPaths, clock: SetClock) -> None:
    async with trust_world(hub_paths, clock) as world:
        told: list[None] = []
        life, issuer = timedelta(days=30), Issuer(world.ca, world.config.ca, timedelta(days=30))
        other = Revocations(
            world.store, world.events, world.ca, issuer, hub_paths.crl, life, clock, lambda: told.append(None), True
        )
        await other.tick()
        await world.enrol("cam-1")
        for expected in (1, 2, 2):
            assert len(told) == expected
            await world.devices.retire("cam-1", OPERATOR)
            clock.advance(ROUTINE_S)
            await other.tick()


async def test_row_60_a_list_that_cannot_be_written_is_an_alarm_many_days_before_it_ends(
    hub_paths: HubPaths, clock: SetClock
) -> None:
    async with trust_world(hub_paths, clock) as world:
        await world.revoker.tick()
        good = hub_paths.crl.read_bytes()
        hub_paths.crl.unlink()
        hub_paths.crl.mkdir()  # nothing can be written there
        (hub_paths.crl / "in the way").touch()
        clock.advance(world.config.crl_days * DAY_S * 0.6)
        for _ in range(3):
            await world.revoker.tick()
            clock.advance(10.0)
        (alarm,) = await world.events.list("crl.ending")
        assert alarm.subject == "crl"
        (hub_paths.crl / "in the way").unlink()
        hub_paths.crl.rmdir()
        hub_paths.crl.write_bytes(good)
        state = read_list(hub_paths.crl, clock())
        assert state is not None
        assert state.left < ALARM_BELOW
        assert state.ends_at - clock() > 7 * DAY_S, "days are left to mend it"
        await world.revoker.tick()
        mended = read_list(hub_paths.crl, clock())
        assert mended is not None
        assert mended.left > ALARM_BELOW


async def test_row_60_certificates_that_have_ended_leave_the_list(hub_paths: HubPaths, clock: SetClock) -> None:
    async with trust_world(hub_paths, clock) as world:
        await world.enrol("cam-1")
        await world.devices.retire("cam-1", OPERATOR)
        assert len(list(x509.load_pem_x509_crl(hub_paths.crl.read_bytes()))) == 1
        clock.advance((world.config.certificate_days + 2) * DAY_S)
        await world.revoker.publish()
        assert list(x509.load_pem_x509_crl(hub_paths.crl.read_bytes())) == []


def csr(name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None) -> str:
    return make_request(name, key)


@pytest.mark.parametrize(
    ("request_text", "words"),
    [
        (csr("cam-2"), "expected the common name cam-1"),
        (csr("+"), "expected the common name cam-1"),
        (csr("_hub"), "expected the common name cam-1"),
        (csr("cam-1", rsa.generate_private_key(public_exponent=65537, key_size=2048)), "expected an ECDSA P-256 key"),
        (csr("cam-1", ec.generate_private_key(ec.SECP256K1())), "expected an ECDSA P-256 key"),
        (csr("cam-1", ec.generate_private_key(ec.SECP192R1())), "expected an ECDSA P-256 key"),
        ("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----", "does not parse"),
    ],
    ids=["other-name", "wildcard", "the-hub", "rsa", "other-curve", "weak-curve", "no-request"],
)
async def test_row_62_a_bad_request_gets_no_certificate_and_leaves_a_trace(
    hub_paths: HubPaths, clock: SetClock, request_text: str, words: str
) -> None:
    async with trust_world(hub_paths, clock) as world:
        token = (await world.claims.create(NewToken(device="cam-1"), OPERATOR)).token
        with pytest.raises(HubError, match=words) as caught:
            await world.devices.enroll(EnrollRequest(token, "cam-1", request_text, PROFILE), "cam-1")
        assert caught.value.key == "csr-invalid"
        (event,) = await world.events.list("device.refused")
        assert (event.subject, event.details["key"]) == ("cam-1", "csr-invalid")


async def test_row_62_a_request_that_asks_to_be_an_authority_or_another_gets_neither(
    hub_paths: HubPaths, clock: SetClock
) -> None:
    async with trust_world(hub_paths, clock) as world:
        certificate = x509.load_pem_x509_certificate((await world.enrol("cam-1")).answer.certificate.encode())
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        with pytest.raises(x509.ExtensionNotFound):
            certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


async def test_row_62_tokens_that_are_used_expired_revoked_or_for_another_are_refused_and_leave_a_trace(
    hub_paths: HubPaths, clock: SetClock
) -> None:
    async with trust_world(hub_paths, clock) as world:
        issued = [
            await world.claims.create(NewToken(device=device), OPERATOR) for device in ("cam-1", "cam-2", "cam-3")
        ]
        used, revoked, expired = issued
        await world.enrol("cam-1", used.token)
        await world.claims.revoke(revoked.id, OPERATOR)
        cases = [
            ("cam-1", used, "token-used"),
            ("cam-2", revoked, "token-revoked"),
            ("cam-9", expired, "token-other-device"),
        ]
        for device, token, key in cases:
            with pytest.raises(HubError) as caught:
                await world.enrol(device, token.token)
            assert caught.value.key == key
        clock.advance(3600.0)
        with pytest.raises(HubError) as caught:
            await world.enrol("cam-3", expired.token)
        assert caught.value.key == "token-expired"
        traces = {event.details["key"] for event in await world.events.list("device.refused")}
        assert traces == {"token-used", "token-revoked", "token-other-device", "token-expired"}


async def test_row_62_a_token_that_is_older_than_the_device_does_not_take_it_over(
    hub_paths: HubPaths, clock: SetClock
) -> None:
    async with trust_world(hub_paths, clock) as world:
        early = await world.claims.create(NewToken(device="cam-1"), "user:of-another-scope")
        clock.advance(1.0)
        await world.enrol("cam-1")
        with pytest.raises(HubError, match="cam-1 is enrolled already") as caught:
            await world.enrol("cam-1", early.token)
        assert caught.value.key == "device-exists"
        await world.enrol("cam-1")  # with a token that was made since


async def test_row_62_whoever_floods_with_one_token_does_not_flood_the_audit_trail(
    hub_paths: HubPaths, clock: SetClock
) -> None:
    async with trust_world(hub_paths, clock) as world:
        token = (await world.claims.create(NewToken(device="cam-1"), OPERATOR)).token
        for _ in range(20):
            with pytest.raises(HubError, match="made for another device"):
                await world.enrol("cam-2", token)
        assert len(await world.events.list("device.refused")) == 1


async def test_a_batch_token_lets_in_as_many_devices_of_its_pattern_as_it_is_for(
    hub_paths: HubPaths, clock: SetClock
) -> None:
    async with trust_world(hub_paths, clock) as world:
        issued = await world.claims.create(NewToken(device="cam-*", uses=2), OPERATOR)
        with pytest.raises(HubError, match="made for devices named cam-\\*"):
            await world.enrol("door-1", issued.token)
        await world.enrol("cam-1", issued.token)
        with pytest.raises(HubError, match="exactly this id"):
            await world.enrol("cam-1", issued.token)
        (known,) = await world.claims.list()
        assert (known.id, known.device, known.used, known.uses) == (issued.id, "cam-*", 1, 2)
        await world.enrol("cam-2", issued.token)
        with pytest.raises(HubError, match="used 2 times, as often as it may"):
            await world.enrol("cam-3", issued.token)
        assert await world.claims.list() == []
        assert [token.state for token in await world.claims.list(spent=True)] == ["used"]


@pytest.mark.parametrize("pattern", ["cam*/x", "[a]*", "CAM-*", "*" * 64, "cam-?*"])
async def test_a_pattern_that_no_id_can_match_makes_no_token(
    hub_paths: HubPaths, clock: SetClock, pattern: str
) -> None:
    async with trust_world(hub_paths, clock) as world:
        with pytest.raises(HubError, match="no token was made") as caught:
            await world.claims.create(NewToken(device=pattern, uses=5), OPERATOR)
        assert caught.value.key == "device-id-invalid"


def test_many_uses_for_one_id_are_no_token() -> None:
    with pytest.raises(ValueError, match="uses: expected 1 for the one device cam-1"):
        NewToken(device="cam-1", uses=5)


async def test_row_60_doctor_warns_days_before_the_list_ends_and_the_way_out_is_a_command(hub_paths: HubPaths) -> None:
    clock = SetClock(time.time())
    config = HubConfig(dev=True, public_host="localhost", mqtt_port=free_port(), api_port=free_port())
    await initialise(hub_paths.root, config, clock=clock)

    async def found() -> Finding:
        findings = await asyncio.to_thread(examine, hub_paths, clock)
        return next(finding for finding in findings if finding.subject == "revocation list")

    assert (await found()).state == "ok"
    clock.advance(config.crl_days * DAY_S * 0.6)
    assert ((await found()).state, "ends in 12" in (await found()).text) == ("note", True)
    clock.advance(config.crl_days * DAY_S)
    assert (await found()).state == "problem"
    assert "no device can connect" in (await found()).text
    clock.advance(-config.crl_days * DAY_S * 1.6)
    run = await asyncio.to_thread(mooring_hub, "crl", str(hub_paths.root), "--days", "365")
    assert run.returncode == 0, run.stderr
    state = read_list(hub_paths.crl, clock())
    assert state is not None
    assert state.ends_at - clock() > 360 * DAY_S
    assert (await found()).state == "ok"


def mooring_hub(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("mooring-hub")
    return subprocess.run([command, *arguments], capture_output=True, text=True, timeout=60, check=False)
