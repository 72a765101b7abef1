"""A model that was trained a little further reaches a device as a patch, and as a whole where the patch is no good."""

from __future__ import annotations

import os
import signal
import sqlite3
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from cloud_hub.blobs import FolderBlobs
from cloud_hub.config import HubPaths
from cloud_hub.patches.encode import encode
from cloud_hub.patches.queue import Patch, PatchState
from support.waiting import until
from system.relay import Relay
from system.world import DEADLINE_S, OVER_MQTT, Device, World

pytestmark = pytest.mark.asyncio(loop_scope="session")
NAME = "tuned"


class Training:
    """A classifier of iris with 480,000 weights, all of which move a little with every epoch."""

    def __init__(self) -> None:
        features, self._labels = load_iris(return_X_y=True)
        self._features = features.astype(np.float32)
        self._model = MLPClassifier((800, 600), learning_rate_init=1e-5, random_state=1)

    def epoch(self) -> bytes:
        """The model after one more, as ONNX."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model.partial_fit(self._features, self._labels, classes=[0, 1, 2])
        options = {id(self._model): {"zipmap": False}}
        data: bytes = to_onnx(self._model, self._features[:1], options=options).SerializeToString()
        return data


class Tuned:
    """One device that holds the last version, and the wire to it."""

    def __init__(self, world: World, device: Device, relay: Relay) -> None:
        self.world, self.device, self._relay = world, device, relay
        self._training = Training()
        self.version = 0
        self.models: list[bytes] = []

    @property
    def hub(self) -> HubPaths:
        return HubPaths(self.world.hub.folder)

    async def release(self) -> int:
        """Trained for one more epoch, built and signed; its version."""
        self.models.append(self._training.epoch())
        files = {"model.onnx": self.models[-1]}
        self.version = await self.world.release(len(self.models), name=NAME, extra=files)
        return self.version

    async def roll_out(self) -> int:
        """The last version to the device, until it serves; the bytes that came over the wire."""
        before = self._relay.received
        await self.world.roll_out(self.device, self.version, NAME)
        return self._relay.received - before

    async def built(self) -> list[Patch]:
        """Waits until the hub has built all patches to the last version; that from the version before comes first."""
        found: list[Patch] = []

        async def so() -> bool:
            patches = await self.world.client.patches(NAME)
            found[:] = sorted((p for p in patches if p.version == self.version), key=lambda p: -p.base_version)
            return bool(found) and all(patch.state is PatchState.BUILT for patch in found)

        await self.world.until(f"the patches to version {self.version} to be built", so)
        assert found[0].base_version == self.version - 1
        return found


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def tuned(whole: World) -> AsyncIterator[Tuned]:
    """The device holds version 1."""
    await whole.ensure_up()
    async with whole.device("tuned-1", start=False) as device, Relay(whole.mqtt_port) as relay:
        device.configure(mqtt_port=relay.port, fetch=OVER_MQTT)
        await device.start()
        tuned = Tuned(whole, device, relay)
        await tuned.release()
        assert await tuned.roll_out() > len(tuned.models[0])
        yield tuned


async def test_a_model_that_was_trained_further_comes_as_a_patch(tuned: Tuned) -> None:
    version = await tuned.release()
    patch, *_ = await tuned.built()
    assert patch.size is not None
    assert patch.size < 0.45 * len(tuned.models[-1])
    assert await tuned.roll_out() < 0.6 * len(tuned.models[-1])
    assert _model(tuned.device, version) == tuned.models[-1]


async def test_a_patch_that_is_spoilt_on_the_hub_is_not_taken_and_the_model_comes_whole(tuned: Tuned) -> None:
    version = await tuned.release()
    for patch in await tuned.built():
        assert patch.sha256 is not None
        blob = FolderBlobs(tuned.hub.blobs).path(patch.sha256)
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.write_bytes(data)
    assert await tuned.roll_out() > len(tuned.models[-1])
    assert _model(tuned.device, version) == tuned.models[-1]


async def test_a_patch_that_makes_another_file_is_not_taken_and_the_model_comes_whole(
    tuned: Tuned, tmp_path: Path
) -> None:
    version = await tuned.release()
    patch, *_ = await tuned.built()
    paths = [tmp_path / name for name in ("wrong-base", "target", "patch")]
    for path, data in zip(paths, (tuned.models[0], tuned.models[-1]), strict=False):
        path.write_bytes(data)
    encode(*paths)
    sha256 = await FolderBlobs(tuned.hub.blobs).put_file(paths[2])
    with closing(sqlite3.connect(tuned.hub.database, timeout=DEADLINE_S)) as database:
        change = "update patches set sha256 = ?, size = ? where target = ?"
        database.execute(change, (sha256, paths[2].stat().st_size, patch.target))
        database.commit()
    assert await tuned.roll_out() > len(tuned.models[-1])
    assert _model(tuned.device, version) == tuned.models[-1]


async def test_a_hub_that_is_killed_while_it_builds_goes_on_when_it_is_back(tuned: Tuned) -> None:
    async with _next_build_stopped(tuned) as pid:
        await tuned.world.kill_hub()
        await until(lambda: not _runs_encoder(pid), "the encoder to end with its hub", DEADLINE_S)
        await tuned.world.hub.start()
    assert max(patch.attempts for patch in await tuned.built()) == 2


@asynccontextmanager
async def _next_build_stopped(tuned: Tuned) -> AsyncIterator[int]:
    """The process of the build of the next version, which does not go on."""
    await tuned.release()
    stopped: list[int] = []

    def caught() -> bool:
        for path in Path("/proc").glob("[0-9]*"):
            if _runs_encoder(int(path.name)) and _parent(path) == tuned.world.hub.service.pid:
                os.kill(int(path.name), signal.SIGSTOP)
                stopped.append(int(path.name))
        return bool(stopped)

    await until(caught, "the hub to build a patch", DEADLINE_S)
    yield stopped[0]


def _runs_encoder(pid: int) -> bool:
    try:
        return b"cloud_hub.patches.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _model(device: Device, version: int) -> bytes:
    """As it lies in the device's slot."""
    manifest = device.module(NAME)
    assert manifest is not None
    assert manifest.version == version
    return (device.paths.slots / manifest.manifest_sha256[:32] / "model.onnx").read_bytes()
