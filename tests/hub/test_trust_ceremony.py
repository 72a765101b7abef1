"""Ceremonies against a hub that holds no offline key: what it publishes, what it keeps pending, and what it refuses."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import Conflict, HubError, Unprocessable
from cloud_hub.operator import rotation
from cloud_hub.trust.ceremony import Ceremony
from cloud_hub.trust.expiry import ExpiryWatch
from cloud_hub.trust.keys import Keys
from modules.targets import ImageCustom, image_custom, to_custom
from support.ceremony import People
from support.clock import SetClock
from support.devices import PROFILE
from support.trust import OPERATOR, TrustWorld, find, free_port, refresh, trust_world

DAY = 86_400.0
PATH = f"modules/acme/digits/1/{PROFILE}.json"


@pytest.fixture
def now() -> SetClock:
    """The TUF client looks at the machine's clock, so the hub starts there."""
    return SetClock(time.time())


@pytest.fixture
async def world(hub_paths: HubPaths, now: SetClock, tmp_path: Path) -> AsyncIterator[TrustWorld]:
    config = HubConfig(publisher="acme", mqtt_port=free_port())
    async with trust_world(hub_paths, now, config, tmp_path / "offline") as world:
        yield world


@pytest.fixture
def people(world: TrustWorld, now: SetClock, tmp_path: Path) -> People:
    ceremony = Ceremony(world.store, world.blobs, world.events, Keys(world.paths.keys), now)
    return People(world, ceremony, tmp_path / "offline", now)


@pytest.fixture
async def proposal(world: TrustWorld, people: People) -> Metadata[Targets]:
    """The publisher's list with one module in it, not signed yet."""
    return await people.release("digits", await world.add_module("digits"))


async def found_by_a_client(world: TrustWorld, folder: Path, path: str = PATH) -> TargetFile | None:
    updater = await refresh(world.image.metadata, folder, await world.image.root_json())
    return await find(updater, path)


async def kinds(world: TrustWorld, start: str) -> list[str]:
    return [event.kind for event in await world.events.list() if event.kind.startswith(start)]


# --- publishers ---------------------------------------------------------------------------------------------------
async def test_what_the_publisher_signed_offline_is_published_and_taken_by_a_stock_client(
    world: TrustWorld, people: People, proposal: Metadata[Targets], tmp_path: Path
) -> None:
    outcome = await people.publish(proposal, "publisher-acme")
    assert (outcome.published, outcome.version) == (True, 2)
    target = await found_by_a_client(world, tmp_path / "client")
    assert target is not None
    assert image_custom(target.custom).release_counter == 1
    assert await kinds(world, "module.signed") == ["module.signed"]
    await world.enrol("cam-1")
    await world.assign("cam-1", "digits")  # refused for a module that counts as not signed


async def test_signing_again_gives_the_next_release_counter(
    world: TrustWorld, people: People, proposal: Metadata[Targets]
) -> None:
    await people.publish(proposal, "publisher-acme")
    digest = proposal.signed.targets[PATH].hashes["sha256"]
    again = await people.release("digits", digest)
    assert (await people.publish(again, "publisher-acme")).published
    targets = (await people.image()).publishers["acme"].signed.targets
    assert image_custom(targets[PATH].custom).release_counter == 2


async def refused(people: People, metadata: Metadata[Targets], *keys: str, publisher: str = "acme") -> HubError:
    before = (await people.image()).snapshot.version
    with pytest.raises((Conflict, Unprocessable)) as caught:
        await people.publish(metadata, *(keys or ("publisher-acme",)), publisher=publisher)
    assert (await people.image()).snapshot.version == before
    assert await people.ceremony.pending() == []
    return caught.value


async def test_a_list_signed_by_another_key_is_not_published(people: People, proposal: Metadata[Targets]) -> None:
    assert (await refused(people, proposal, "image-targets")).key == "threshold-not-met"


async def test_a_list_that_was_changed_after_signing_is_not_published(
    people: People, proposal: Metadata[Targets]
) -> None:
    people.sign(proposal, "publisher-acme")
    proposal.signed.targets[PATH].length += 1
    proposal.signed.unrecognized_fields["x"] = 1
    with pytest.raises(Unprocessable) as caught:
        await people.ceremony.submit_publisher("acme", proposal.to_bytes().decode(), OPERATOR)
    assert caught.value.key in {"threshold-not-met", "manifest-unknown"}


async def test_nobody_publishes_without_a_delegation(people: People, proposal: Metadata[Targets]) -> None:
    assert (await refused(people, proposal, publisher="mallory")).key == "not-delegated"


async def test_a_publisher_says_nothing_about_another_s_paths(people: People, proposal: Metadata[Targets]) -> None:
    proposal.signed.targets[PATH.replace("acme", "other")] = proposal.signed.targets.pop(PATH)
    assert (await refused(people, proposal)).key == "path-not-delegated"


async def test_a_path_that_climbs_out_is_refused(people: People, proposal: Metadata[Targets]) -> None:
    proposal.signed.targets["modules/acme/../other/1/x.json"] = proposal.signed.targets.pop(PATH)
    assert (await refused(people, proposal)).key == "path-not-delegated"


async def test_a_version_is_not_left_out_and_not_repeated(people: People, proposal: Metadata[Targets]) -> None:
    for version in (1, 3):
        proposal.signed.version = version
        error = await refused(people, proposal)
        assert (error.key, error.fields["expected"]) == ("version-not-next", 2)


async def test_an_expired_list_is_refused(people: People, proposal: Metadata[Targets]) -> None:
    proposal.signed.expires = proposal.signed.expires.replace(year=2020)
    assert (await refused(people, proposal)).key == "metadata-expired"


async def test_a_publisher_delegates_no_further(people: People, proposal: Metadata[Targets]) -> None:
    proposal.signed.delegations = (await people.image()).targets.signed.delegations
    assert (await refused(people, proposal)).key == "delegation-invalid"


async def test_what_was_published_does_not_vanish_silently(people: People, proposal: Metadata[Targets]) -> None:
    await people.publish(proposal, "publisher-acme")
    empty = Metadata(Targets(3, expires=people.until()))
    assert (await refused(people, empty)).key == "target-removed"


async def test_a_signed_module_keeps_its_manifest(
    world: TrustWorld, people: People, proposal: Metadata[Targets]
) -> None:
    await people.publish(proposal, "publisher-acme")
    following = (await people.image()).publishers["acme"]
    following.signed.version += 1
    following.signed.targets[PATH].hashes["sha256"] = "0" * 64
    assert (await refused(people, Metadata(following.signed))).key == "target-changed"


async def test_a_manifest_that_was_not_built_here_is_refused(people: People, proposal: Metadata[Targets]) -> None:
    proposal.signed.targets[PATH].hashes["sha256"] = "0" * 64
    assert (await refused(people, proposal)).key == "manifest-unknown"


async def test_a_module_of_another_publisher_is_refused(
    world: TrustWorld, people: People, proposal: Metadata[Targets]
) -> None:
    people.new_key("publisher-other")
    await people.delegate("other", "publisher-other")
    proposal.signed.targets[PATH.replace("acme", "other")] = proposal.signed.targets.pop(PATH)
    proposal.signed.version = 1
    assert (await refused(people, proposal, "publisher-other", publisher="other")).key == "manifest-unknown"


async def test_a_release_counter_that_devices_would_refuse_is_refused(
    people: People, proposal: Metadata[Targets]
) -> None:
    await people.publish(proposal, "publisher-acme")
    digest = proposal.signed.targets[PATH].hashes["sha256"]
    again = await people.release("digits", digest)
    again.signed.targets[PATH].unrecognized_fields["custom"] = to_custom(ImageCustom((PROFILE,), 0))
    assert (await refused(people, again)).key == "counter-too-low"


async def test_a_module_signed_for_other_hardware_is_refused(people: People, proposal: Metadata[Targets]) -> None:
    proposal.signed.targets[PATH].unrecognized_fields["custom"] = to_custom(ImageCustom(("other",), 1))
    assert (await refused(people, proposal)).key == "target-invalid"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"signed":{"_type":"root"},"signatures":[]}', "é" * 10, "\ud800"])
async def test_what_is_not_metadata_is_refused(people: People, text: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        await people.ceremony.submit_publisher("acme", text, OPERATOR)
    assert caught.value.key == "metadata-invalid"


async def test_two_of_two_publishers_must_sign_and_the_first_waits(
    world: TrustWorld, people: People, tmp_path: Path
) -> None:
    people.new_key("second")
    # The step between: with one of two the list that stands stays valid; then it is signed by both.
    await people.delegate("acme", "publisher-acme", "second")
    await people.publish(await _renewal(people), "publisher-acme", "second")
    await people.delegate("acme", "publisher-acme", "second", threshold=2)
    proposal = await people.release("digits", await world.add_module("digits"))
    unsigned = proposal.to_bytes()
    outcome = await people.publish(proposal, "publisher-acme")
    assert (outcome.published, len(outcome.signed_by), outcome.threshold) == (False, 1, 2)
    assert await found_by_a_client(world, tmp_path / "client") is None
    (pending,) = await people.ceremony.pending()
    assert (pending.role, pending.version, pending.signatures) == ("acme", 3, 1)
    # The second signs the same content without the first one's signature at hand: the hub puts them together.
    outcome = await people.publish(Metadata[Targets].from_bytes(unsigned), "second")
    assert (outcome.published, len(outcome.signed_by)) == (True, 2)
    assert await found_by_a_client(world, tmp_path / "client") is not None
    assert await people.ceremony.pending() == []


async def _renewal(people: People) -> Metadata[Targets]:
    metadata = Metadata((await people.image()).publishers["acme"].signed)
    metadata.signed.version += 1
    return metadata


# --- who publishes ------------------------------------------------------------------------------------------------
async def test_a_new_publisher_signs_its_first_list_and_clients_take_it(
    world: TrustWorld, people: People, tmp_path: Path
) -> None:
    people.new_key("publisher-lab")
    assert (await people.delegate("lab", "publisher-lab")).published
    assert await found_by_a_client(world, tmp_path / "client") is None
    first = await people.release("digits", await world.add_module("digits", publisher="lab"), "lab")
    assert first.signed.version == 1
    await people.publish(first, "publisher-lab", publisher="lab")
    assert await found_by_a_client(world, tmp_path / "client", PATH.replace("acme", "lab")) is not None
    assert await kinds(world, "trust.publisher") == ["trust.publisher-set"]


async def test_a_revoked_publisher_is_believed_no_more_also_by_clients_that_knew_it(
    world: TrustWorld, people: People, proposal: Metadata[Targets], tmp_path: Path
) -> None:
    await people.publish(proposal, "publisher-acme")
    assert await found_by_a_client(world, tmp_path / "client") is not None
    await world.enrol("cam-1")
    await world.assign("cam-1", "digits")
    metadata = await people.next_targets()
    rotation.without_publisher(metadata, "acme")
    outcome = await people.ceremony.submit_targets(people.sign(metadata, "image-targets"), OPERATOR)
    assert outcome.notes == ("1 devices are assigned modules of acme: they keep what runs and take nothing",)
    assert await found_by_a_client(world, tmp_path / "client") is None
    assert (await people.image()).publishers == {}
    with pytest.raises(Unprocessable, match="no delegation"):
        await people.publish(await _after(proposal), "publisher-acme")


async def _after(metadata: Metadata[Targets]) -> Metadata[Targets]:
    metadata.signed.version += 1
    metadata.signatures.clear()
    return metadata


async def test_only_the_targets_key_says_who_publishes(people: People) -> None:
    metadata = await people.next_targets()
    rotation.without_publisher(metadata, "acme")
    for key in ("publisher-acme", "image-root-1"):
        with pytest.raises(Unprocessable) as caught:
            await people.ceremony.submit_targets(people.sign(metadata, key), OPERATOR)
        assert caught.value.key == "threshold-not-met"


async def test_new_keys_of_a_publisher_must_have_signed_what_it_lists(people: People) -> None:
    people.new_key("other")
    with pytest.raises(Conflict) as caught:
        await people.delegate("acme", "other")
    assert caught.value.key == "publisher-not-resigned"


async def test_a_delegation_is_for_the_publisher_s_own_paths_only(people: People) -> None:
    metadata = await people.next_targets()
    assert metadata.signed.delegations is not None
    assert metadata.signed.delegations.roles is not None
    metadata.signed.delegations.roles["acme"].paths = ["modules/*/*/*/*"]
    with pytest.raises(Unprocessable) as caught:
        await people.ceremony.submit_targets(people.sign(metadata, "image-targets"), OPERATOR)
    assert caught.value.key == "delegation-invalid"


# --- roots --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("repository", ["image", "director"])
async def test_two_people_change_a_root_key_one_after_the_other_and_clients_follow(
    world: TrustWorld, people: People, tmp_path: Path, repository: str
) -> None:
    await world.enrol("cam-1")
    old = [f"{repository}-root-{number}" for number in (1, 2, 3)]

    async def read(filename: str) -> bytes:
        image = repository == "image"
        return await (world.image.metadata(filename) if image else world.director.metadata("cam-1", filename))

    first = await (world.image.root_json() if repository == "image" else world.director.root_json())
    await refresh(read, tmp_path / "client", first)
    people.new_key("fresh")
    proposed = await people.next_root(repository, keep=old[1:], new=["fresh"])
    outcome = await people.ceremony.submit_root(repository, people.sign(proposed, old[1]), OPERATOR)  # type: ignore[arg-type]
    assert (outcome.published, outcome.threshold) == (False, 2)
    (pending,) = await people.ceremony.pending()
    second = Metadata[Root].from_bytes(pending.metadata.encode())
    outcome = await people.ceremony.submit_root(repository, people.sign(second, old[2]), OPERATOR)  # type: ignore[arg-type]
    assert outcome.published
    updater = await refresh(read, tmp_path / "client", first)
    assert b'"version":2' in (tmp_path / "client" / "root.json").read_bytes()
    assert people.public("fresh").keyid in updater._trusted_set.root.roles["root"].keyids
    assert await kinds(world, "trust.root") == ["trust.root-rotated"]


async def test_new_root_keys_alone_do_not_make_a_root(people: People) -> None:
    for name in ("n1", "n2"):
        people.new_key(name)
    proposed = await people.next_root(new=["n1", "n2"])
    outcome = await people.ceremony.submit_root("image", people.sign(proposed, "n1", "n2"), OPERATOR)
    assert not outcome.published
    assert (await people.root()).signed.version == 1
    outcome = await people.ceremony.submit_root(
        "image", people.sign(proposed, "image-root-1", "image-root-3"), OPERATOR
    )
    assert outcome.published
    assert len((await people.root()).signed.roles["root"].keyids) == 2


async def test_the_old_root_keys_alone_do_not_give_the_root_away(people: People) -> None:
    for name in ("n1", "n2"):
        people.new_key(name)
    proposed = await people.next_root(new=["n1", "n2"])
    text = people.sign(proposed, "image-root-1", "image-root-2")
    assert not (await people.ceremony.submit_root("image", text, OPERATOR)).published


async def test_a_root_that_would_lock_the_hub_out_is_refused(people: People) -> None:
    proposed = await people.next_root()
    people.new_key("foreign")
    proposed.signed.roles["timestamp"].keyids = []
    proposed.signed.add_key(people.public("foreign"), "timestamp")
    with pytest.raises(Unprocessable) as caught:
        await people.ceremony.submit_root("image", people.sign(proposed, "image-root-1", "image-root-2"), OPERATOR)
    assert caught.value.key == "root-unusable"


async def test_a_root_that_does_not_believe_the_targets_that_stand_is_refused(people: People) -> None:
    proposed = await people.next_root()
    people.new_key("foreign")
    proposed.signed.roles["targets"].keyids = []
    proposed.signed.add_key(people.public("foreign"), "targets")
    with pytest.raises(Unprocessable, match="not signed by the targets keys in it"):
        await people.ceremony.submit_root("image", people.sign(proposed, "image-root-1", "image-root-2"), OPERATOR)


async def test_a_root_does_not_skip_a_version(people: People) -> None:
    proposed = await people.next_root("director")
    proposed.signed.version = 3
    with pytest.raises(Conflict) as caught:
        await people.ceremony.submit_root("director", people.sign(proposed, "director-root-1"), OPERATOR)
    assert caught.value.key == "version-not-next"


# --- expiry -------------------------------------------------------------------------------------------------------
async def test_the_end_of_offline_signatures_is_announced_weeks_ahead_and_once_a_week(
    world: TrustWorld, people: People, now: SetClock
) -> None:
    watch = ExpiryWatch(world.store, world.events, now)
    assert await watch.check() == []
    now.advance(365 * DAY - 41 * DAY)
    await world.image.renew()
    soon = {(state.repository, state.role) for state in await watch.check()}
    assert soon == {("image", "root"), ("image", "targets"), ("image", "acme"), ("director", "root")}
    await watch.check()
    events = await world.events.list(kind="trust.expiring")
    assert len(events) == 4
    assert "rotate-root" in next(event for event in events if event.subject == "image/root").details["warning"]
    now.advance(7 * DAY)
    await world.image.renew()
    await watch.check()
    assert len(await world.events.list(kind="trust.expiring")) == 8


async def test_a_publisher_renews_what_has_expired(people: People, world: TrustWorld, now: SetClock) -> None:
    now.advance(366 * DAY)
    await world.image.renew()
    renewed = await people.release("digits", await world.add_module("digits"))
    assert (await people.publish(renewed, "publisher-acme")).published
