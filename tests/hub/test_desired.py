"""The desired set: only signed modules that fit the device, and a version that grows with each change."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select

from cloud_hub.config import HubPaths
from cloud_hub.desired import Assignment
from cloud_hub.errors import Conflict, NotFound
from cloud_hub.store.tables import assignments
from modules.manifest import SamplingPolicy
from support.clock import SetClock
from support.devices import PROFILE
from support.trust import OPERATOR, TrustWorld, trust_world


@pytest.fixture
async def world(hub_paths: HubPaths, clock: SetClock) -> AsyncIterator[TrustWorld]:
    async with trust_world(hub_paths, clock) as world:
        await world.enrol("cam-1")
        yield world


async def test_an_assignment_comes_back_as_it_was_given(world: TrustWorld) -> None:
    await world.add_signed("digits")
    given = Assignment(
        "digits", 1, PROFILE, "r-1", "off", SamplingPolicy(rate=0.25), {"threshold": 0.5, "names": ["a"]}
    )
    async with world.store.write() as connection:
        assert await world.desired.current(connection, "cam-1", "digits") is None
        await world.desired.assign(connection, "cam-1", given)
        assert await world.desired.current(connection, "cam-1", "digits") == given
    assert await world.desired.of("cam-1") == (given,)


async def test_each_change_raises_the_version_and_the_same_again_does_not(world: TrustWorld) -> None:
    for version in (1, 2):
        await world.add_signed("digits", version, content=b"%d" % version)
    assert [
        await world.assign("cam-1", "digits", 1),
        await world.assign("cam-1", "digits", 2),
        await world.assign("cam-1", "digits", 2),
        await world.assign("cam-1", "digits", 2, deployment="rollout-2"),
    ] == [2, 3, 3, 4]
    assert [assignment.version for assignment in await world.desired.of("cam-1")] == [2]


async def test_unassigning_raises_the_version_once(world: TrustWorld) -> None:
    await world.add_signed("digits")
    await world.assign("cam-1", "digits")
    async with world.store.write() as connection:
        assert await world.desired.unassign(connection, "cam-1", "digits") == 3
        assert await world.desired.unassign(connection, "cam-1", "digits") == 3
    assert await world.desired.of("cam-1") == ()


async def test_a_change_that_is_rolled_back_leaves_set_and_version_as_they_were(world: TrustWorld) -> None:
    await world.add_signed("digits")

    async def assign_and_fail() -> None:
        async with world.store.write() as connection:
            await world.desired.assign(connection, "cam-1", Assignment("digits", 1, PROFILE, "r-1"))
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        await assign_and_fail()
    assert await world.desired.of("cam-1") == ()
    assert (await world.devices.get("cam-1")).director_version == 1


async def test_a_module_that_is_not_signed_cannot_be_assigned(world: TrustWorld) -> None:
    await world.add_module("digits")
    with pytest.raises(Conflict, match=r"digits version 1 .* is not signed") as caught:
        await world.assign("cam-1", "digits")
    assert caught.value.key == "module-not-signed"


async def test_what_does_not_exist_is_not_found(world: TrustWorld) -> None:
    await world.add_signed("digits")
    with pytest.raises(NotFound, match="no module digits version 9"):
        await world.assign("cam-1", "digits", 9)
    with pytest.raises(NotFound, match="no device ghost"):
        await world.assign("ghost", "digits")


async def test_a_module_for_another_profile_cannot_be_assigned(world: TrustWorld) -> None:
    await world.add_module("digits", profile="raspberry-pi-5")
    await world.image.sign_module("digits", 1, "raspberry-pi-5", OPERATOR)
    with pytest.raises(Conflict, match=f"expected a module for {PROFILE}, got one for raspberry-pi-5"):
        async with world.store.write() as connection:
            await world.desired.assign(connection, "cam-1", Assignment("digits", 1, "raspberry-pi-5", "r-1"))
    async with world.store.read() as connection:
        assert (await connection.execute(select(assignments))).all() == []
