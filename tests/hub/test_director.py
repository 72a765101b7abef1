"""The director, read by a stock TUF client: exactly this device's set, signed when asked, versions that only grow."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from tuf.api.exceptions import BadVersionNumberError

from cloud_hub.config import HubPaths
from cloud_hub.desired import Assignment
from cloud_hub.errors import Conflict, NotFound
from cloud_hub.store.tables import modules
from modules.manifest import SamplingPolicy
from modules.targets import director_custom
from support.clock import SetClock
from support.devices import PROFILE
from support.trust import OPERATOR, TrustWorld, find, refresh, trust_world

DAY = 86_400.0
PATH = f"modules/dev/digits/1/{PROFILE}.json"


@pytest.fixture
def now() -> SetClock:
    return SetClock(time.time())


@pytest.fixture
async def world(hub_paths: HubPaths, now: SetClock) -> AsyncIterator[TrustWorld]:
    async with trust_world(hub_paths, now) as world:
        await world.enrol("cam-1")
        yield world


def reader(world: TrustWorld, device: str) -> Callable[[str], Awaitable[bytes]]:
    async def read(filename: str) -> bytes:
        return await world.director.metadata(device, filename)

    return read


async def signed(world: TrustWorld, device: str, filename: str = "targets.json") -> dict[str, Any]:
    await world.director.metadata(device, "timestamp.json")
    part: dict[str, Any] = json.loads(await world.director.metadata(device, filename))["signed"]
    return part


async def test_a_stock_client_reads_the_device_s_assignments_and_whom_they_are_for(
    world: TrustWorld, tmp_path: Path
) -> None:
    digest = await world.add_signed("digits")
    policy = SamplingPolicy(rate=0.5)
    assignment = Assignment("digits", 1, PROFILE, "rollout-1", sampling=policy, config={"camera": 2})
    async with world.store.write() as connection:
        await world.desired.assign(connection, "cam-1", assignment)
    updater = await refresh(reader(world, "cam-1"), tmp_path / "client", await world.director.root_json())
    target = await find(updater, PATH)
    assert target is not None
    assert target.hashes == {"sha256": digest}
    custom = director_custom(target.unrecognized_fields["custom"])
    assert (custom.hardware_id, custom.release_counter, custom.deployment) == (PROFILE, 1, "rollout-1")
    assert (custom.sampling, dict(custom.config)) == (policy, {"camera": 2})
    assert (await signed(world, "cam-1"))["device_id"] == "cam-1"


async def test_the_device_s_id_stands_also_in_an_empty_set(world: TrustWorld) -> None:
    assert (await signed(world, "cam-1"))["device_id"] == "cam-1"
    assert (await signed(world, "cam-1"))["targets"] == {}


async def test_devices_have_sets_of_their_own(world: TrustWorld) -> None:
    await world.add_signed("digits")
    await world.enrol("cam-2")
    await world.assign("cam-1", "digits")
    assert list((await signed(world, "cam-1"))["targets"]) == [PATH]
    assert (await signed(world, "cam-2"))["targets"] == {}


async def test_every_role_carries_the_device_s_director_version(world: TrustWorld) -> None:
    await world.add_signed("digits")
    version = await world.assign("cam-1", "digits")
    for filename in ("timestamp.json", "snapshot.json", "targets.json"):
        assert (await signed(world, "cam-1", filename))["version"] == version == 2


async def test_nothing_is_signed_again_while_nothing_changes(world: TrustWorld) -> None:
    read = reader(world, "cam-1")
    assert await read("timestamp.json") == await read("timestamp.json")


async def test_a_refresh_under_way_stays_consistent_while_the_set_changes(world: TrustWorld) -> None:
    await world.add_signed("digits")
    stamp = json.loads(await world.director.metadata("cam-1", "timestamp.json"))["signed"]
    await world.assign("cam-1", "digits")
    snapshot = json.loads(await world.director.metadata("cam-1", "snapshot.json"))["signed"]
    assert snapshot["version"] == stamp["meta"]["snapshot.json"]["version"]


async def test_freshness_costs_one_signature_and_leaves_the_set_alone(world: TrustWorld, now: SetClock) -> None:
    before = {name: await signed(world, "cam-1", name) for name in ("timestamp.json", "targets.json")}
    now.advance(4 * DAY)
    assert (await signed(world, "cam-1", "timestamp.json"))["version"] == before["timestamp.json"]["version"] + 1
    assert await signed(world, "cam-1") == before["targets.json"]
    assert (await world.devices.get("cam-1")).director_version == before["targets.json"]["version"]


async def test_a_set_that_grows_old_is_signed_anew_with_a_version_of_its_own(world: TrustWorld, now: SetClock) -> None:
    before = (await signed(world, "cam-1"))["version"]
    now.advance(46 * DAY)
    for filename in ("snapshot.json", "targets.json"):
        assert (await signed(world, "cam-1", filename))["version"] == before + 1
    assert (await world.devices.get("cam-1")).director_version == before + 1


async def test_the_timestamp_goes_on_growing_when_a_new_set_follows_several_refreshes(
    world: TrustWorld, now: SetClock, tmp_path: Path
) -> None:
    root = await world.director.root_json()
    now.advance(-9 * DAY)  # the client's clock is the machine's, so all of this ends today
    stamps = [(await signed(world, "cam-1", "timestamp.json"))["version"]]
    for _ in range(2):
        now.advance(4 * DAY)
        stamps.append((await signed(world, "cam-1", "timestamp.json"))["version"])
    await refresh(reader(world, "cam-1"), tmp_path / "client", root)
    await world.add_signed("digits")
    assert await world.assign("cam-1", "digits") == 2
    updater = await refresh(reader(world, "cam-1"), tmp_path / "client", root)
    assert await find(updater, PATH) is not None
    stamps.append((await signed(world, "cam-1", "timestamp.json"))["version"])
    assert stamps == sorted(set(stamps))


async def test_renewal_ahead_of_time_signs_what_changed_and_what_grows_old_in_batches(
    world: TrustWorld, now: SetClock
) -> None:
    names = ["cam-1", *(f"many-{number}" for number in range(4))]
    for name in names[1:]:
        await world.enrol(name)
    for name in names:
        await signed(world, name)
    assert await world.director.renew() == 0
    await world.add_signed("digits")
    await world.assign("cam-1", "digits")
    assert await world.director.renew() == 3
    now.advance(4 * DAY)
    assert [await world.director.renew(limit=3) for _ in range(3)] == [3, 2, 0]
    assert (await signed(world, "many-3", "timestamp.json"))["version"] == 2


async def test_a_device_that_cannot_be_signed_for_does_not_hold_up_the_others(world: TrustWorld) -> None:
    await world.enrol("cam-2")
    for name in ("cam-1", "cam-2"):
        await signed(world, name)
    for module in ("spoilt", "digits"):
        await world.add_signed(module)
    await world.assign("cam-1", "spoilt")
    await world.assign("cam-2", "digits")
    async with world.store.write() as connection:
        unsigned = update(modules).where(modules.c.name == "spoilt").values(release_counter=None)
        await connection.execute(unsigned)
    assert await world.director.renew() == 3
    assert list((await signed(world, "cam-2"))["targets"]) == [PATH]


async def test_signing_a_module_again_directs_its_devices_to_the_new_counter(world: TrustWorld) -> None:
    await world.add_signed("digits")
    version = await world.assign("cam-1", "digits")
    await world.image.sign_module("digits", 1, PROFILE, OPERATOR)
    targets = await signed(world, "cam-1")
    assert targets["version"] == version + 1
    assert targets["targets"][PATH]["custom"]["release_counter"] == 2


async def test_old_metadata_served_again_is_refused_by_the_client(world: TrustWorld, tmp_path: Path) -> None:
    await world.add_signed("digits")
    old = await world.director.metadata("cam-1", "timestamp.json")
    await world.assign("cam-1", "digits")
    root = await world.director.root_json()
    await refresh(reader(world, "cam-1"), tmp_path / "client", root)

    async def rolled_back(filename: str) -> bytes:
        return old if filename == "timestamp.json" else await world.director.metadata("cam-1", filename)

    with pytest.raises(BadVersionNumberError):
        await refresh(rolled_back, tmp_path / "client", root)


async def test_many_who_ask_at_once_get_the_same_signature(world: TrustWorld) -> None:
    answers = await asyncio.gather(*(world.director.metadata("cam-1", "timestamp.json") for _ in range(8)))
    assert len(set(answers)) == 1


async def test_what_is_not_there_is_not_found(world: TrustWorld) -> None:
    for device, filename in (("cam-1", "2.root.json"), ("cam-1", "x"), ("ghost", "timestamp.json")):
        with pytest.raises(NotFound):
            await world.director.metadata(device, filename)


async def test_a_retired_device_is_signed_for_no_more(world: TrustWorld) -> None:
    await world.devices.retire("cam-1", OPERATOR)
    with pytest.raises(Conflict, match="cam-1 is retired"):
        await world.director.metadata("cam-1", "timestamp.json")
