"""What the hub builds patches for: from what devices really hold to what they are to have, the most wanted first."""

from collections.abc import AsyncIterator, Mapping

import pytest

from cloud_hub.config import HubPaths
from cloud_hub.desired import Desired
from cloud_hub.patch_settings import PatchSettings
from cloud_hub.registry import Registry
from cloud_hub.rollouts.controller import Controller
from cloud_hub.rollouts.new import NewRollout
from support.clock import SetClock
from support.devices import PROFILE
from support.patch_fleet import MODULE, Fleet, digest, weights
from support.trust import OPERATOR, trust_world


@pytest.fixture
async def fleet(hub_paths: HubPaths, clock: SetClock) -> AsyncIterator[Fleet]:
    async with trust_world(hub_paths, clock) as world:
        yield Fleet(world, PatchSettings(recent=0))


async def test_a_patch_is_wished_from_what_devices_hold_to_what_they_are_to_have(fleet: Fleet) -> None:
    for version in (1, 2, 3):
        await fleet.release(version)
    for name, holds in (("cam-1", 2), ("cam-2", 1), ("cam-3", 1), ("cam-4", 3)):
        await fleet.device(name, holds)
        await fleet.world.assign(name, MODULE, 3)
    assert await fleet.wished() == [(1, 3, 2, 2), (2, 3, 1, 1)]
    first = (await fleet.wishes.now())[0]
    assert (first.base, first.target, first.path) == (digest(1), digest(3), "model.onnx")
    assert first.target_size == len(weights(3))


async def test_the_newest_signed_version_is_wished_for_before_any_rollout(fleet: Fleet) -> None:
    await fleet.release(1)
    await fleet.device("cam-1", holds=1)
    assert await fleet.wished() == []
    await fleet.release(2)
    assert await fleet.wished() == [(1, 2, 0, 1)]
    await Registry(fleet.world.store, fleet.world.blobs, fleet.world.events, lambda: 0.0).delete(MODULE, 2, OPERATOR)
    assert await fleet.wished() == []


async def test_a_rollout_that_has_not_begun_counts_its_devices(fleet: Fleet) -> None:
    for version in (1, 2, 3):
        await fleet.release(version)
    await fleet.device("cam-1", holds=1)
    world = fleet.world

    async def ring(_versions: Mapping[str, int]) -> None:
        pass

    controller = Controller(world.store, world.events, Desired(world.store, lambda: 0.0), ring, lambda: 0.0)
    draft = await controller.create(NewRollout(MODULE, 2, f"profile={PROFILE}"), OPERATOR)
    assert await fleet.wished() == [(1, 2, 1, 1), (1, 3, 0, 1)]
    await controller.abort(draft.rollout.id, OPERATOR)
    assert await fleet.wished() == [(1, 3, 0, 1)]


async def test_the_last_few_versions_come_after_those_that_are_held(fleet: Fleet) -> None:
    fleet.settings = PatchSettings(recent=2)
    for version in (1, 2, 3, 4):
        await fleet.release(version)
    await fleet.device("cam-1", holds=1)
    await fleet.world.assign("cam-1", MODULE, 4)
    assert sorted(await fleet.wished()) == [(1, 4, 1, 1), (2, 4, 0, 0), (3, 4, 0, 0)]
    assert (await fleet.wished())[0] == (1, 4, 1, 1)


async def test_a_device_that_is_retired_or_holds_what_nobody_knows_wishes_nothing(fleet: Fleet) -> None:
    await fleet.release(1)
    await fleet.release(2)
    await fleet.device("cam-1", holds=77)
    await fleet.world.assign("cam-1", MODULE, 2)
    await fleet.device("cam-2", holds=1)
    await fleet.world.devices.retire("cam-2", OPERATOR)
    assert await fleet.wished() == []


async def test_small_and_huge_files_and_those_that_stayed_the_same_have_no_patch(fleet: Fleet) -> None:
    await fleet.release(1)
    await fleet.release(2)
    await fleet.release(3, weights(1))
    await fleet.device("cam-1", holds=1)
    await fleet.world.assign("cam-1", MODULE, 2)
    size = len(weights(1))
    for settings, wished in (
        (PatchSettings(recent=0), [(1, 2, 1, 1)]),
        (PatchSettings(recent=0, min_bytes=size + 1), []),
        (PatchSettings(recent=0, max_bytes=size - 1), []),
        (PatchSettings(recent=0, enabled=False), []),
    ):
        fleet.settings = settings
        assert await fleet.wished() == wished
