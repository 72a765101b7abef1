"""Attacks on what the agent verifies that no other test tries; rows of docs/understand/attacks.md in the docstrings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Targets

from agent.config import StatePaths
from agent.errors import Refused, TrustError
from agent.trust import Desired, Trust, Verifier
from modules.messages import Answer, Doorbell, Get, Refusal, Repository, encode
from modules.targets import DEVICE_ID_FIELD
from modules.topics import down
from support import uptane
from support.hub import FakeHub
from support.links import make_link, running
from support.mosquitto import Mosquitto
from support.repository import PUBLISHER, Repo, World, make_module
from support.uptane import seal
from support.waiting import until


def refused(trust: Trust, world: World, key: str, match: str = ".") -> None:
    with pytest.raises(TrustError, match=match) as caught:
        trust.refresh({}, world.get)
    assert caught.value.key == key, caught.value


def names(desired: Desired) -> list[str]:
    return [module.name for module in desired.modules]


# Signatures and roots


@pytest.mark.parametrize("threshold", [-1, 0])
@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_a_threshold_that_needs_no_signature(trust: Trust, world: World, role: str, threshold: int) -> None:
    """Row 4."""
    trust.refresh({}, world.get)
    world.image.root.signed.version += 1
    seal(world.image, "root", lambda signed: signed["roles"][role].update(threshold=threshold))
    refused(trust, world, "bad-metadata")


@pytest.mark.parametrize("name", ["director", "image"])
def test_a_stolen_key_stays_revoked_when_the_root_that_revoked_it_is_hidden_again(
    trust: Trust, world: World, name: str
) -> None:
    """Row 8: the device saw the new root once, though all that came with it was refused."""
    trust.refresh({}, world.get)
    repo = world.director if name == "director" else world.image
    stolen = list(repo.signers["timestamp"])
    repo.rotate("timestamp")
    uptane.unsigned(repo, "timestamp")
    refused(trust, world, "bad-signature")
    del world.files[repo.name, "2.root.json"]
    repo.write("timestamp", stolen)
    refused(trust, world, "bad-signature")


# Delegations of the image repository


def delegate(
    role: Metadata[Targets], name: str, pattern: str, signer: CryptoSigner, *, terminating: bool = False
) -> None:
    held = role.signed.delegations
    if held is None:
        held = role.signed.delegations = Delegations({}, {})
    assert held.roles is not None
    held.keys[signer.public_key.keyid] = signer.public_key
    held.roles[name] = DelegatedRole(name, [signer.public_key.keyid], 1, terminating, paths=[pattern])


def add_role(repo: Repo, name: str) -> Metadata[Targets]:
    """A role with a key of its own, that nobody delegates to yet."""
    repo.signers[name] = [CryptoSigner.generate_ed25519()]
    repo.roles[name] = Metadata(Targets(expires=repo.expires))
    return repo.roles[name]


def test_a_role_that_two_delegate_to_is_checked_against_each(trust: Trust, world: World) -> None:
    """Row 17: what one delegator's key signed is not what the other delegator trusts."""
    image = world.image
    faces = world.add(*make_module("faces"), counter=1)
    world.assign(faces)
    targets = {**image.roles[PUBLISHER].signed.targets}
    image.roles.clear()
    image.targets.signed.delegations = None
    for name, pattern in (("one", "modules/*/digits/*/*"), ("two", "modules/*/faces/*/*")):
        add_role(image, name)
        delegate(image.targets, name, pattern, image.signers[name][0])
    shared = add_role(image, "shared")
    shared.signed.targets.update(targets)
    delegate(image.roles["one"], "shared", "modules/*/*/*/*", image.signers["shared"][0])
    delegate(image.roles["two"], "shared", "modules/*/*/*/*", CryptoSigner.generate_ed25519())
    world.publish()
    refused(trust, world, "bad-signature", "shared")


def test_delegations_in_a_circle_end(trust: Trust, world: World) -> None:
    """Row 18."""
    image = world.image
    image.targets.signed.delegations = None
    image.roles.clear()
    first, second = add_role(image, "first"), add_role(image, "second")
    delegate(image.targets, "first", "modules/*/*/*/*", image.signers["first"][0])
    delegate(first, "second", "modules/*/*/*/*", image.signers["second"][0])
    delegate(second, "first", "modules/*/*/*/*", image.signers["first"][0])
    world.publish()
    refused(trust, world, "not-in-image-repository")
    assert len(world.asked) < 20


def test_delegations_without_end_are_followed_only_so_far(trust: Trust, world: World) -> None:
    """Row 18."""
    image = world.image
    targets = dict(image.roles[PUBLISHER].signed.targets)
    image.targets.signed.delegations = None
    image.roles.clear()
    above = image.targets
    for number in range(40):
        role = add_role(image, f"role{number}")
        delegate(above, f"role{number}", "modules/*/*/*/*", image.signers[f"role{number}"][0])
        above = role
    above.signed.targets.update(targets)
    world.publish()
    refused(trust, world, "not-in-image-repository")
    assert len([name for repository, name in world.asked if repository == "image"]) < 45


def test_a_terminating_delegation_ends_the_search(trust: Trust, world: World) -> None:
    """Row 18: whom the publisher's paths were given to decides alone."""
    world.image.delegate("second", f"modules/{PUBLISHER}/*/*/*")
    signed = world.image.roles[PUBLISHER].signed.targets
    world.image.roles["second"].signed.targets.update(signed)
    signed.clear()
    world.publish()
    refused(trust, world, "not-in-image-repository")


@pytest.mark.parametrize("role", ["../a", "..", "a/b", "/abs", "#", "?x", "%2e%2e%2fa", "nul\0"])
def test_a_role_name_that_is_a_path_stays_in_the_folder(
    trust: Trust, world: World, state_dir: StatePaths, role: str
) -> None:
    """Row 19."""
    outside = {path for path in state_dir.root.parent.rglob("*") if "metadata" not in path.parts}
    image = world.image
    targets = dict(image.roles[PUBLISHER].signed.targets)
    image.targets.signed.delegations = None
    image.roles.clear()
    add_role(image, role).signed.targets.update(targets)
    delegate(image.targets, role, "modules/*/*/*/*", image.signers[role][0])
    world.publish()
    version = image.roles[role].signed.version
    world.files["image", f"{version}.{quote(role, '')}.json"] = image.sign(role)
    assert names(trust.refresh({}, world.get)) == ["digits"]
    assert {path for path in state_dir.root.parent.rglob("*") if "metadata" not in path.parts} == outside


# The timestamp that comes with the refusal of a root (decision 0014)


class Lying:
    """A hub that sends a timestamp of its choice along."""

    def __init__(self, world: World, repository: Repository, timestamp: bytes) -> None:
        self._world, self._repository, self._timestamp = world, repository, timestamp

    def get(self, repository: Repository, name: str, offset: int, length: int, held: bytes | None = None) -> Answer:
        try:
            return self._world.get(repository, name, offset, length, held)
        except Refused as error:
            sent = self._timestamp if repository == self._repository else error.timestamp
            raise Refused(str(error), error.key, sent) from error


@pytest.mark.parametrize("name", ["director", "image"])
def test_an_older_timestamp_sent_along_is_refused(trust: Trust, world: World, name: Repository) -> None:
    """Row 10."""
    older = world.files[name, "timestamp.json"]
    world.publish()
    trusted = trust.refresh({}, world.get)
    with pytest.raises(TrustError) as caught:
        trust.refresh({}, Lying(world, name, older).get)
    assert caught.value.key == "rollback"
    assert trust.refresh({}, world.get) == trusted


def test_an_endless_timestamp_sent_along_is_cut(trust: Trust, world: World) -> None:
    """Row 21."""
    trust.refresh({}, world.get)
    endless = world.files["image", "timestamp.json"] + b" " * 500_000
    with pytest.raises(TrustError) as caught:
        trust.refresh({}, Lying(world, "image", endless).get)
    assert caught.value.key == "oversized"


def test_the_timestamp_you_hold_is_a_lie_where_none_is_held(trust: Trust, world: World) -> None:
    """Row 14: the device asks for it as if nothing had been said."""
    assert names(trust.refresh({}, Lying(world, "image", b"").get)) == ["digits"]


def test_the_timestamp_you_hold_said_for_ever_ends_when_it_expires(
    trust: Trust, world: World, state_dir: StatePaths
) -> None:
    """Row 14: a freeze is bounded by the life of what is held."""
    trust.refresh({}, world.get)
    held = state_dir.metadata / "director" / "timestamp.json"
    uptane.expired(world.director, "timestamp")
    held.write_bytes(world.files["director", "timestamp.json"])  # as it will be, some day
    with pytest.raises(TrustError) as caught:
        trust.refresh({}, Lying(world, "director", b"").get)
    assert caught.value.key == "freeze"


# Other people's


def test_a_device_is_not_fooled_by_the_whole_world_of_another(trust: Trust, world: World) -> None:
    """Rows 27 and 28: everything another device gets, image repository included, at higher versions."""
    trusted = trust.refresh({}, world.get)
    director = {file: data for file, data in world.files.items() if file[0] == "director"}
    world.director.targets.signed.unrecognized_fields[DEVICE_ID_FIELD] = "cam-18"
    for _ in range(5):
        world.publish()
    refused(trust, world, "wrong-device")
    world.files.update(director)
    assert trust.refresh({}, world.get).modules == trusted.modules


# Over a real broker


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    folder = tmp_path / "broker"
    folder.mkdir()
    broker = Mosquitto(folder)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.kill()


async def test_metadata_that_comes_a_byte_at_a_time_is_given_up_at_the_deadline(
    trust: Trust, world: World, broker: Mosquitto
) -> None:
    """Row 22."""

    def trickle(get: Get) -> Answer | Refusal | None:
        answer = hub.from_files(get)
        if isinstance(answer, Answer):
            return Answer(answer.total, answer.offset, answer.data[:1])
        return answer

    async with FakeHub(broker, world.files) as hub, running(make_link(broker)) as link:
        hub.answer = trickle
        verifier = Verifier(trust, link, timeout_s=1.0)
        with pytest.raises(TrustError, match=r"took longer than 1\.0 s|given up") as caught:
            await verifier.refresh({})
        assert (caught.value.key, caught.value.attack) == ("unreachable", False)
        hub.answer = hub.from_files
        verifier.close()
        patient = Verifier(trust, link)
        assert names(await patient.refresh({})) == ["digits"]
        patient.close()


async def test_a_replayed_doorbell_is_only_a_question(trust: Trust, world: World, broker: Mosquitto) -> None:
    """Row 48: it carries no instruction, so old, foreign or enormous ones change nothing."""
    rung: list[int] = []
    async with FakeHub(broker, world.files) as hub, running(make_link(broker)) as link:
        link.on_doorbell(lambda doorbell: rung.append(doorbell.director_version))
        verifier = Verifier(trust, link)
        trusted = await verifier.refresh({})
        for version in (1, 2**40):
            await hub.ring(world.device, version)
        await until(lambda: 2**40 in rung, "the doorbells")
        assert await verifier.refresh({}) == trusted
        verifier.close()


async def test_what_stands_on_the_command_channel_is_not_obeyed(world: World, broker: Mosquitto) -> None:
    """Row 48: the channel is reserved; a message is obeyed only where it belongs."""
    rung: list[int] = []
    async with FakeHub(broker, world.files) as hub, running(make_link(broker)) as link:
        link.on_doorbell(lambda doorbell: rung.append(doorbell.director_version))
        await hub.say(down(world.device, "command"), encode(Doorbell(7)), retain=True)
        await hub.say(down(world.device, "data"), encode(Doorbell(8)))
        await hub.say(down(world.device, "command"), b'{"cmd": "reboot; rm -rf /"}')
        await hub.ring(world.device, 9)
        await until(lambda: bool(rung), "the doorbell that counts")
        assert rung == [9]
        assert link.connected.is_set()
