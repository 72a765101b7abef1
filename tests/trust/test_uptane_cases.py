"""The 86 cases of the public Uptane vectors, each against the agent's own verification (`support.uptane_cases`).

Each case begins with a good refresh. A refused one leaves what was trusted, and the next good update is taken.

Our choice in `image_repo_metadata_changed_while_version_same`: a version names one content. A device that has verified
a version never looks at other bytes under the same number, and says nothing: an equal version is no news, and whoever
could sign such bytes could sign a higher number too. What follows is safe: the director's word must agree with what the
device holds, else it is mix-and-match.
"""

from __future__ import annotations

import pytest

from agent.errors import TrustError
from agent.trust import Desired, Trust
from support.repository import World
from support.uptane import go_on, taken_back
from support.uptane_cases import CASES, FIRST, image_repo_metadata_changed_while_version_same, wanted

SECOND = [("digits", 2, 6)]
# Every name of the vectors, so that none is forgotten: prefixes, and what follows them.
SIGNED = "bad_key_ids expired non_unique_signatures unmet_threshold unsigned zero_threshold"
FILE = f"{SIGNED} role_type_mismatch"
ROOT = (
    f"{FILE} rotation rotation_multiple rotation_no_new_signature rotation_no_original_signature "
    "rotation_version_skip rotation_version_unchanged"
)
ALL = {
    "director_root": ROOT,
    "director_targets": f"{FILE} too_large same_ecu",
    "director": "bad_ecu_id bad_hw_id delegations target_hash_mismatch target_oversized",
    "image_repo_root": ROOT,
    "image_repo_targets": f"{FILE} too_large",
    "image_repo_snapshot": f"{FILE} targets_version_mismatch",
    "image_repo_timestamp": FILE,
    "image_repo": "bad_hw_id metadata_changed_while_version_same target_hash_mismatch target_oversized",
    "delegation": (
        f"{SIGNED} empty hash_mismatch key_missing missing path_mismatch redundant simple snapshot_missing "
        "snapshot_version_mismatch two_signatures"
    ),
}
UNPREFIXED = {"bad_hw_id", "simple", "target_oversized"}


def test_every_case_of_the_vectors_is_here() -> None:
    named = {f"{prefix}_{fault}" for prefix, faults in ALL.items() for fault in faults.split()} | UNPREFIXED
    assert len(named) == 86
    assert set(CASES) == named


def names(desired: Desired) -> list[tuple[str, int, int]]:
    return [(module.name, module.version, module.release_counter) for module in desired.modules]


@pytest.mark.parametrize("name", CASES)
def test_uptane(name: str, trust: Trust, world: World) -> None:
    case = CASES[name]
    case.prepare(world)
    trusted = trust.refresh({}, world.get)
    assert names(trusted) == list(FIRST)
    if not case.key:
        case.spoil(world)
        assert names(trust.refresh({}, world.get)) == list(case.gives)
        return
    with taken_back(world):
        case.spoil(world)
        with pytest.raises(TrustError) as caught:
            trust.refresh({}, world.get)
        assert caught.value.key == case.key, caught.value
    case.heal(world)
    again = trust.refresh({}, world.get)
    assert again.modules == trusted.modules
    assert case.heal is go_on or again == trusted
    world.install(version=2, counter=6)
    assert names(trust.refresh({}, world.get)) == SECOND


def test_changed_metadata_under_the_same_version_cannot_be_directed_to(trust: Trust, world: World) -> None:
    trusted = trust.refresh({}, world.get)
    with taken_back(world):
        image_repo_metadata_changed_while_version_same(world)
        wanted(world).length += 1
        world.director.publish()
        with pytest.raises(TrustError, match="expected the same length in both repositories") as caught:
            trust.refresh({}, world.get)
        assert caught.value.key == "mix-and-match"
    go_on(world)
    assert names(trust.refresh({}, world.get)) == names(trusted)
