"""What is not run: images that are not what was signed, containers that ask for too much; and engines that are gone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent.containers.options import NotAllowed, options
from agent.containers.protocol import MANAGED
from agent.containers.settings import ContainerSettings
from agent.slots import Slots
from modules.containers import Container
from modules.errors import ManifestError
from modules.images import blob_path, read_image
from modules.manifest import encode_manifest
from support.built import build
from support.contained import WANTED, Contained, entry
from support.container_rig import Rig
from support.dockerd import Dockerd
from support.predict import predict
from support.waiting import until

Make = Callable[..., Contained]
pytestmark = pytest.mark.timeout(180)  # the first one starts an engine, and makes an image


UNSEEN = 9  # a version that no other test has loaded: what an engine has already is not read again


def spoil(path: Path) -> None:
    """One byte in the middle, as a bad disk or a hand with root's rights would; the size stays."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def largest_layer(module: Contained) -> str:
    container = module.manifest.runtime.container
    assert container is not None
    image = read_image(container, lambda path: module.files[path].read_bytes())
    return blob_path(max((layer for layer in image.manifest.layers), key=lambda layer: layer.size).hex)


async def told(rig: Rig) -> tuple[str, str]:
    """The first failure that the module's unit tells, by its key."""
    await until(lambda: bool(rig.told) and rig.unit().failure is not None, "a failure to be told", 40)
    failure = rig.unit().failure
    assert failure is not None
    return failure.key, str(failure)


async def test_a_layer_that_was_tampered_with_is_not_loaded(rig: Rig, contained: Make) -> None:
    module = contained(build(version=UNSEEN))
    target = rig.set(module)
    spoil(Slots(rig.paths.slots).path(module.sha256) / largest_layer(module))
    await rig.keeper.start(target)
    key, text = await told(rig)
    assert key == "image-damaged"
    assert "SHA-256" in text


async def test_a_model_that_was_tampered_with_is_not_put_into_its_layer(rig: Rig, contained: Make) -> None:
    module = contained(build(version=UNSEEN))
    target = rig.set(module)
    spoil(Slots(rig.paths.slots).path(module.sha256) / "model.onnx")
    await rig.keeper.start(target)
    key, text = await told(rig)
    assert key == "image-damaged"
    assert "model.onnx" in text


async def test_an_image_of_another_digest_than_the_one_that_is_shipped_is_refused(rig: Rig, contained: Make) -> None:
    module, other = contained(build(version=1)), contained(build(version=2))
    assert module.manifest.runtime.container is not None
    runtime = msgspec.structs.replace(
        module.manifest.runtime,
        container=msgspec.structs.replace(
            module.manifest.runtime.container,
            digest=other.manifest.runtime.container.digest,  # type: ignore[union-attr]
        ),
    )
    manifest = msgspec.structs.replace(module.manifest, runtime=runtime)
    await rig.keeper.start(rig.set(Contained(manifest, encode_manifest(manifest), module.files)))
    key, text = await told(rig)
    assert key == "image-refused"
    assert "not among the module's files" in text


async def test_an_image_made_of_another_model_than_is_shipped_is_refused_by_the_engine(
    rig: Rig, contained: Make, tmp_path: Path
) -> None:
    module = contained(build(version=UNSEEN))
    other = tmp_path / "other.onnx"
    other.write_bytes(module.files["model.onnx"].read_bytes())
    spoil(other)
    files = {**module.files, "model.onnx": other}
    manifest = msgspec.structs.replace(module.manifest, files=tuple(entry(path, files[path]) for path in sorted(files)))
    await rig.keeper.start(rig.set(Contained(manifest, encode_manifest(manifest), files)))
    key, text = await told(rig)
    assert key == "image-refused"
    assert "diffID" in text


@pytest.mark.parametrize(
    ("address", "key", "words"),
    [("unix:///nowhere/docker.sock", "engine-unreachable", "is it running"), ("", "engine-absent", "engine is empty")],
)
async def test_without_an_engine_a_module_says_so_and_goes_on_trying(
    make_rig: Callable[..., Rig], contained: Make, address: str, key: str, words: str
) -> None:
    rig = make_rig(engine=address)
    await rig.keeper.start(rig.set(contained(build())))
    await until(lambda: rig.state() == "failed", "five tries", 40)
    found, text = await told(rig)
    assert found == key
    assert words in text


def test_networks_and_devices_are_given_only_where_the_device_says_so(contained: Make) -> None:
    def asked(settings: ContainerSettings, **wanted: object) -> dict[str, object]:
        container = msgspec.structs.replace(WANTED, **wanted)
        module = contained(build()).manifest
        manifest = msgspec.structs.replace(module, runtime=msgspec.structs.replace(module.runtime, container=container))
        host: dict[str, object] = options(manifest, "sha256:1", settings, "me", 1000, Path("/door"))["HostConfig"]
        return host

    strict, open_ = ContainerSettings(), ContainerSettings(networks=("host",), devices=("/dev/video0",))
    assert asked(strict)["NetworkMode"] == "none"
    with pytest.raises(NotAllowed, match="network host"):
        asked(strict, network="host")
    assert asked(open_, network="host")["NetworkMode"] == "host"
    with pytest.raises(NotAllowed, match="/dev/video0"):
        asked(strict, devices=("/dev/video0",))
    assert asked(open_, devices=("/dev/video0",))["Devices"]
    assert asked(strict, gpus=-1)["DeviceRequests"] == [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}]


@pytest.mark.parametrize(
    "wanted",
    [
        {"devices": ("/etc/shadow",)},
        {"devices": ("/dev/../etc/shadow",)},
        {"writable": ("tmp",)},
        {"network": "container:other name"},
        {"digest": "latest"},
        {"gpus": -2},
        {"environment": {"A=B": "c"}},
        {"port": 0},
    ],
)
def test_a_container_that_cannot_be_meant_is_no_container(wanted: dict[str, object]) -> None:
    with pytest.raises(ManifestError):
        msgspec.convert({"image": "image", "digest": f"sha256:{'0' * 64}"} | wanted, Container)


async def test_containers_that_a_killed_agent_has_left_are_removed(rig: Rig, contained: Make, engine: Dockerd) -> None:
    await rig.keeper.start(rig.set(contained(build())))
    await rig.serving()
    with engine.client() as client:
        serving = client.containers()[0]
        labels = {MANAGED: serving["Labels"][MANAGED]}
        client.create_container(serving["ImageID"], name="left-behind", labels=labels)
        client.create_container(serving["ImageID"], name="somebody-else", labels={MANAGED: "another"})
        rig.runtime.tidy()
        await until(lambda: len(client.containers(all=True)) == 2, "the one that was left to go")
        names = {name for one in client.containers(all=True) for name in one["Names"]}
        assert "/somebody-else" in names
        assert "/left-behind" not in names
        client.remove_container("somebody-else", force=True)
    assert await predict(rig.runtime.address("iris")) == [0]


async def test_an_image_goes_with_its_slot(rig: Rig, contained: Make, engine: Dockerd) -> None:
    first, second = contained(build(version=1)), contained(build(version=2))
    await rig.keeper.start(rig.set(first))
    await rig.serving()
    target = rig.set(second)
    await rig.keeper.switch(target, {"iris": await rig.keeper.spare(target.modules[0])})
    old, new = (rig.containers._tag(module.sha256[:32]) for module in (first, second))
    with engine.client() as client:
        assert client.images(old)
        rig.slots.prune([second.sha256])
        rig.runtime.tidy()
        await until(lambda: not client.images(old), "the old image to go")
        assert client.images(new)


AGENT = """
import asyncio, sys
from pathlib import Path
from agent.config import StatePaths
from agent.containers.settings import ContainerSettings
from agent.installed import Installed, ModuleSet
from agent.store import AgentStore
from support.container_rig import Rig

async def main(root, engine, sha256):
    paths = StatePaths(Path(root))
    async with AgentStore(paths.database) as store:
        rig = Rig(paths, store, ContainerSettings(engine=engine))
        await rig.keeper.start(ModuleSet(1, 1, (Installed("iris", 1, sha256, 1, "d"),)))
        await rig.serving()
        print("serving", flush=True)
        await asyncio.sleep(3600)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_an_agent_that_is_killed_leaves_no_container_behind(
    rig: Rig, contained: Make, engine: Dockerd, repository: Path
) -> None:
    module = contained(build())
    rig.installed(module)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(repository), str(repository / "tests")])}
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", AGENT, str(rig.paths.root), engine.address, module.sha256,
        stdout=subprocess.PIPE, env=environment, cwd="/",
    )  # fmt: skip
    try:
        assert agent.stdout is not None
        async with asyncio.timeout(40):
            assert await agent.stdout.readline() == b"serving\n"
        with engine.client() as client:
            assert len(client.containers(all=True)) == 1
            agent.send_signal(signal.SIGKILL)
            await agent.wait()
            await until(lambda: not client.containers(all=True), "its container to go", 30)
    finally:
        if agent.returncode is None:
            agent.kill()
            await agent.wait()
