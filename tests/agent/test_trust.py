"""Each test spoils one thing of a valid world; the agent refuses, says what it is, and trusts nothing less after."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Delegations, MetaFile

from agent.config import StatePaths
from agent.errors import LinkDown, LinkTimeout, Refused, TrustError
from agent.trust import Desired, Trust
from agent.trust_floor import Floor
from modules.messages import Answer, Repository
from modules.targets import DEVICE_ID_FIELD, ImageCustom, to_custom
from support.repository import HARDWARE, PUBLISHER, World, make_module
from support.waiting import until_blocking

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def trust(state_dir: StatePaths) -> Trust:
    return Trust("cam-17", HARDWARE, state_dir.roots, state_dir.metadata, time.time)


def refused(trust: Trust, world: World, key: str, match: str = ".", installed: dict[str, int] | None = None) -> None:
    with pytest.raises(TrustError, match=match) as caught:
        trust.refresh(installed or {}, world.get)
    assert caught.value.key == key, caught.value


def names(desired: Desired) -> list[tuple[str, int, int]]:
    return [(module.name, module.version, module.release_counter) for module in desired.modules]


# What is good


def test_a_valid_world_says_what_to_run(trust: Trust, world: World) -> None:
    desired = trust.refresh({}, world.get)
    assert names(desired) == [("digits", 1, 5)]
    module = desired.modules[0]
    assert (module.mode, module.deployment, module.sampling) == ("serve", "rollout-1", None)
    assert module.manifest.file("model.onnx").size == 1900
    assert desired.director_version == world.director.targets.signed.version
    assert desired.image_version == world.image.timestamp.signed.version


def test_a_warm_refresh_is_one_question_to_each_repository(trust: Trust, world: World) -> None:
    trust.refresh({}, world.get)
    world.asked.clear()
    trust.refresh({}, world.get)
    assert world.asked == [("director", "2.root.json"), ("image", "2.root.json")]


def test_an_older_hub_is_asked_for_the_timestamps_too(trust: Trust, world: World) -> None:
    world.says_ahead = False
    trust.refresh({}, world.get)
    world.asked.clear()
    trust.refresh({}, world.get)
    assert world.asked == [
        ("director", "2.root.json"),
        ("director", "timestamp.json"),
        ("image", "2.root.json"),
        ("image", "timestamp.json"),
    ]


def test_an_empty_set_of_this_device_is_good(trust: Trust, world: World) -> None:
    world.director.targets.signed.targets.clear()
    world.publish()
    assert trust.refresh({}, world.get).modules == ()


def test_a_new_version_is_taken_up(trust: Trust, world: World) -> None:
    trust.refresh({}, world.get)
    world.install(version=2, counter=6)
    assert names(trust.refresh({"digits": 5}, world.get)) == [("digits", 2, 6)]


def test_an_old_version_signed_again_is_the_way_back(trust: Trust, world: World) -> None:
    world.install(version=2, counter=6)
    trust.refresh({}, world.get)
    world.install(version=1, counter=7)
    assert names(trust.refresh({"digits": 6}, world.get)) == [("digits", 1, 7)]


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
@pytest.mark.parametrize("name", ["director", "image"])
def test_rotated_keys_are_followed(trust: Trust, world: World, name: str, role: str) -> None:
    trust.refresh({}, world.get)
    repo = world.director if name == "director" else world.image
    repo.rotate(role)
    world.publish()
    assert names(trust.refresh({}, world.get)) == [("digits", 1, 5)]


def test_enormous_versions_of_a_thief_are_forgotten_with_the_keys(trust: Trust, world: World) -> None:
    world.director.timestamp.signed.version = world.director.snapshot.signed.version = 1_000_000
    world.publish()
    trust.refresh({}, world.get)
    world.director.rotate("timestamp")
    world.director.rotate("snapshot")
    world.director.timestamp.signed.version = world.director.snapshot.signed.version = 10
    world.director.targets.signed.version = 2
    world.publish()
    assert trust.refresh({}, world.get).director_version == 11


def test_metadata_signed_anew_between_two_requests_is_asked_for_again(trust: Trust, world: World) -> None:
    once = iter([True])

    def get(repository: Repository, name: str, offset: int, length: int, held: bytes | None = None) -> Answer:
        answer = world.get(repository, name, offset, length, held)
        if (repository, name) == ("director", "timestamp.json") and next(once, False):
            world.director.publish()
        return answer

    assert names(trust.refresh({}, get)) == [("digits", 1, 5)]


# Signatures: rows 1 to 9


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
@pytest.mark.parametrize("name", ["director", "image"])
def test_metadata_without_a_signature(trust: Trust, world: World, name: str, role: str) -> None:
    repo = world.director if name == "director" else world.image
    repo.publish()
    repo.write(role, [])
    refused(trust, world, "bad-signature")


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_metadata_signed_by_a_stranger(trust: Trust, world: World, role: str) -> None:
    world.director.write(role, [CryptoSigner.generate_ed25519()])
    refused(trust, world, "bad-signature")


def test_a_publisher_role_signed_by_a_stranger(trust: Trust, world: World) -> None:
    world.image.write(PUBLISHER, [CryptoSigner.generate_ed25519()])
    refused(trust, world, "bad-signature")


def test_one_bit_flipped_in_what_was_signed(trust: Trust, world: World) -> None:
    place = ("director", "targets.json")
    world.files[place] = world.files[place].replace(b"rollout-1", b"rollout-2")
    refused(trust, world, "bad-signature")


def test_a_first_root_that_is_not_signed(trust: Trust, world: World, state_dir: StatePaths) -> None:
    (state_dir.roots / "director.root.json").write_bytes(world.director.sign("root", []))
    refused(trust, world, "bad-signature", "root this device was given")


def test_a_root_signed_by_one_key_where_two_are_needed(trust: Trust, world: World) -> None:
    world.director.root.signed.version = 2
    world.director.write("root", world.director.signers["root"][:1])
    refused(trust, world, "bad-signature", "2.root.json")


def test_a_threshold_met_by_one_key_twice(trust: Trust, world: World) -> None:
    world.director.root.signed.version = 2
    signer = world.director.signers["root"][0]
    world.director.write("root", [signer, signer])
    refused(trust, world, "bad-signature")


def test_a_new_root_that_the_old_keys_did_not_sign(trust: Trust, world: World) -> None:
    world.director.root.signed.version = 1
    old = world.director.signers["root"]
    world.director.rotate("root")
    world.director.write("root", [s for s in world.director.signers["root"] if s not in old])
    refused(trust, world, "bad-signature")


def test_a_new_root_that_its_own_keys_did_not_sign(trust: Trust, world: World) -> None:
    old = list(world.director.signers["root"])
    world.director.rotate("root")
    world.director.write("root", old)
    refused(trust, world, "bad-signature")


@pytest.mark.parametrize("version", [1, 3])
def test_a_root_whose_version_is_not_the_next(trust: Trust, world: World, version: int) -> None:
    world.director.root.signed.version = version
    world.files["director", "2.root.json"] = world.director.sign("root")
    refused(trust, world, "rollback", "2.root.json")


def test_a_threshold_of_zero(trust: Trust, world: World) -> None:
    world.director.root.signed.version = 2
    data = world.director.sign("root")
    world.files["director", "2.root.json"] = data.replace(b'"threshold": 1', b'"threshold": 0').replace(
        b'"threshold":1', b'"threshold":0'
    )
    refused(trust, world, "bad-metadata")


def test_a_role_in_another_roles_file(trust: Trust, world: World) -> None:
    world.files["director", "timestamp.json"] = world.director.sign("snapshot")
    refused(trust, world, "bad-metadata")


@pytest.mark.parametrize("data", [b"", b"{}", b"not json", b"[" * 10_000])
def test_metadata_that_is_none(trust: Trust, world: World, data: bytes) -> None:
    world.files["image", "timestamp.json"] = data
    refused(trust, world, "bad-metadata")


# Going back and standing still: rows 10 to 16


@pytest.mark.parametrize("name", ["director", "image"])
def test_an_older_timestamp(trust: Trust, world: World, name: str) -> None:
    old = world.files[name, "timestamp.json"]
    world.publish()
    trust.refresh({}, world.get)
    world.files[name, "timestamp.json"] = old
    refused(trust, world, "rollback")


def test_an_older_snapshot_behind_a_newer_timestamp(trust: Trust, world: World) -> None:
    trust.refresh({}, world.get)
    world.director.timestamp.signed.version += 1
    world.director.timestamp.signed.snapshot_meta = MetaFile(1)
    world.director.write("timestamp")
    refused(trust, world, "rollback")


def test_older_targets_behind_a_newer_snapshot(trust: Trust, world: World) -> None:
    trust.refresh({}, world.get)
    world.director.publish()
    world.director.snapshot.signed.meta["targets.json"] = MetaFile(1)
    world.director.write("snapshot")
    refused(trust, world, "rollback")


def test_a_role_that_vanished_from_the_snapshot(trust: Trust, world: World) -> None:
    trust.refresh({}, world.get)
    world.image.publish()
    del world.image.snapshot.signed.meta[f"{PUBLISHER}.json"]
    world.image.write("snapshot")
    refused(trust, world, "bad-metadata")


def test_older_metadata_after_the_folder_was_lost(trust: Trust, world: World, state_dir: StatePaths) -> None:
    old = dict(world.files)
    world.publish()
    trust.refresh({}, world.get)
    for name in ("director", "image"):
        for file in (state_dir.metadata / name).glob("*.json"):
            file.unlink()
    world.files.clear()
    world.files.update(old)
    refused(trust, world, "rollback", "expected version")


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
@pytest.mark.parametrize("name", ["director", "image"])
def test_expired_metadata(trust: Trust, world: World, name: str, role: str) -> None:
    repo = world.director if name == "director" else world.image
    repo.metadata(role).signed.expires = LONG_AGO
    if role == "root":
        repo.root.signed.version = 2
    repo.write(role)
    refused(trust, world, "freeze")


def test_the_same_metadata_once_it_expires(trust: Trust, world: World) -> None:
    world.director.timestamp.signed.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)
    world.director.write("timestamp")
    outcomes: list[str] = []

    def expired() -> bool:
        try:
            trust.refresh({}, world.get)
        except TrustError as error:
            outcomes.append(error.key)
        return bool(outcomes)

    until_blocking(expired, "the timestamp to expire")
    assert outcomes == ["freeze"]


def test_a_clock_far_behind(state_dir: StatePaths, trust: Trust, world: World) -> None:
    trust.refresh({}, world.get)
    late = Trust("cam-17", HARDWARE, state_dir.roots, state_dir.metadata, lambda: 0.0)
    refused(late, world, "clock", "set the clock")
    assert names(trust.refresh({}, world.get)) == [("digits", 1, 5)]


def test_a_clock_far_ahead(state_dir: StatePaths, trust: Trust, world: World) -> None:
    trust.refresh({}, world.get)
    world.director.timestamp.signed.expires = LONG_AGO
    world.director.timestamp.signed.version += 1
    world.director.write("timestamp")
    early = Trust("cam-17", HARDWARE, state_dir.roots, state_dir.metadata, lambda: time.time() + 3e9)
    refused(early, world, "clock", "is the clock years ahead")


def test_a_refused_timestamp_is_not_kept(trust: Trust, world: World) -> None:
    trust.refresh({}, world.get)
    good = world.director.timestamp.signed.expires
    world.director.timestamp.signed.version = 900
    world.director.timestamp.signed.expires = LONG_AGO
    world.director.write("timestamp")
    refused(trust, world, "freeze")
    world.director.timestamp.signed.version = 5
    world.director.timestamp.signed.expires = good
    world.director.publish()
    assert names(trust.refresh({}, world.get)) == [("digits", 1, 5)]


def test_a_snapshot_that_is_not_the_timestamps(trust: Trust, world: World) -> None:
    world.director.snapshot.signed.version += 1
    world.director.write("snapshot")
    refused(trust, world, "mix-and-match")


def test_targets_that_are_not_the_snapshots(trust: Trust, world: World) -> None:
    world.director.targets.signed.version += 1
    world.director.write("targets")
    refused(trust, world, "mix-and-match")


def test_targets_with_another_hash_than_the_snapshot_names(trust: Trust, world: World) -> None:
    version = world.director.targets.signed.version
    world.director.snapshot.signed.meta["targets.json"] = MetaFile(version, hashes={"sha256": "0" * 64})
    world.director.write("snapshot")
    refused(trust, world, "mix-and-match")


# Endless and missing: rows 20 to 25


def test_an_endless_timestamp_is_cut(trust: Trust, world: World) -> None:
    world.files["director", "timestamp.json"] += b" " * 25_000_000
    refused(trust, world, "oversized")
    assert len(world.asked) < 10


def test_a_file_that_trickles_is_given_up(trust: Trust, world: World) -> None:
    def get(repository: Repository, name: str, offset: int, length: int, held: bytes | None = None) -> Answer:
        return Answer(100, offset, b"") if name == "timestamp.json" else world.get(repository, name, offset, length)

    with pytest.raises(TrustError, match="expected bytes from 0 of 100, got none") as caught:
        trust.refresh({}, get)
    assert caught.value.key == "unreachable"


@pytest.mark.parametrize("error", [LinkDown("gone"), LinkTimeout("late"), Refused("later", "busy")])
def test_no_connection_is_no_attack(trust: Trust, world: World, error: Exception) -> None:
    def get(repository: Repository, name: str, offset: int, length: int, held: bytes | None = None) -> Answer:
        raise error

    with pytest.raises(TrustError) as caught:
        trust.refresh({}, get)
    assert (caught.value.key, caught.value.attack) == ("unreachable", False)


@pytest.mark.parametrize("name", ["timestamp.json", "snapshot.json", "targets.json"])
def test_metadata_that_the_hub_does_not_have(trust: Trust, world: World, name: str) -> None:
    del world.files["director", name]
    refused(trust, world, "unreachable", name)


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/cron.d/x",
        "/etc/passwd",
        "modules/dev/digits/1/x\0.json",
        "modules/dev/digits/01/generic-x86_64.json",
        f"modules/dev/{'x' * 300}/1/generic-x86_64.json",
    ],
)
def test_a_target_path_that_is_none_of_ours(trust: Trust, world: World, path: str) -> None:
    targets = world.director.targets.signed.targets
    targets[path] = targets.pop(next(iter(targets)))
    world.director.publish()
    refused(trust, world, "bad-metadata", "expected modules/PUBLISHER/NAME/VERSION/PROFILE.json")


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: b"X" + data[1:]])
def test_a_manifest_with_one_byte_missing_or_changed(
    trust: Trust, world: World, spoil: Callable[[bytes], bytes]
) -> None:
    digest = next(iter(world.director.targets.signed.targets.values())).hashes["sha256"]
    world.files["blob", digest] = spoil(world.files["blob", digest])
    refused(trust, world, "length-or-hash")


def test_a_manifest_longer_than_signed(trust: Trust, world: World) -> None:
    digest = next(iter(world.director.targets.signed.targets.values())).hashes["sha256"]
    world.files["blob", digest] += b" " * 10_000_000
    refused(trust, world, "oversized")


def test_a_manifest_of_enormous_signed_length(trust: Trust, world: World) -> None:
    next(iter(world.director.targets.signed.targets.values())).length = 10**12
    world.director.publish()
    refused(trust, world, "oversized")


def test_a_damaged_cached_manifest_is_fetched_again(trust: Trust, world: World, state_dir: StatePaths) -> None:
    desired = trust.refresh({}, world.get)
    (state_dir.metadata / "manifests" / desired.modules[0].manifest_sha256).write_bytes(b"rubbish")
    assert trust.refresh({}, world.get) == desired


# The director's word against the image repository's and this device: rows 26 to 31


def test_a_temporary_file_that_a_power_cut_left_is_not_kept(trust: Trust, world: World, state_dir: StatePaths) -> None:
    trust.refresh({}, world.get)
    left = state_dir.metadata / "director" / "tmpf5tqjyda"
    left.touch()
    world.install(version=2, counter=6)
    assert names(trust.refresh({}, world.get)) == [("digits", 2, 6)]
    assert not left.exists()


def test_a_target_that_no_publisher_signed(trust: Trust, world: World) -> None:
    world.image.roles[PUBLISHER].signed.targets.clear()
    world.publish()
    refused(trust, world, "not-in-image-repository")


def test_a_target_outside_its_publishers_paths(trust: Trust, world: World) -> None:
    targets = world.director.targets.signed.targets
    targets["modules/other/digits/1/generic-x86_64.json"] = targets.pop(next(iter(targets)))
    signed = world.image.roles[PUBLISHER].signed.targets
    signed["modules/other/digits/1/generic-x86_64.json"] = signed[next(iter(signed))]
    world.publish()
    refused(trust, world, "not-in-image-repository")


def test_a_hash_that_differs_between_the_repositories(trust: Trust, world: World) -> None:
    next(iter(world.director.targets.signed.targets.values())).hashes["sha256"] = "0" * 64
    world.director.publish()
    refused(trust, world, "mix-and-match", "same sha256")


def test_a_length_that_differs_between_the_repositories(trust: Trust, world: World) -> None:
    next(iter(world.director.targets.signed.targets.values())).length += 1
    world.director.publish()
    refused(trust, world, "mix-and-match", "same length")


def test_a_release_counter_that_differs_between_the_repositories(trust: Trust, world: World) -> None:
    next(iter(world.director.targets.signed.targets.values())).unrecognized_fields["custom"]["release_counter"] = 6
    world.director.publish()
    refused(trust, world, "mix-and-match", "same release counter")


def test_another_devices_metadata_leaves_no_trace(trust: Trust, world: World) -> None:
    trust.refresh({}, world.get)
    mine = dict(world.files)
    world.director.targets.signed.unrecognized_fields[DEVICE_ID_FIELD] = "cam-18"
    world.director.timestamp.signed.version = world.director.snapshot.signed.version = 1_000
    world.director.publish()
    refused(trust, world, "wrong-device", "expected metadata for cam-17, got it for 'cam-18'")
    world.files.clear()
    world.files.update(mine)
    assert names(trust.refresh({}, world.get)) == [("digits", 1, 5)]


def test_another_devices_empty_set_does_not_remove_anything(trust: Trust, world: World) -> None:
    world.director.targets.signed.unrecognized_fields[DEVICE_ID_FIELD] = "cam-18"
    world.director.targets.signed.targets.clear()
    world.director.publish()
    refused(trust, world, "wrong-device")


def test_metadata_for_no_device(trust: Trust, world: World) -> None:
    del world.director.targets.signed.unrecognized_fields[DEVICE_ID_FIELD]
    world.director.publish()
    refused(trust, world, "wrong-device")


def test_other_hardware_in_the_director(trust: Trust, world: World) -> None:
    next(iter(world.director.targets.signed.targets.values())).unrecognized_fields["custom"]["hardware_id"] = "pynq-z2"
    world.director.publish()
    refused(trust, world, "wrong-hardware", "director")


def test_other_hardware_in_the_image_repository(trust: Trust, world: World) -> None:
    for target in world.image.roles[PUBLISHER].signed.targets.values():
        target.unrecognized_fields["custom"] = to_custom(ImageCustom(("pynq-z2",), 5))
    world.publish()
    refused(trust, world, "wrong-hardware", "image repository")


def test_one_module_twice(trust: Trust, world: World) -> None:
    world.assign(world.add(*make_module(version=2), counter=6))
    world.publish()
    refused(trust, world, "duplicate-module")


def test_a_director_that_delegates(trust: Trust, world: World) -> None:
    world.director.targets.signed.delegations = Delegations({}, {})
    world.director.publish()
    refused(trust, world, "delegations-in-director")


def test_an_older_release_than_installed(trust: Trust, world: World) -> None:
    refused(trust, world, "older-release", "expected release 6 or later, got 5", {"digits": 6})


def test_a_target_without_our_fields(trust: Trust, world: World) -> None:
    del next(iter(world.director.targets.signed.targets.values())).unrecognized_fields["custom"]
    world.director.publish()
    refused(trust, world, "bad-metadata")


def test_a_manifest_of_another_module_under_this_path(trust: Trust, world: World) -> None:
    manifest, files = make_module("faces", 1)
    other = world.add(manifest, files, counter=5)
    signed = world.image.roles[PUBLISHER].signed.targets
    signed["modules/dev/digits/1/generic-x86_64.json"] = signed.pop(str(other))
    world.director.targets.signed.targets.clear()
    world.assign(type(other)("dev", "digits", 1, HARDWARE))
    world.publish()
    refused(trust, world, "mix-and-match", "expected the manifest of")


# What is on this device's disk


@pytest.mark.parametrize("file", ["timestamp.json", "snapshot.json", "targets.json", "root_history/1.root.json"])
@pytest.mark.parametrize("name", ["director", "image"])
def test_a_damaged_file_is_dropped_and_fetched_again(
    trust: Trust, world: World, state_dir: StatePaths, name: str, file: str
) -> None:
    desired = trust.refresh({}, world.get)
    (state_dir.metadata / name / file).write_bytes(b"\0rubbish")
    assert trust.refresh({}, world.get) == desired


def test_a_folder_in_the_place_of_a_file_is_dropped(trust: Trust, world: World, state_dir: StatePaths) -> None:
    desired = trust.refresh({}, world.get)
    (state_dir.metadata / "director" / "timestamp.json").unlink()
    (state_dir.metadata / "director" / "timestamp.json").mkdir()
    assert trust.refresh({}, world.get) == desired


def test_a_damaged_floor_begins_anew_and_says_so(
    trust: Trust, world: World, state_dir: StatePaths, caplog: pytest.LogCaptureFixture
) -> None:
    trust.refresh({}, world.get)
    (state_dir.metadata / "floor.json").write_bytes(b"{")
    trust.refresh({}, world.get)
    assert "begins anew" in caplog.text
    assert set(Floor.load(state_dir.metadata / "floor.json").repositories) == {"director", "image"}


def test_metadata_is_only_this_users(trust: Trust, world: World, state_dir: StatePaths) -> None:
    trust.refresh({}, world.get)
    found = [path for path in state_dir.metadata.rglob("*") if not path.is_symlink() and path.is_file()]
    assert found
    assert [path for path in found if path.name == "floor.json" and path.stat().st_mode & 0o077] == []
    assert [path for path in state_dir.metadata.iterdir() if path.name.endswith(".new")] == []


def test_a_module_set_obtainable_only_in_part_is_refused_as_a_whole(trust: Trust, world: World) -> None:
    path = world.add(*make_module("faces", 1), counter=1)
    world.assign(path)
    world.publish()
    digest = world.image.roles[PUBLISHER].signed.targets[str(path)].hashes["sha256"]
    manifest = world.files.pop(("blob", digest))
    refused(trust, world, "unreachable", "faces")
    world.files["blob", digest] = manifest
    assert [name for name, _, _ in names(trust.refresh({}, world.get))] == ["digits", "faces"]


def test_the_state_folder_may_be_missing(tmp_path: Path, world: World, state_dir: StatePaths) -> None:
    trust = Trust("cam-17", HARDWARE, state_dir.roots, tmp_path / "fresh", time.time)
    assert names(trust.refresh({}, world.get)) == [("digits", 1, 5)]
