"""Renewal as the hub sees it: who may ask, what is good meanwhile, and what gives a second device away."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cloud_hub.config import HubPaths
from cloud_hub.errors import Conflict, HubError, Unauthorized, Unprocessable
from cloud_hub.monitoring import alert_book
from cloud_hub.renewals import Readmission
from modules.enrolment import RenewRequest, renewal_statement
from modules.messages import DeviceReport, Refusal, Renew, Renewed
from support.clock import SetClock
from support.devices import EnrolledDevice, make_report, make_request
from support.trust import OPERATOR, TrustWorld, trust_world

DAY_S = 86_400.0


@pytest.fixture
async def world(hub_paths: HubPaths, clock: SetClock) -> AsyncIterator[TrustWorld]:
    async with trust_world(hub_paths, clock) as world:
        yield world


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def wish(device: EnrolledDevice, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey) -> RenewRequest:
    csr = make_request(device.id, key)
    return RenewRequest(device.id, csr, signer.sign(renewal_statement(device.id, csr), ec.ECDSA(hashes.SHA256())))


def renewed(device: EnrolledDevice, key: ec.EllipticCurvePrivateKey, certificate: str) -> EnrolledDevice:
    return EnrolledDevice(key, msgspec.structs.replace(device.answer, certificate=certificate))


def serial(pem: str) -> int:
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


async def revoked(world: TrustWorld) -> set[int]:
    await world.revoker.publish()
    return {entry.serial_number for entry in x509.load_pem_x509_crl(world.paths.crl.read_bytes())}


async def test_both_certificates_are_good_until_the_new_one_has_been_seen(world: TrustWorld, clock: SetClock) -> None:
    device, key = await world.enrol("cam-1"), new_key()
    clock.advance(20 * DAY_S)
    answer = await world.renewals.renew(wish(device, key, device.key))
    fresh = renewed(device, key, answer.certificate)
    assert (await world.devices.get("cam-1")).renewing
    assert await world.devices.accept_report("cam-1", device.sign(make_report("cam-1", 1))) is not None
    assert await revoked(world) == set()
    assert await world.devices.accept_report("cam-1", fresh.sign(make_report("cam-1", 2))) is not None
    assert not (await world.devices.get("cam-1")).renewing
    assert await revoked(world) == {serial(device.answer.certificate)}
    with pytest.raises(Unprocessable, match="not signed by the key"):
        await world.devices.accept_report("cam-1", device.sign(make_report("cam-1", 3)))
    assert [event.kind for event in await world.events.list(subject="cam-1")][:3] == [
        "device.renewed", "device.renewal", "device.enrolled"
    ]  # fmt: skip


async def test_asking_again_for_the_same_key_gives_the_same_certificate(world: TrustWorld, clock: SetClock) -> None:
    device, key = await world.enrol("cam-1"), new_key()
    clock.advance(20 * DAY_S)
    first = await world.renewals.renew(wish(device, key, device.key))
    assert await world.renewals.renew(wish(device, key, device.key)) == first
    assert len(await world.events.list("device.renewal")) == 1


async def test_another_key_takes_the_place_of_one_that_was_never_used(world: TrustWorld, clock: SetClock) -> None:
    device = await world.enrol("cam-1")
    clock.advance(20 * DAY_S)
    lost = await world.renewals.renew(wish(device, new_key(), device.key))
    with pytest.raises(Conflict, match="expected at least 3600 s between two") as caught:
        await world.renewals.renew(wish(device, new_key(), device.key))
    assert caught.value.key == "renewal-too-soon"
    clock.advance(3600.0)
    await world.renewals.renew(wish(device, new_key(), device.key))
    assert await revoked(world) == {serial(lost.certificate)}


async def test_whoever_does_not_hold_the_old_key_gets_nothing_and_learns_nothing(world: TrustWorld) -> None:
    device, other = await world.enrol("cam-1"), await world.enrol("cam-2")
    for request in (
        wish(device, new_key(), other.key),
        RenewRequest("cam-1", make_request("cam-1"), b""),
        RenewRequest("ghost", make_request("ghost"), b"x"),
    ):
        with pytest.raises(Unauthorized, match="not signed by the key of the certificate that this hub knows"):
            await world.renewals.renew(request)


async def test_the_old_key_is_not_a_new_one(world: TrustWorld) -> None:
    device = await world.enrol("cam-1")
    with pytest.raises(Unprocessable, match="expected a new key, got the old one") as caught:
        await world.renewals.renew(wish(device, device.key, device.key))
    assert caught.value.key == "csr-same-key"


async def test_a_renewal_over_mqtt_is_answered_or_refused_with_a_key(world: TrustWorld, clock: SetClock) -> None:
    device = await world.enrol("cam-1")
    clock.advance(20 * DAY_S)
    request = wish(device, new_key(), device.key)
    assert isinstance(await world.renewals.answer("cam-1", Renew(request)), Renewed)
    assert await world.renewals.answer("cam-2", Renew(request)) == Refusal(
        "bad-request", "renewal on the topic of cam-2 for another device"
    )
    forged = await world.renewals.answer("cam-1", Renew(msgspec.structs.replace(request, signature=b"x")))
    assert isinstance(forged, Refusal)
    assert forged.key == "renewal-signature"


async def test_an_expired_certificate_is_renewed_only_while_an_operator_allows_it_and_once(
    world: TrustWorld, clock: SetClock
) -> None:
    device, key = await world.enrol("cam-1"), new_key()
    clock.advance(31 * DAY_S)
    with pytest.raises(Conflict, match="mooring device readmit cam-1") as caught:
        await world.renewals.renew(wish(device, key, device.key))
    assert caught.value.key == "certificate-expired"
    await world.renewals.readmit("cam-1", Readmission(3600.0), OPERATOR)
    clock.advance(3600.0)
    with pytest.raises(Conflict, match="expected an operator to let it back in"):
        await world.renewals.renew(wish(device, key, device.key))
    await world.renewals.readmit("cam-1", Readmission(3600.0), OPERATOR)
    given = await world.renewals.renew(wish(device, key, device.key))
    assert await world.renewals.renew(wish(device, key, device.key)) == given  # the first answer may have been lost
    clock.advance(7200.0)
    with pytest.raises(Conflict, match="expected an operator to let it back in"):
        await world.renewals.renew(wish(device, new_key(), device.key))
    kinds = [event.kind for event in await world.events.list(subject="cam-1")]
    assert kinds.count("device.readmission-allowed") == 2
    assert kinds.count("device.readmitted") == 1


async def test_a_revoked_device_is_neither_renewed_nor_readmitted(world: TrustWorld) -> None:
    device = await world.enrol("cam-1")
    await world.devices.retire("cam-1", OPERATOR)
    for attempt in (
        world.renewals.renew(wish(device, new_key(), device.key)),
        world.renewals.readmit("cam-1", Readmission(), OPERATOR),
    ):
        with pytest.raises(HubError, match="is retired") as caught:
            await attempt
        assert caught.value.key == "device-retired"


async def test_a_certificate_that_was_given_out_and_not_used_is_revoked_with_its_device(
    world: TrustWorld, clock: SetClock
) -> None:
    device = await world.enrol("cam-1")
    clock.advance(20 * DAY_S)
    answer = await world.renewals.renew(wish(device, new_key(), device.key))
    await world.devices.retire("cam-1", OPERATOR)
    assert await revoked(world) == {serial(device.answer.certificate), serial(answer.certificate)}


# --- clones ---------------------------------------------------------------------------------------------------------
def report(counter: int, boot: str, at: float = 1_700_000_000.0) -> DeviceReport:
    return msgspec.structs.replace(make_report("cam-1", counter), boot=boot, at=at)


async def clone_alerts(world: TrustWorld, state: str) -> list[alert_book.Alert]:
    async with world.store.read() as connection:
        return await alert_book.list_alerts(connection, state)


async def test_two_lives_that_take_turns_are_a_clone_told_once(world: TrustWorld) -> None:
    device = await world.enrol("cam-1")
    for counter, boot in ((1, "one"), (2, "two"), (3, "one"), (4, "two"), (5, "one")):
        await world.devices.accept_report("cam-1", device.sign(report(counter, boot)))
    (event,) = await world.events.list("device.clone-suspected")
    assert "one spoke again after two" in event.details["text"]
    (alert,) = await clone_alerts(world, "open")
    assert (alert.kind, alert.scope, alert.evidence.problems[0].count) == ("clone-suspected", "device:cam-1", 3)
    await world.enrol("cam-1")
    assert await clone_alerts(world, "open") == [], "it has another key now"


async def test_a_counter_that_goes_back_in_another_life_is_a_clone(world: TrustWorld) -> None:
    device = await world.enrol("cam-1")
    await world.devices.accept_report("cam-1", device.sign(report(9, "one")))
    assert await world.devices.accept_report("cam-1", device.sign(report(4, "copy"))) is None
    (event,) = await world.events.list("device.clone-suspected")
    assert "counts 4 after life one" in event.details["text"]


async def test_restarts_and_old_reports_that_are_repeated_are_no_clones(world: TrustWorld) -> None:
    device = await world.enrol("cam-1")
    first = device.sign(report(1, "one", at=1_700_000_000.0))
    second = device.sign(report(2, "two", at=1_700_000_100.0))
    for signed in (first, second, first, second, device.sign(report(3, "three", at=1_700_000_200.0)), first):
        await world.devices.accept_report("cam-1", signed)
    assert await world.events.list("device.clone-suspected") == []
