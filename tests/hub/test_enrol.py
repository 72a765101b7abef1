"""Enrolment: one token lets one device in once, and a request that is refused costs nothing."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from cloud_hub.claims import NewToken
from cloud_hub.config import HubPaths
from cloud_hub.errors import BadRequest, Conflict, HubError, NotFound, Unauthorized, Unprocessable
from modules.enrolment import ClaimToken, EnrollAnswer, EnrollRequest, EnrolmentError
from support.clock import SetClock
from support.devices import PROFILE, make_report, make_request
from support.trust import OPERATOR, TrustWorld, trust_world


@pytest.fixture
async def world(hub_paths: HubPaths, clock: SetClock) -> AsyncIterator[TrustWorld]:
    async with trust_world(hub_paths, clock) as world:
        yield world


async def token(world: TrustWorld, device: str = "", profile: str = "", life_s: float = 3600.0) -> str:
    new = NewToken(device=device, profile=profile, life_s=life_s, tags={"site": "lyon"})
    return (await world.claims.create(new, OPERATOR)).token


async def enrol(world: TrustWorld, token: str, device: str = "cam-1", profile: str = PROFILE) -> EnrollAnswer:
    return await world.devices.enroll(EnrollRequest(token, device, make_request(device), profile), device)


async def test_the_answer_is_everything_that_a_device_needs(world: TrustWorld) -> None:
    answer = await enrol(world, await token(world))
    certificate = x509.load_pem_x509_certificate(answer.certificate.encode())
    assert [name.value for name in certificate.subject] == ["cam-1"]
    assert answer.server_ca == world.ca.server_ca_pem
    assert (answer.mqtt_host, answer.mqtt_port) == ("localhost", world.config.mqtt_port)
    assert '"_type":"root"' in answer.image_root
    assert '"_type":"root"' in answer.director_root
    assert answer.image_root != answer.director_root
    device = await world.devices.get("cam-1")
    assert (device.profile, device.tags, device.director_version) == (PROFILE, {"site": "lyon"}, 1)
    assert [event.kind for event in await world.events.list(subject="cam-1")] == ["device.enrolled"]


async def test_the_token_names_the_hub_s_server_ca_and_only_its_digest_is_kept(world: TrustWorld) -> None:
    text = await token(world)
    assert ClaimToken.parse(text).ca_sha256 == world.ca.server_ca_sha256
    assert ClaimToken.parse(text).secret.encode() not in world.paths.database.read_bytes()


async def test_a_token_lets_one_device_in(world: TrustWorld) -> None:
    text = await token(world)
    await enrol(world, text)
    for device in ("cam-1", "cam-2"):
        with pytest.raises(Unauthorized, match="it has been used") as caught:
            await enrol(world, text, device)
        assert caught.value.key == "token-used"


async def test_of_two_who_come_with_one_token_at_once_one_gets_in(world: TrustWorld) -> None:
    text = await token(world)
    results = await asyncio.gather(
        *(enrol(world, text, device) for device in ("cam-1", "cam-2", "cam-3")), return_exceptions=True
    )
    assert sum(isinstance(result, EnrollAnswer) for result in results) == 1
    assert sum(isinstance(result, Unauthorized) for result in results) == 2


async def test_a_token_ends(world: TrustWorld, clock: SetClock) -> None:
    text = await token(world, life_s=60.0)
    clock.advance(60.0)
    with pytest.raises(Unauthorized, match="ended 0 s ago"):
        await enrol(world, text)


async def test_a_token_for_another_device_is_refused(world: TrustWorld) -> None:
    with pytest.raises(Unauthorized, match="made for another device"):
        await enrol(world, await token(world, "cam-2"), "cam-1")


async def test_a_token_for_another_profile_is_refused(world: TrustWorld) -> None:
    with pytest.raises(Unauthorized, match="made for profile raspberry-pi-5"):
        await enrol(world, await token(world, profile="raspberry-pi-5"))


async def test_a_token_of_nobody_is_refused_without_being_repeated(world: TrustWorld) -> None:
    made_up = str(ClaimToken("s" * 43, "0" * 64))
    with pytest.raises(Unauthorized, match="this hub did not make it") as caught:
        await enrol(world, made_up)
    assert "sss" not in str(caught.value)
    with pytest.raises(BadRequest, match="claim token"):
        await enrol(world, "password")


async def test_a_request_that_is_refused_leaves_the_token_good(world: TrustWorld) -> None:
    text = await token(world)
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for csr in (make_request("cam-2"), make_request("cam-1", rsa_key), "nothing"):
        with pytest.raises(Unprocessable, match="certificate request of cam-1"):
            await world.devices.enroll(EnrollRequest(text, "cam-1", csr, PROFILE), "cam-1")
    with pytest.raises(NotFound, match="no device profile toaster"):
        await enrol(world, text, profile="toaster")
    with pytest.raises(NotFound, match="no device cam-1"):
        await world.devices.get("cam-1")
    await enrol(world, text)


async def test_a_device_that_is_there_comes_in_again_only_with_a_token_made_for_it(world: TrustWorld) -> None:
    await enrol(world, await token(world))
    free = await token(world)
    with pytest.raises(Conflict, match="token made for exactly this id"):
        await enrol(world, free)
    await enrol(world, free, "cam-2")  # the refusal has not used it up


async def test_coming_in_again_revokes_the_old_certificate_and_starts_reports_anew(world: TrustWorld) -> None:
    first = await world.enrol("cam-1")
    await world.devices.accept_report("cam-1", first.sign(make_report("cam-1", counter=9)))
    second = await world.enrol("cam-1")
    revoked = {entry.serial_number for entry in x509.load_pem_x509_crl(world.paths.crl.read_bytes())}
    assert revoked == {x509.load_pem_x509_certificate(first.answer.certificate.encode()).serial_number}
    assert len(world.revocations) == 1
    assert await world.devices.accept_report("cam-1", second.sign(make_report("cam-1", counter=1))) is not None
    with pytest.raises(Unprocessable, match="not signed by the key"):
        await world.devices.accept_report("cam-1", first.sign(make_report("cam-1", counter=10)))


async def test_assignments_stay_when_a_device_comes_in_again_and_go_with_another_profile(world: TrustWorld) -> None:
    await world.add_signed("digits")
    await world.enrol("cam-1")
    before = await world.assign("cam-1", "digits")
    await world.enrol("cam-1")
    assert len(await world.desired.of("cam-1")) == 1
    assert (await world.devices.get("cam-1")).director_version > before
    await enrol(world, await token(world, "cam-1"), profile="raspberry-pi-5")
    assert await world.desired.of("cam-1") == ()


async def test_tokens_are_made_only_for_what_can_be(world: TrustWorld) -> None:
    for new, words in (
        (NewToken(device="_hub"), "device id"),
        (NewToken(profile="toaster"), "no device profile toaster"),
        (NewToken(tags={"a": ""}), "tag"),
    ):
        with pytest.raises(HubError, match=words):
            await world.claims.create(new, OPERATOR)
    with pytest.raises(ValueError, match="life_s: expected 60"):
        NewToken(life_s=1.0)


@pytest.mark.parametrize("device", ["_hub", "a", "a/b", "+", "cam\n"])
def test_an_id_that_no_certificate_may_hold_is_no_request(device: str) -> None:
    with pytest.raises(EnrolmentError, match="device id"):
        EnrollRequest("t", device, "csr", PROFILE)
