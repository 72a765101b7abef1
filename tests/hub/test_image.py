"""The image repository, read by a stock TUF client: what is published is whole, signed by its role, and only grows."""

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tuf.api.exceptions import ExpiredMetadataError, UnsignedMetadataError

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import BadRequest, Conflict, NotFound
from cloud_hub.trust import setup
from modules.targets import image_custom
from support.clock import SetClock
from support.devices import PROFILE
from support.trust import OPERATOR, TrustWorld, find, free_port, refresh, trust_world

DAY = 86_400.0


@pytest.fixture
def now() -> SetClock:
    """The TUF client looks at the machine's clock, so the hub starts there."""
    return SetClock(time.time())


@pytest.fixture
async def world(hub_paths: HubPaths, now: SetClock) -> AsyncIterator[TrustWorld]:
    async with trust_world(hub_paths, now) as world:
        yield world


def path(name: str, version: int = 1) -> str:
    return f"modules/dev/{name}/{version}/{PROFILE}.json"


async def test_a_stock_client_finds_a_signed_module_with_its_digest_hardware_and_counter(
    world: TrustWorld, tmp_path: Path
) -> None:
    digest = await world.add_signed("digits")
    updater = await refresh(world.image.metadata, tmp_path / "client", await world.image.root_json())
    target = await find(updater, path("digits"))
    assert target is not None
    assert target.hashes == {"sha256": digest}
    assert image_custom(target.unrecognized_fields["custom"]).hardware_ids == (PROFILE,)
    assert image_custom(target.unrecognized_fields["custom"]).release_counter == 1
    target.verify_length_and_hashes(await world.blobs.read(digest))


async def test_a_module_that_is_not_signed_is_not_in_the_repository(world: TrustWorld, tmp_path: Path) -> None:
    await world.add_module("digits")
    updater = await refresh(world.image.metadata, tmp_path / "client", await world.image.root_json())
    assert await find(updater, path("digits")) is None


async def test_a_client_follows_one_publication_after_the_other(world: TrustWorld, tmp_path: Path) -> None:
    root = await world.image.root_json()
    for version in range(1, 4):
        await world.add_signed("digits", version, content=b"%d" % version)
        updater = await refresh(world.image.metadata, tmp_path / "client", root)
        assert await find(updater, path("digits", version)) is not None
    assert await world.image.version() == 4


async def test_signing_an_older_version_again_gives_it_the_highest_counter_of_its_name(world: TrustWorld) -> None:
    for version in (1, 2):
        await world.add_module("digits", version, content=b"%d" % version)
    await world.add_module("other")
    counters = [
        await world.image.sign_module(name, version, PROFILE, OPERATOR)
        for name, version in (("digits", 1), ("digits", 2), ("other", 1), ("digits", 1))
    ]
    assert counters == [1, 2, 1, 3]
    signed = await world.events.list(kind="module.signed")
    assert signed[0].details == {"release_counter": 3}
    assert signed[0].subject == f"digits/1/{PROFILE}"


async def test_a_module_that_does_not_exist_is_not_signed(world: TrustWorld) -> None:
    with pytest.raises(NotFound, match="no module ghost version 7") as caught:
        await world.image.sign_module("ghost", 7, PROFILE, OPERATOR)
    assert caught.value.key == "module-not-found"
    assert await world.image.version() == 1


async def test_a_file_that_is_not_there_is_not_found(world: TrustWorld) -> None:
    for name in ("2.root.json", "snapshot.json", "../hub.toml", "2.dev.json", ""):
        with pytest.raises(NotFound, match="the image repository has no file"):
            await world.image.metadata(name)


async def test_two_root_keys_must_agree_and_each_role_has_a_key_of_its_own(world: TrustWorld) -> None:
    root = json.loads(await world.image.root_json())["signed"]
    assert root["consistent_snapshot"] is True
    assert root["roles"]["root"]["threshold"] == 2
    assert len(root["roles"]["root"]["keyids"]) == 3
    keys = [key for role in root["roles"].values() for key in role["keyids"]]
    assert len(set(keys)) == 6


async def test_the_publisher_may_speak_only_for_paths_below_its_name(world: TrustWorld) -> None:
    delegations = json.loads(await world.image.metadata("1.targets.json"))["signed"]["delegations"]
    (role,) = delegations["roles"]
    assert (role["name"], role["paths"], role["terminating"]) == ("dev", ["modules/dev/*/*/*"], True)


async def test_a_changed_byte_of_metadata_is_refused_by_the_client(world: TrustWorld, tmp_path: Path) -> None:
    await world.add_signed("digits")

    async def tampered(filename: str) -> bytes:
        body = await world.image.metadata(filename)
        return body.replace(b'"version":2', b'"version":3') if filename == "timestamp.json" else body

    with pytest.raises(UnsignedMetadataError):
        await refresh(tampered, tmp_path / "client", await world.image.root_json())


async def test_old_signatures_are_renewed_when_somebody_asks(world: TrustWorld, now: SetClock, tmp_path: Path) -> None:
    now.advance(-8 * DAY)
    await world.add_signed("digits")  # signed so long ago that it has expired for the client

    async def frozen(filename: str) -> bytes:
        return before if filename == "timestamp.json" else await world.image.metadata(filename)

    before = await world.image.metadata("timestamp.json")
    root = await world.image.root_json()
    with pytest.raises(ExpiredMetadataError):
        await refresh(frozen, tmp_path / "frozen", root)
    now.advance(8 * DAY)
    updater = await refresh(world.image.metadata, tmp_path / "client", root)
    assert await find(updater, path("digits")) is not None
    assert await world.image.version() == 3


async def test_what_lasts_long_enough_is_not_signed_again(world: TrustWorld, now: SetClock) -> None:
    now.advance(3 * DAY)
    await world.image.metadata("timestamp.json")
    assert await world.image.version() == 1
    now.advance(DAY)
    await world.image.metadata("timestamp.json")
    assert await world.image.version() == 2


async def test_a_hub_that_holds_the_publisher_key_renews_its_targets_too(world: TrustWorld, now: SetClock) -> None:
    now.advance(200 * DAY)
    await world.image.metadata("timestamp.json")
    expires = json.loads(await world.image.metadata("2.dev.json"))["signed"]["expires"]
    assert expires > json.loads(await world.image.metadata("1.dev.json"))["signed"]["expires"]
    await world.image.metadata("2.targets.json")


async def test_a_failed_publication_leaves_nothing_behind(world: TrustWorld) -> None:
    digest = await world.add_module("digits")
    world.blobs.path(digest).unlink()
    with pytest.raises(NotFound, match="no blob"):
        await world.image.sign_module("digits", 1, PROFILE, OPERATOR)
    assert await world.image.version() == 1
    assert await world.events.list(kind="module.signed") == []


async def test_a_hub_without_the_publisher_key_says_so_and_signs_nothing(
    hub_paths: HubPaths, now: SetClock, tmp_path: Path
) -> None:
    config = HubConfig(publisher="acme", mqtt_port=free_port())
    async with trust_world(hub_paths, now, config, tmp_path / "offline") as world:
        await world.add_module("digits")
        with pytest.raises(Conflict, match="does not hold it") as caught:
            await world.image.sign_module("digits", 1, PROFILE, OPERATOR)
        assert caught.value.key == "offline-key"
        now.advance(4 * DAY)
        await world.image.metadata("timestamp.json")  # what is online is renewed all the same
        assert await world.image.version() == 2
    assert sorted(path.stem for path in hub_paths.keys.iterdir()) == [
        "director-snapshot", "director-targets", "director-timestamp", "image-snapshot", "image-timestamp",
    ]  # fmt: skip
    assert (tmp_path / "offline" / "publisher-acme.pem").stat().st_mode & 0o777 == 0o600


async def test_offline_keys_must_be_named_and_lie_outside(hub_paths: HubPaths, now: SetClock) -> None:
    with pytest.raises(BadRequest, match="--offline-keys"):
        await setup.create(hub_paths, HubConfig(), None, now)
    with pytest.raises(BadRequest, match="lies inside the hub"):
        await setup.create(hub_paths, HubConfig(), hub_paths.root / "offline", now)
    assert list(hub_paths.root.iterdir()) == []


async def test_a_hub_is_made_only_once(world: TrustWorld, now: SetClock) -> None:
    before = world.paths.server_ca_key.read_bytes()
    with pytest.raises(Conflict, match="there is a hub already"):
        await setup.create(world.paths, world.config, None, now)
    assert world.paths.server_ca_key.read_bytes() == before


async def test_every_private_file_is_for_its_owner_only(world: TrustWorld) -> None:
    private = [*world.paths.keys.iterdir(), *world.paths.ca.glob("*.key")]
    assert len(private) == 5 + 8 + 4
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert world.paths.keys.stat().st_mode & 0o777 == 0o700


async def test_a_key_that_others_can_read_is_not_used(world: TrustWorld) -> None:
    await world.add_module("digits")
    (world.paths.keys / "publisher-dev.pem").chmod(0o644)
    with pytest.raises(Conflict, match="0600") as caught:
        await world.image.sign_module("digits", 1, PROFILE, OPERATOR)
    assert caught.value.key == "key-exposed"
