"""The 86 cases of the public Uptane vectors by their names: what is spoilt, and what the agent must say to it.

`director_*`: the director repository is bad; `image_repo_*`: the image repository is; `delegation_*`: the publisher's
role or what delegates to it; else both. What must happen follows from the Uptane Standard 2.1 (full verification) and
the TUF specification 1.0. Run by `tests/trust/test_uptane_cases.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tuf.api.metadata import Delegations, MetaFile, TargetFile

from modules.targets import DEVICE_ID_FIELD, ImageCustom, to_custom
from support import uptane
from support.repository import PUBLISHER, Repo, World, make_module
from support.uptane import go_on, need_two, seal

Spoil = Callable[[World], None]
FIRST = (("digits", 1, 5),)
TOP_LEVEL = {"root", "targets", "snapshot", "timestamp"}


def nothing(world: World) -> None:
    return None


@dataclass(frozen=True)
class Case:
    """`key` is the refusal, empty when the refresh must succeed with `gives`. `prepare` is legitimate.

    `heal` is what a repository must do after: where files were well signed, and so stand, go on with higher numbers.
    """

    spoil: Spoil
    key: str = ""
    gives: tuple[tuple[str, int, int], ...] = FIRST
    prepare: Spoil = nothing
    heal: Spoil = nothing


# Faults that any signed role may have, crossed with the roles


def in_role(fault: Callable[[Repo, str], None], repository: str, role: str) -> Spoil:
    def spoil(world: World) -> None:
        fault(world.director if repository == "director" else world.image, role)

    return spoil


FAULTS: dict[str, tuple[Callable[[Repo, str], None], str]] = {
    "bad_key_ids": (uptane.bad_key_ids, "bad-signature"),
    "expired": (uptane.expired, "freeze"),
    "non_unique_signatures": (uptane.non_unique_signatures, "bad-metadata"),
    "role_type_mismatch": (uptane.role_type_mismatch, "bad-metadata"),
    "too_large": (uptane.too_large, "oversized"),
    "unmet_threshold": (uptane.unmet_threshold, "bad-signature"),
    "unsigned": (uptane.unsigned, "bad-signature"),
    "zero_threshold": (uptane.zero_threshold, "bad-metadata"),
}
ROLES = (
    ("director_root", "director", "root"),
    ("director_targets", "director", "targets"),
    ("image_repo_root", "image", "root"),
    ("image_repo_targets", "image", "targets"),
    ("image_repo_snapshot", "image", "snapshot"),
    ("image_repo_timestamp", "image", "timestamp"),
    ("delegation", "image", PUBLISHER),
)
TWO = {"non_unique_signatures", "unmet_threshold"}
NOT_AMONG_THE_CASES = {"delegation_role_type_mismatch"}


def a_root_in_date(repository: str) -> Spoil:
    """The way out of an expired root is the next one: a root that was verified stays."""

    def heal(world: World) -> None:
        repo = world.director if repository == "director" else world.image
        uptane.expired(repo, "root")
        repo.root.signed.version += 1
        repo.write("root")

    return heal


def healing(repository: str, role: str, fault: str) -> Spoil:
    """Of the image repository, what was verified before the spoilt file stays; of the director's, only roots do."""
    if (role, fault) == ("root", "expired"):
        return a_root_in_date(repository)
    above = role == "root" or role == "timestamp" or (fault == "zero_threshold" and role in TOP_LEVEL)
    return nothing if repository == "director" or above else go_on


def role_cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for prefix, repository, role in ROLES:
        for name, (fault, key) in FAULTS.items():
            if name == "too_large" and role != "targets":
                continue
            prepare = in_role(need_two, repository, role) if name in TWO else nothing
            heal = healing(repository, role, name)
            found[f"{prefix}_{name}"] = Case(in_role(fault, repository, role), key, prepare=prepare, heal=heal)
    return {name: case for name, case in found.items() if name not in NOT_AMONG_THE_CASES}


# Roots that follow one another


def root_cases(prefix: str, pick: Callable[[World], Repo]) -> dict[str, Case]:
    def rotation(world: World) -> None:
        pick(world).rotate("root")

    def rotation_multiple(world: World) -> None:
        for _ in range(3):
            pick(world).rotate("root")
            pick(world).rotate("timestamp")
        pick(world).publish()

    def signed_by(new: bool) -> Spoil:
        def spoil(world: World) -> None:
            repo = pick(world)
            old = list(repo.signers["root"])
            repo.rotate("root")
            repo.write("root", repo.signers["root"] if new else old)

        return spoil

    def numbered(version: int) -> Spoil:
        def spoil(world: World) -> None:
            seal(pick(world), "root", lambda signed: signed.update(version=version), filename="2.root.json")

        return spoil

    return {
        f"{prefix}_root_rotation": Case(rotation),
        f"{prefix}_root_rotation_multiple": Case(rotation_multiple),
        f"{prefix}_root_rotation_no_new_signature": Case(signed_by(new=False), "bad-signature"),
        f"{prefix}_root_rotation_no_original_signature": Case(signed_by(new=True), "bad-signature"),
        f"{prefix}_root_rotation_version_skip": Case(numbered(3), "rollback"),
        f"{prefix}_root_rotation_version_unchanged": Case(numbered(1), "rollback"),
    }


# What the repositories say about targets and this device


def wanted(world: World) -> TargetFile:
    return next(iter(world.director.targets.signed.targets.values()))


def published(world: World) -> TargetFile:
    return next(iter(world.image.roles[PUBLISHER].signed.targets.values()))


def set_hardware(director: bool, image: bool) -> Spoil:
    def spoil(world: World) -> None:
        if director:
            custom: dict[str, Any] = wanted(world).unrecognized_fields["custom"]
            custom["hardware_id"] = "pynq-z2"
        if image:
            published(world).unrecognized_fields["custom"] = to_custom(ImageCustom(("pynq-z2",), 5))
        world.publish()

    return spoil


def director_bad_ecu_id(world: World) -> None:
    world.director.targets.signed.unrecognized_fields[DEVICE_ID_FIELD] = "cam-18"
    world.director.publish()


def director_delegations(world: World) -> None:
    world.director.targets.signed.delegations = Delegations({}, {})
    world.director.publish()


def director_targets_same_ecu(world: World) -> None:
    """Our unit that may be targeted once is the module name."""
    world.assign(world.add(*make_module(version=2), counter=6))
    world.publish()


def changed_target(pick: Callable[[World], TargetFile], **changed: object) -> Spoil:
    def spoil(world: World) -> None:
        for name, value in changed.items():
            setattr(pick(world), name, value)
        world.publish()

    return spoil


def target_oversized(world: World) -> None:
    """Both repositories agree on the length; what comes is longer. A new target: one that is held is not asked for."""
    world.install(version=2, counter=6)
    world.files["blob", wanted(world).hashes["sha256"]] += b" " * 1_000


def image_repo_snapshot_targets_version_mismatch(world: World) -> None:
    world.image.publish()
    version = world.image.targets.signed.version
    seal(
        world.image,
        "targets",
        lambda signed: signed.update(version=version + 1),
        filename=f"{version}.targets.json",
    )


def image_repo_metadata_changed_while_version_same(world: World) -> None:
    """Every file of the image repository says something else under the numbers it had, well signed."""
    published(world).length += 1
    for role in (PUBLISHER, "targets", "snapshot", "timestamp"):
        seal(world.image, role, lambda signed: signed.update(expires="2099-01-01T00:00:00Z"))


# Delegations


def delegation(world: World) -> Delegations:
    held = world.image.targets.signed.delegations
    assert held is not None
    return held


def delegation_empty(world: World) -> None:
    """The publisher has signed nothing, and nothing is wanted."""
    world.image.roles[PUBLISHER].signed.targets.clear()
    world.director.targets.signed.targets.clear()
    world.publish()


def delegation_missing(world: World) -> None:
    world.image.publish()
    del world.files["image", world.image.filename(PUBLISHER)]


def delegation_key_missing(world: World) -> None:
    delegation(world).keys.clear()
    world.image.publish()


def delegation_hash_mismatch(world: World) -> None:
    world.image.publish()
    version = world.image.roles[PUBLISHER].signed.version
    world.image.snapshot.signed.meta[f"{PUBLISHER}.json"] = MetaFile(version, hashes={"sha256": "0" * 64})
    world.image.write("snapshot")


def delegation_snapshot_missing(world: World) -> None:
    world.image.publish()
    del world.image.snapshot.signed.meta[f"{PUBLISHER}.json"]
    world.image.write("snapshot")


def delegation_snapshot_version_mismatch(world: World) -> None:
    world.image.publish()
    filename = world.image.filename(PUBLISHER)
    seal(world.image, PUBLISHER, lambda signed: signed.update(version=signed["version"] + 1), filename=filename)


def delegation_path_mismatch(world: World) -> None:
    """The publisher signs a path that is not its own."""
    signed, targets = world.image.roles[PUBLISHER].signed.targets, world.director.targets.signed.targets
    foreign = "modules/other/digits/1/generic-x86_64.json"
    signed[foreign] = signed.pop(next(iter(signed)))
    targets[foreign] = targets.pop(next(iter(targets)))
    world.publish()


def delegation_redundant(world: World) -> None:
    """Two roles may sign the same path; the first is asked, and it is enough."""
    role = world.image.roles[PUBLISHER]
    world.image.delegate("second", f"modules/{PUBLISHER}/*/*/*")
    world.image.roles["second"].signed.targets.update(role.signed.targets)
    world.image.publish()


def delegation_two_signatures(world: World) -> None:
    need_two(world.image, PUBLISHER)


CASES: dict[str, Case] = {
    **role_cases(),
    **root_cases("director", lambda world: world.director),
    **root_cases("image_repo", lambda world: world.image),
    "simple": Case(lambda world: world.publish()),
    "bad_hw_id": Case(set_hardware(director=True, image=True), "wrong-hardware", heal=go_on),
    "director_bad_hw_id": Case(set_hardware(director=True, image=False), "wrong-hardware", heal=go_on),
    "image_repo_bad_hw_id": Case(set_hardware(director=False, image=True), "wrong-hardware", heal=go_on),
    "director_bad_ecu_id": Case(director_bad_ecu_id, "wrong-device"),
    "director_delegations": Case(director_delegations, "delegations-in-director", heal=go_on),
    "director_targets_same_ecu": Case(director_targets_same_ecu, "duplicate-module", heal=go_on),
    "director_target_hash_mismatch": Case(
        changed_target(wanted, hashes={"sha256": "0" * 64}), "mix-and-match", heal=go_on
    ),
    "image_repo_target_hash_mismatch": Case(
        changed_target(published, hashes={"sha256": "0" * 64}), "mix-and-match", heal=go_on
    ),
    "director_target_oversized": Case(changed_target(wanted, length=10), "mix-and-match", heal=go_on),
    "image_repo_target_oversized": Case(changed_target(published, length=10), "mix-and-match", heal=go_on),
    "target_oversized": Case(target_oversized, "oversized", heal=go_on),
    "image_repo_snapshot_targets_version_mismatch": Case(
        image_repo_snapshot_targets_version_mismatch, "mix-and-match", heal=go_on
    ),
    "image_repo_metadata_changed_while_version_same": Case(image_repo_metadata_changed_while_version_same),
    "delegation_empty": Case(delegation_empty, gives=()),
    "delegation_hash_mismatch": Case(delegation_hash_mismatch, "mix-and-match", heal=go_on),
    "delegation_key_missing": Case(delegation_key_missing, "bad-signature", heal=go_on),
    "delegation_missing": Case(delegation_missing, "unreachable", heal=go_on),
    "delegation_path_mismatch": Case(delegation_path_mismatch, "not-in-image-repository", heal=go_on),
    "delegation_redundant": Case(delegation_redundant),
    "delegation_simple": Case(lambda world: world.image.publish()),
    "delegation_snapshot_missing": Case(delegation_snapshot_missing, "bad-metadata", heal=go_on),
    "delegation_snapshot_version_mismatch": Case(delegation_snapshot_version_mismatch, "mix-and-match", heal=go_on),
    "delegation_two_signatures": Case(delegation_two_signatures),
}
