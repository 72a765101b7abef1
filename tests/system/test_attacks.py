"""Somebody who can write into the hub's folder but has no keys: refused, called by name, and nothing stops serving.

Each test spoils one thing for one device, whose old module must go on serving.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cloud_hub.config import HubPaths
from cloud_hub.rollouts.states import ExecutionState, RolloutState
from modules.manifest import decode_manifest
from system.traffic import predict
from system.world import MODEL, PROFILE, Device, World

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def still_serves_the_old_module(device: Device, address: str) -> None:
    assert await device.serves(1) == address
    assert await predict(address, f"{device.name}-after", 1)
    module = device.module()
    assert module is not None
    assert (module.version, module.verified, module.restarts) == (1, True, 0)


async def told_as_attack(world: World, device: Device, key: str) -> None:
    """The device tells of it, and the hub keeps what it told."""
    await device.until(f"it reports {key}", lambda status: key in {a.key for a in status.report.attacks})
    assert set(device.attacks()) == {key}

    async def kept() -> bool:
        events = await world.client.events("device.attack", device.name)
        return any(event.details["key"] == key for event in events)

    await world.until(f"the hub to keep that {device.name} refused {key}", kept)


def spoil(path: Path) -> None:
    """Turns one bit in the middle of the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("what", "key", "ending"),
    [("model.onnx", "chunk-mismatch", ExecutionState.FAILED), ("manifest", "length-or-hash", ExecutionState.REJECTED)],
)
async def test_a_changed_file_is_refused(world: World, what: str, key: str, ending: ExecutionState) -> None:
    version = await world.release(100 + len(what))
    release = await world.client.module(MODEL, version, PROFILE)
    digest = release.manifest_sha256
    if what != "manifest":
        manifest = decode_manifest(await world.client.manifest(MODEL, version, PROFILE))
        digest = next(file.sha256 for file in manifest.files if file.path == what)
    spoil(HubPaths(world.hub.folder).blobs / digest[:2] / digest)
    async with world.device(f"spoiled-{what.removesuffix('.onnx')}") as device:
        address = await world.roll_out(device, 1)
        state, execution = await world.ended(await world.order(device, version))
        assert state is RolloutState.FAILED
        assert (execution.state, execution.reason_key) == (ending, key), execution
        await told_as_attack(world, device, key)
        await still_serves_the_old_module(device, address)


def change(world: World, *statements: tuple[str, tuple[object, ...]]) -> None:
    """Writes into the database of a hub that is down."""
    with closing(sqlite3.connect(HubPaths(world.hub.folder).database)) as connection, connection:
        for statement, values in statements:
            assert connection.execute(statement, values).rowcount > 0, statement


async def test_director_metadata_with_another_version_written_into_it_is_refused(world: World) -> None:
    async with world.device("forged") as device:
        address = await world.roll_out(device, 1)
        await world.hub.service.stop()
        with closing(sqlite3.connect(HubPaths(world.hub.folder).database)) as connection:
            query = "select version, body from director_files where device = ? and filename = 'timestamp.json'"
            version, body = connection.execute(query, (device.name,)).fetchone()
        metadata = json.loads(body)
        metadata["signed"]["version"] = version + 1
        forged = json.dumps(metadata).encode()
        forged_row = (version + 1, forged, device.name)
        change(
            world,
            ("update director_files set version = ?, body = ? where device = ? and filename = 'timestamp.json'",
             forged_row),
        )  # fmt: skip
        await world.hub.start()
        await device.service.stop()
        await device.start()  # an agent that starts looks at what is wanted, whether or not there is a doorbell
        await told_as_attack(world, device, "bad-signature")
        await still_serves_the_old_module(device, address)


async def test_director_metadata_of_another_device_is_refused(world: World) -> None:
    async with world.device("victim") as device, world.device("other") as other:
        address = await world.roll_out(device, 1)
        await world.roll_out(other, 1)
        await world.roll_out(other, 2)
        await world.hub.service.stop()
        change(
            world,
            ("delete from director_files where device = ?", (device.name,)),
            ("insert into director_files select ?, filename, version, body, expires_at from director_files "
             "where device = ?", (device.name, other.name)),
            ("update devices set director_version = (select director_version from devices where id = ?) "
             "where id = ?", (other.name, device.name)),
        )  # fmt: skip
        await world.hub.start()
        await told_as_attack(world, device, "wrong-device")
        await still_serves_the_old_module(device, address)
        assert other.attacks() == {}


async def test_an_older_release_is_refused_until_it_is_signed_again(world: World) -> None:
    first = await world.release(200)
    second = await world.release(201)
    async with world.device("older") as device:
        await world.roll_out(device, first)
        address = await world.roll_out(device, second)
        state, execution = await world.ended(await world.order(device, first))
        assert state is RolloutState.FAILED
        assert (execution.state, execution.reason_key) == (ExecutionState.REJECTED, "older-release")
        await told_as_attack(world, device, "older-release")
        assert await device.serves(second) == address
        await world.client.sign(MODEL, first, PROFILE)
        await world.roll_out(device, first)
