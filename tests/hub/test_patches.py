"""Patches in the hub: built in the background in a process of their own, offered once they are there, and dropped."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from sqlalchemy import update

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.patch_settings import PatchSettings
from cloud_hub.patches import build
from cloud_hub.patches.build import CHILD, Builder
from cloud_hub.patches.child import Order
from cloud_hub.patches.choose import Patches
from cloud_hub.patches.queue import PatchState
from cloud_hub.registry import Registry
from cloud_hub.retention import Retention
from cloud_hub.serving import Serving
from cloud_hub.store.tables import modules
from cloud_hub.store.tables import patches as table
from firmware_profiles.profile import DeviceProfile
from modules.bundle import Chunk, FileEntry, sha256_hex
from modules.manifest import Lineage, Manifest, Runtime, encode_manifest
from modules.messages import Answer, Get, Refusal
from modules.patch import apply
from support.clock import SetClock
from support.devices import PROFILE
from support.patch_fleet import MODULE, Fleet, digest, weights
from support.trust import OPERATOR, trust_world
from support.waiting import until

SETTINGS = PatchSettings(recent=0)
Child = tuple[str, ...]


@pytest.fixture
async def fleet(hub_paths: HubPaths, clock: SetClock) -> AsyncIterator[Fleet]:
    """One device holds version 1 and is to have version 2."""
    async with trust_world(hub_paths, clock) as world:
        fleet = Fleet(world, SETTINGS)
        await fleet.release(1)
        await fleet.release(2)
        await fleet.device("cam-1", holds=1)
        await fleet.world.assign("cam-1", MODULE, 2)
        yield fleet


def builder(fleet: Fleet, clock: SetClock, child: Child = CHILD) -> Builder:
    world = fleet.world
    work = world.paths.patch_work
    work.mkdir(exist_ok=True)
    return Builder(world.store, world.blobs, fleet.wishes, fleet.settings, fleet.catalog, work, clock, child)


def patches(fleet: Fleet) -> Patches:
    return Patches(fleet.world.store, fleet.world.blobs, fleet.settings)


def hanging(folder: Path) -> tuple[Child, Path]:
    """A process that says who it is, and never ends."""
    said = folder / "pid"
    program = f"import os, pathlib, time; pathlib.Path({str(said)!r}).write_text(f'{{os.getpid()}}.'); time.sleep(600)"
    return (sys.executable, "-c", program), said


async def running(said: Path) -> int:
    await until(lambda: said.exists() and said.read_text().endswith("."), "the build to run", 60.0)
    return int(said.read_text().rstrip("."))


def ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def states(fleet: Fleet) -> list[tuple[str, int]]:
    return [(str(patch.state), patch.attempts) for patch in await fleet.patches()]


async def test_a_patch_is_built_stored_and_makes_the_new_file(fleet: Fleet, clock: SetClock) -> None:
    assert await builder(fleet, clock).step()
    (patch,) = await fleet.patches()
    assert (patch.state, patch.base, patch.target, patch.devices) == (PatchState.BUILT, digest(1), digest(2), 1)
    assert patch.sha256 is not None
    blob = await fleet.world.blobs.read(patch.sha256)
    assert len(blob) == patch.size
    assert len(blob) < 0.7 * patch.target_size == 0.7 * len(weights(2))
    made = io.BytesIO()
    apply(io.BytesIO(weights(1)), io.BytesIO(blob), made.write, patch.target_size)
    assert made.getvalue() == weights(2)
    assert list(fleet.world.paths.patch_work.iterdir()) == []
    assert not await builder(fleet, clock).step()


async def test_the_most_wanted_is_built_first_and_one_that_failed_waits(fleet: Fleet, clock: SetClock) -> None:
    await fleet.release(3)
    for name in ("cam-2", "cam-3"):
        await fleet.device(name, holds=2)
        await fleet.world.assign(name, MODULE, 3)
    breaking = (sys.executable, "-c", "raise SystemExit(9)")
    assert await builder(fleet, clock, breaking).step()
    assert [(p.base_version, p.attempts) for p in await fleet.patches()] == [(2, 1), (1, 0), (1, 0)]
    assert await builder(fleet, clock).step()
    built = [patch for patch in await fleet.patches() if patch.state is PatchState.BUILT]
    assert [(patch.base_version, patch.version, patch.devices) for patch in built] == [(1, 2, 1)]


async def test_offers_are_the_cheapest_first_and_only_from_files_that_are_held(fleet: Fleet, clock: SetClock) -> None:
    near = np.frombuffer(weights(2), np.float32).copy()
    near[:100] += 1
    await fleet.release(3, near.tobytes())
    for name in ("cam-1", "cam-2"):
        if name not in fleet.devices:
            await fleet.device(name, holds=2)
        await fleet.world.assign(name, MODULE, 3)
    working = builder(fleet, clock)
    while await working.step():
        pass
    target = sha256_hex(near.tobytes())
    offers = await patches(fleet).offers("cam-1", target, (digest(1), digest(2)))
    assert [offer.base for offer in offers] == [digest(2), digest(1)]
    assert offers[0].size < offers[1].size
    assert [offer.base for offer in await patches(fleet).offers("cam-1", target, (digest(1), "0" * 64))] == [digest(1)]
    assert await patches(fleet).offers("cam-1", target, ()) == ()
    fleet.world.blobs.path(offers[0].sha256).unlink()
    assert [o.base for o in await patches(fleet).offers("cam-1", target, (digest(1), digest(2)))] == [digest(1)]
    fleet.settings = PatchSettings(enabled=False)
    assert await patches(fleet).offers("cam-1", target, (digest(1), digest(2))) == ()


async def test_a_device_may_fetch_a_patch_that_leads_to_a_file_of_its_own(fleet: Fleet, clock: SetClock) -> None:
    await builder(fleet, clock).step()
    await fleet.device("cam-2", holds=1)
    world = fleet.world
    serving = Serving(world.store, world.blobs, world.image, world.director)
    (patch,) = await fleet.patches()
    assert patch.sha256 is not None
    get = Get("blob", patch.sha256, 0, 10)
    answer = await serving.answer("cam-1", get)
    assert isinstance(answer, Answer)
    assert (answer.total, answer.data) == (patch.size, (await world.blobs.read(patch.sha256))[:10])
    refusal = await serving.answer("cam-2", get)
    assert isinstance(refusal, Refusal)
    assert refusal.key == "not-allowed"


async def test_a_patch_that_saves_too_little_is_dropped_and_not_tried_again(fleet: Fleet, clock: SetClock) -> None:
    noise = np.random.default_rng(9).bytes(120_000)
    await fleet.release(3, noise)
    await fleet.world.assign("cam-1", MODULE, 3)
    working = builder(fleet, clock)
    assert await working.step()
    assert not await working.step()
    (patch,) = await fleet.patches()
    assert (patch.state, patch.reason) == (PatchState.DROPPED, "it would be larger than 80% of the file")
    assert await patches(fleet).offers("cam-1", sha256_hex(noise), (digest(1),)) == ()
    assert list(fleet.world.paths.patch_work.iterdir()) == []


async def test_a_build_that_fails_is_tried_a_few_times_and_keeps_the_reason(fleet: Fleet, clock: SetClock) -> None:
    fleet.world.blobs.path(digest(1)).write_bytes(b"spoilt on the disk")
    working = builder(fleet, clock)
    for attempt in range(1, SETTINGS.attempts + 1):
        assert await working.step()
        state = "failed" if attempt == SETTINGS.attempts else "queued"
        assert await states(fleet) == [(state, attempt)]
        assert not await working.step()  # not at once
        clock.advance(3600.0)
    assert not await working.step()
    assert "is no longer what was stored" in (await fleet.patches())[0].reason


async def test_a_process_that_only_breaks_is_a_failure_with_its_words(fleet: Fleet, clock: SetClock) -> None:
    child = (sys.executable, "-c", "import sys; sys.stderr.write('x' * 100_000 + 'broken'); sys.exit(7)")
    await builder(fleet, clock, child).step()
    reason = (await fleet.patches())[0].reason
    assert len(reason) <= 500
    await builder(fleet, clock, (sys.executable, "-c", "raise SystemExit(9)")).step()
    clock.advance(3600.0)
    await builder(fleet, clock, (sys.executable, "-c", "raise SystemExit(9)")).step()
    assert (await fleet.patches())[0].reason == "the encoder's process ended with status 9"


async def told(fleet: Fleet, clock: SetClock, folder: Path) -> Order:
    """What a build tells its process."""
    heard = folder / "order"
    program = f"import pathlib, sys; pathlib.Path({str(heard)!r}).write_bytes(sys.stdin.buffer.read()); sys.exit(9)"
    await builder(fleet, clock, (sys.executable, "-c", program)).step()
    return msgspec.json.decode(heard.read_bytes(), type=Order)


async def add_split(fleet: Fleet, version: int) -> None:
    """A version whose tensors lie beside the model, as large ONNX models have them."""
    blobs = fleet.world.blobs
    files = {"net/model.onnx": b"graph %d" % version, "net/weights.bin": weights(version)}
    entries = [
        FileEntry(path, len(data), await blobs.put(data), (Chunk(sha256_hex(data), len(data)),))
        for path, data in files.items()
    ]
    manifest = Manifest(
        MODULE, version, PROFILE, Lineage(MODULE, version), (), (), tuple(entries), Runtime(model="net/model.onnx")
    )
    sha256 = await blobs.put(encode_manifest(manifest))
    async with fleet.world.store.write() as connection:
        changed = update(modules).where(modules.c.version == version)
        await connection.execute(changed.values(manifest_sha256=sha256))
    fleet.manifests[version] = sha256


async def test_an_encoder_is_told_which_models_describe_external_data(
    fleet: Fleet, clock: SetClock, tmp_path: Path
) -> None:
    assert (await told(fleet, clock, tmp_path)).models is None
    clock.advance(3600.0)
    await add_split(fleet, 1)
    await add_split(fleet, 2)
    await fleet.report("cam-1", holds=1)
    order = await told(fleet, clock, tmp_path)
    assert order.models is not None
    assert [(Path(model.path).read_bytes(), model.location) for model in order.models] == [
        (b"graph 1", "weights.bin"),
        (b"graph 2", "weights.bin"),
    ]
    assert order.target.sha256 == digest(2)


async def test_devices_without_zstandard_get_patches_that_do_without(
    fleet: Fleet, clock: SetClock, tmp_path: Path
) -> None:
    assert (await told(fleet, clock, tmp_path)).zstandard
    clock.advance(3600.0)
    fleet.catalog = {PROFILE: DeviceProfile(PROFILE, "armv7l")}
    assert not (await told(fleet, clock, tmp_path)).zstandard
    clock.advance(3600.0)
    assert await builder(fleet, clock).step()
    (patch,) = await fleet.patches()
    assert patch.sha256 is not None
    program = (
        "import sys; sys.modules['backports.zstd'] = sys.modules['backports'] = None\n"
        "from modules.patch import apply\n"
        "apply(open(sys.argv[1], 'rb'), open(sys.argv[2], 'rb'), lambda data: None, int(sys.argv[3]))\n"
    )
    paths = [str(fleet.world.blobs.path(sha256)) for sha256 in (digest(1), patch.sha256)]
    decoder = await asyncio.create_subprocess_exec(sys.executable, "-c", program, *paths, str(patch.target_size))
    assert await asyncio.wait_for(decoder.wait(), 60) == 0


async def test_a_build_has_a_deadline(fleet: Fleet, clock: SetClock, tmp_path: Path) -> None:
    fleet.settings = PatchSettings(recent=0, build_s=1.0)
    child, said = hanging(tmp_path)
    await builder(fleet, clock, child).step()
    assert "it was not built after 1 s" in (await fleet.patches())[0].reason
    assert not said.exists() or ended(await running(said))


async def test_a_hub_that_stops_ends_the_build_and_the_next_one_does_it(
    fleet: Fleet, clock: SetClock, tmp_path: Path
) -> None:
    child, said = hanging(tmp_path)
    task = asyncio.create_task(builder(fleet, clock, child).keep_building())
    pid = await running(said)
    assert await states(fleet) == [("building", 1)]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended(pid)
    assert await states(fleet) == [("queued", 0)]
    assert await builder(fleet, clock).step()
    assert await states(fleet) == [("built", 1)]


async def test_a_hub_that_was_killed_in_a_build_tries_again_but_not_for_ever(fleet: Fleet, clock: SetClock) -> None:
    await fleet.take_in(await fleet.wishes.now())
    for attempt in range(1, SETTINGS.attempts + 1):
        assert await builder(fleet, clock)._next() is not None  # written down, and then the power goes
        assert await states(fleet) == [("building", attempt)]
        await builder(fleet, clock)._recover()
        clock.advance(3600.0)
    (patch,) = await fleet.patches()
    assert (patch.state, patch.reason) == (PatchState.FAILED, "the hub ended while it was built")
    assert not await builder(fleet, clock).step()


async def test_a_build_that_nobody_needs_any_more_is_ended(
    fleet: Fleet, clock: SetClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "LOOK_S", 0.05)
    child, said = hanging(tmp_path)
    task = asyncio.create_task(builder(fleet, clock, child).step())
    pid = await running(said)
    async with fleet.world.store.write() as connection:
        await fleet.world.desired.unassign(connection, "cam-1", MODULE)
    world = fleet.world
    await Registry(world.store, world.blobs, world.events, clock).delete(MODULE, 2, OPERATOR)
    await asyncio.wait_for(task, 60)
    assert ended(pid)
    assert await states(fleet) == []


async def test_no_more_are_built_than_may_lie_on_the_disk(fleet: Fleet, clock: SetClock) -> None:
    assert await builder(fleet, clock).step()
    await fleet.release(3)
    await fleet.world.assign("cam-1", MODULE, 3)
    async with fleet.world.store.write() as connection:
        await connection.execute(update(table).values(size=SETTINGS.total_mib * 2**20))
    assert not await builder(fleet, clock).step()
    assert await states(fleet) == [("queued", 0), ("built", 1)]


async def test_a_patch_whose_blob_is_gone_is_built_again_after_the_next_sweep(fleet: Fleet, clock: SetClock) -> None:
    working = builder(fleet, clock)
    await working.step()
    (patch,) = await fleet.patches()
    assert patch.sha256 is not None
    world = fleet.world
    blob = world.blobs.path(patch.sha256)
    blob.unlink()
    retention = Retention(HubConfig(patches=SETTINGS), world.store, world.blobs, world.events, clock)
    assert (await retention.sweep()).patches == 1
    clock.advance(3600.0)
    assert await working.step()
    assert blob.is_file()


async def test_what_is_of_no_use_any_more_is_swept_with_its_blob(fleet: Fleet, clock: SetClock) -> None:
    await builder(fleet, clock).step()
    (patch,) = await fleet.patches()
    assert patch.sha256 is not None
    blob = fleet.world.blobs.path(patch.sha256)
    world = fleet.world
    retention = Retention(HubConfig(patches=SETTINGS), world.store, world.blobs, world.events, clock)
    os.utime(blob, (0, 0))
    assert (await retention.sweep()).patches == 0
    assert blob.exists()
    await fleet.report("cam-1", holds=2)
    swept = await retention.sweep()
    assert (swept.patches, swept.files, swept.bytes) == (1, 1, patch.size)
    assert not blob.exists()
    assert await fleet.patches() == []
