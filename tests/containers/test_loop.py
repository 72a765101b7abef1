"""From the hub's build to a device's endpoint, and what the device's doctor says of its engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.containers.settings import ContainerSettings
from agent.doctor_containers import containers
from cloud_hub.blobs import FolderBlobs
from cloud_hub.building.request import ContainerRequest
from cloud_hub.config import HubPaths
from cloud_hub.events import Events
from cloud_hub.store.engine import Store, upgrade
from modules.manifest import encode_manifest
from support.built import iris, rows
from support.clock import SetClock
from support.contained import WANTED, Contained
from support.container_rig import Rig
from support.dockerd import Dockerd
from support.predict import predict
from support.shop import Shop

pytestmark = pytest.mark.timeout(180)  # the first one starts an engine, and makes an image


async def test_what_the_hub_builds_around_a_base_serves_on_a_device(rig: Rig, base_image: Path, tmp_path: Path) -> None:
    paths = HubPaths(tmp_path / "hub")
    paths.root.mkdir(mode=0o700)
    upgrade(paths.database_url)
    store = await Store.open(paths.database_url, migrate=False)
    try:
        blobs, clock = FolderBlobs(paths.blobs), SetClock()
        shop = Shop(store, blobs, Events(store, clock), clock)
        await shop.register(model_onnx=iris(1))
        asked = ContainerRequest(base=await blobs.put_file(base_image), python=WANTED.python)
        manifest = await shop.build(reference=await shop.arrays(X=rows(20)), container=asked)
        files = {entry.path: blobs.path(entry.sha256) for entry in manifest.files}
        await rig.keeper.start(rig.set(Contained(manifest, encode_manifest(manifest), files)))
        address = await rig.serving()
        assert await predict(address, count=2) == [0, 0]
        assert rig.keeper.reports()[0].level == "isolated"
    finally:
        await store.close()


async def test_the_doctor_says_what_engine_is_there_or_why_none_is(engine: Dockerd) -> None:
    there = await containers(ContainerSettings(engine=engine.address))
    assert "Docker" in there.text
    assert engine.address in there.text
    gone = await containers(ContainerSettings(engine="unix:///nowhere/docker.sock"))
    assert "do not run here" in gone.text
