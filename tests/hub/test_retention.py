"""A hub forgets what is old, and nothing that is still needed."""

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, func, insert, select
from typer.testing import CliRunner

from cloud_hub.blobs import FolderBlobs
from cloud_hub.cli import app
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.events import Events
from cloud_hub.registry import NewModel, Registry
from cloud_hub.retention import DAY_S, SLICE, Retention, Swept
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import look_scopes, looks, modules, samples, windows
from modules.messages import AgentEvent, encode
from support.clock import SetClock
from support.monitoring import Built, Monitored, build_module, make_sample, make_window

DEVICE = "edge-a"


@pytest.fixture
def retention(store: Store, blobs: FolderBlobs, events: Events, clock: SetClock) -> Retention:
    return Retention(HubConfig(), store, blobs, events, clock)


@pytest.fixture
def hub(store: Store, blobs: FolderBlobs, events: Events, clock: SetClock) -> Monitored:
    return Monitored(store, blobs, events, clock)


@pytest.fixture
async def built(store: Store, blobs: FolderBlobs) -> Built:
    return await build_module(store, blobs, np.random.default_rng(3).normal(size=(50, 2)))


async def counts(store: Store) -> list[int]:
    async with store.read() as connection:
        return [
            (await connection.execute(select(func.count()).select_from(table))).scalar_one()
            for table in (windows, samples, looks)
        ]


def age(blobs: FolderBlobs, sha256: str, at: float) -> None:
    os.utime(blobs.path(sha256), (at, at))


async def send(hub: Monitored, built: Built, numbers: int = 1) -> None:
    rows = np.zeros((5, 2))
    for number in range(numbers):
        await hub.send(DEVICE, make_window(built, rows, hub.clock()))
        await hub.send(DEVICE, make_sample(built, f"p-{number}", hub.clock(), rows[0]))


async def test_windows_samples_and_looks_go_each_at_its_own_age(
    hub: Monitored, built: Built, retention: Retention, clock: SetClock
) -> None:
    await send(hub, built)
    start = clock()
    for days, left in ((29, [1, 1, 2]), (31, [1, 0, 2]), (91, [0, 0, 2]), (402, [0, 0, 0])):
        clock.now = start + days * DAY_S
        await retention.sweep()
        assert await counts(hub.store) == left, days
    assert [event.details["samples"] for event in await hub.events.list(kind="retention.swept")] == [0, 0, 1]
    async with hub.store.read() as connection:
        assert (await connection.execute(select(look_scopes))).all() == [], "nobody has looks any more"


async def test_only_what_is_old_goes_and_a_second_sweep_finds_nothing(
    hub: Monitored, built: Built, retention: Retention, clock: SetClock
) -> None:
    await send(hub, built)
    clock.now += 31 * DAY_S
    await hub.send(DEVICE, make_sample(built, "young", clock(), np.zeros(2)))
    assert await retention.sweep() == Swept(samples=1)
    assert await retention.sweep() == Swept()


async def test_more_rows_than_one_slice_go_too(
    hub: Monitored, built: Built, retention: Retention, clock: SetClock
) -> None:
    sample = make_sample(built, "p", clock(), np.zeros(2))
    for _ in range(5):
        await hub.send(DEVICE, *[sample] * (SLICE // 4))
    clock.now += 31 * DAY_S
    assert (await retention.sweep()).samples == 5 * (SLICE // 4)


async def test_an_upload_that_nobody_registered_goes_after_a_day(
    blobs: FolderBlobs, retention: Retention, clock: SetClock
) -> None:
    orphan, fresh = await blobs.put(b"never registered"), await blobs.put(b"just uploaded")
    age(blobs, orphan, clock() - 1.1 * DAY_S)
    age(blobs, fresh, clock() - 0.9 * DAY_S)
    assert await retention.sweep() == Swept(files=1, bytes=len(b"never registered"))
    assert not blobs.path(orphan).exists()
    assert blobs.path(fresh).exists()


async def test_an_old_file_that_is_uploaded_again_is_new_again(
    blobs: FolderBlobs, retention: Retention, clock: SetClock
) -> None:
    sha256 = await blobs.put(b"again")
    age(blobs, sha256, 0.0)
    await blobs.put(b"again")
    clock.now = blobs.path(sha256).stat().st_mtime + DAY_S / 2
    assert await retention.sweep() == Swept()


async def test_a_file_that_is_stored_anew_during_the_sweep_stays(blobs: FolderBlobs) -> None:
    sha256 = await blobs.put(b"golden input")
    stored_at = blobs.path(sha256).stat().st_mtime
    assert await blobs.remove(sha256, before=stored_at) is None
    assert await blobs.remove(sha256, before=stored_at + 1.0) == len(b"golden input")
    assert await blobs.remove(sha256, before=stored_at + 1.0) is None


async def test_files_of_a_module_that_is_registered_during_the_sweep_stay(
    store: Store, blobs: FolderBlobs, built: Built, retention: Retention
) -> None:
    for sha256 in (built.manifest_sha256, built.reference_sha256):
        age(blobs, sha256, 0.0)
    async with store.read() as connection:
        row = (await connection.execute(select(modules))).one()._asdict()
    async with store.write() as connection:
        await connection.execute(delete(modules))
    orphan = await blobs.put(b"its removal is the last act of the sweep")
    age(blobs, orphan, 0.0)
    listed = await blobs.stored_before(1.0)

    class Registering(Retention):
        async def _with_files(self, manifests: set[str]) -> set[str]:
            if not manifests:  # the first look has found no module; here somebody is faster than the writer's turn
                async with store.write() as connection:
                    await connection.execute(insert(modules).values(row))
            return await super()._with_files(manifests)

    assert built.reference_sha256 in listed
    sweep = Registering(HubConfig(), store, blobs, retention._events, retention._clock)
    assert (await sweep.sweep()).files == 1
    assert blobs.path(built.reference_sha256).exists()


async def test_files_of_models_and_modules_stay_however_old(
    store: Store, blobs: FolderBlobs, events: Events, built: Built, retention: Retention, clock: SetClock
) -> None:
    model = await blobs.put(b"weights")
    await Registry(store, blobs, events, clock).register(NewModel("m"), {"m.onnx": (model, 7)}, "operator")
    for sha256 in (model, built.manifest_sha256, built.reference_sha256):
        age(blobs, sha256, 0.0)
    assert await retention.sweep() == Swept()


async def test_the_trail_of_events_is_kept(hub: Monitored, retention: Retention, clock: SetClock) -> None:
    await hub.send(DEVICE, encode(AgentEvent(1.0, "info", "tick", "x")), stream="event")
    clock.now += 10_000 * DAY_S
    await retention.sweep()
    assert len(await hub.events.list(kind="agent.tick")) == 1


def test_the_command_says_what_it_removed(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    made = CliRunner().invoke(app, ["init", str(folder), "--dev", "--api-port", "0", "--mqtt-port", "0"])
    assert made.exit_code == 0, made.output
    blobs = FolderBlobs(HubPaths(folder).blobs)
    age(blobs, asyncio.run(blobs.put(b"lost")), 0.0)
    result = CliRunner().invoke(app, ["gc", str(folder)])
    assert result.output == "removed 0 windows, 0 samples, 0 looks, 0 patches, 1 files (4 bytes)\n"
