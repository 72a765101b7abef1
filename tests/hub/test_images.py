"""Images without an engine: what the hub makes of a base and a module, and which bases it refuses."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from cloud_hub.blobs import FolderBlobs
from cloud_hub.building.request import ContainerRequest
from cloud_hub.errors import Unavailable, Unprocessable
from cloud_hub.events import Events
from cloud_hub.images.base import read_base
from cloud_hub.images.bases import Bases
from cloud_hub.images.settings import ImageSettings
from cloud_hub.packaging import Packaging
from cloud_hub.store.engine import Store
from firmware_profiles.catalog import built_in
from modules.images import Image, ImageError, load_archive, own_files, read_image
from modules.layers import stream
from modules.manifest import Manifest, decode_manifest
from support.clock import SetClock
from support.shop import Shop, linear


def tar_of(files: dict[str, bytes]) -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return body.getvalue()


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


LAYERS = (tar_of({"bin/python3": b"#!", "etc/passwd": b"root"}), tar_of({"etc/passwd": b"root and more"}))


def config_of(layers: tuple[bytes, ...] = LAYERS, architecture: str = "amd64") -> dict[str, Any]:
    return {
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Healthcheck": {"Test": ["CMD", "true"]}},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        "history": [{"created_by": "somebody"}] * len(layers),
    }


def saved(config: dict[str, Any] | None = None, layers: tuple[bytes, ...] = LAYERS) -> bytes:
    """As `docker save` writes it."""
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = [{"Config": "c.json", "RepoTags": None, "Layers": names}]
    files = {"manifest.json": json.dumps(manifest).encode(), "c.json": json.dumps(config or config_of()).encode()}
    return tar_of(files | dict(zip(names, layers, strict=True)))


def oci_blobs(architectures: tuple[str, ...] = ("arm64", "amd64")) -> tuple[dict[str, bytes], str]:
    """An index over several architectures; layers are packed."""
    blobs: dict[str, bytes] = {}

    def put(data: bytes) -> dict[str, Any]:
        blobs[digest_of(data)] = data
        return {"digest": digest_of(data), "size": len(data), "mediaType": "application/octet-stream"}

    entries = []
    for architecture in architectures:
        config = put(json.dumps(config_of(architecture=architecture)).encode())
        layers = [put(gzip.compress(layer, mtime=0)) for layer in LAYERS]
        manifest = put(json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode())
        entries.append(manifest | {"platform": {"os": "linux", "architecture": architecture}})
    index = put(json.dumps({"schemaVersion": 2, "manifests": entries}).encode())
    return blobs, index["digest"]


def layout() -> bytes:
    """An OCI image layout as a tar archive."""
    blobs, index = oci_blobs()
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": blobs[index]}
    return tar_of(files | {f"blobs/{digest.replace(':', '/')}": data for digest, data in blobs.items()})


def image_of(manifest: Manifest, blobs: FolderBlobs) -> Image:
    entries = {entry.path: entry for entry in manifest.files}
    assert manifest.runtime.container is not None
    return read_image(manifest.runtime.container, lambda path: blobs.path(entries[path].sha256).read_bytes())


@pytest.fixture
async def shop(store: Store, blobs: FolderBlobs, events: Events, clock: SetClock) -> Shop:
    shop = Shop(store, blobs, events, clock)
    await shop.register(model_onnx=linear(2.0))
    return shop


async def contained(shop: Shop, archive: bytes, **container: Any) -> Manifest:
    reference = await shop.arrays(x=[[1.0, 2.0], [3.0, 4.0]])
    asked = ContainerRequest(**({"base": await shop.blobs.put(archive)} | container))
    return await shop.build(reference=reference, container=asked)


@pytest.mark.parametrize("base", [saved(), layout()], ids=["docker-save", "oci-layout"])
async def test_a_module_in_a_container_is_its_files_and_an_image_that_names_them(shop: Shop, base: bytes) -> None:
    manifest = await contained(shop, base)
    container = manifest.runtime.container
    assert container is not None
    assert (manifest.runtime.kind, manifest.requires.agent_version) == ("container", "0.2.0")
    image = image_of(manifest, shop.blobs)
    assert image.digest == container.digest
    assert image.config.rootfs.diff_ids[:2] == tuple(digest_of(layer) for layer in LAYERS)
    assert [layer.made_here for layer in image.manifest.layers] == [False, False, False, True]
    assert set(own_files(manifest)) >= {"model.onnx", "golden.msgpack", "module.json"}
    starts = image.config.config
    assert starts["Entrypoint"][-1] == "/mooring/module"
    assert "Healthcheck" not in starts
    assert "PATH=/bin" in starts["Env"]


async def test_the_archive_to_load_holds_every_layer_by_what_it_unpacks_to(shop: Shop) -> None:
    manifest = await contained(shop, saved())
    image = image_of(manifest, shop.blobs)
    entries = {entry.path: entry for entry in manifest.files}
    pieces = load_archive(image, manifest, "test:1")
    body = b"".join(stream(pieces, lambda path: shop.blobs.path(entries[path].sha256).open("rb")))
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        [loaded] = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        layers = [tar.extractfile(name).read() for name in loaded["Layers"]]  # type: ignore[union-attr]
    layers = [gzip.decompress(layer) if layer.startswith(b"\x1f\x8b") else layer for layer in layers]
    assert tuple(map(digest_of, layers)) == image.config.rootfs.diff_ids
    with tarfile.open(fileobj=io.BytesIO(layers[-1])) as tar:
        inner = decode_manifest(tar.extractfile("mooring/module/module.json").read())  # type: ignore[union-attr]
        assert (inner.runtime.kind, inner.name) == ("process", "iris")
        assert all((entry.uid, entry.mtime) == (0, 0) and not entry.mode & 0o222 for entry in tar if entry.isreg())
    with tarfile.open(fileobj=io.BytesIO(layers[-2])) as tar:
        assert "mooring/code/agent/sandbox/worker.py" in tar.getnames()
        assert not any(name.endswith(".pyc") for name in tar.getnames())


async def test_the_same_input_gives_the_same_digest(shop: Shop) -> None:
    first, second = [(await contained(shop, saved())).runtime.container for _ in range(2)]
    assert first == second


async def test_wheels_go_into_the_layer_of_the_worker(shop: Shop) -> None:
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as files:
        files.writestr("lib/__init__.py", "here = True")
        files.writestr("lib-1.data/purelib/more.py", "")
        files.writestr("lib-1.data/scripts/tool", "")
    manifest = await contained(shop, saved(), wheels=(await shop.blobs.put(wheel.getvalue()),))
    image = image_of(manifest, shop.blobs)
    layer = gzip.decompress(shop.blobs.path(image.manifest.layers[-2].hex).read_bytes())
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        names = [name for name in tar.getnames() if name.startswith("mooring/site/") and "." in name]
    assert names == ["mooring/site/lib/__init__.py", "mooring/site/more.py"]


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (b"no archive at all", "tar archive"),
        (tar_of({"readme": b""}), "got neither"),
        (saved(config_of(architecture="arm64")), "linux/amd64"),
        (saved(config_of(), (LAYERS[0], LAYERS[0])), "to unpack to"),
        (saved(config_of((LAYERS[0],))), "layers as in its config"),
        (saved(config_of((b"\x28\xb5\x2f\xfd",)), (b"\x28\xb5\x2f\xfd",)), "zstd"),
        (tar_of({"manifest.json": b'[{"Config":"../../etc/passwd","Layers":["x"]}]'}), "no file of the archive"),
        (tar_of({"manifest.json": b"[]"}), "one image"),
        (tar_of({"manifest.json": b"{"}), "base image"),
        (tar_of({"index.json": b'{"manifests":[{"digest":"sha256:0"}]}'}), "no file of the archive"),
    ],
)
def test_what_is_no_base_image_is_refused_by_name(base: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "base.tar"
    path.write_bytes(base)
    with pytest.raises(ImageError, match=words):
        read_base(path, "amd64", tmp_path / "work")


async def test_a_base_that_is_refused_builds_nothing(shop: Shop) -> None:
    with pytest.raises(Unprocessable, match="nothing was built") as caught:
        await contained(shop, saved(config_of(architecture="arm64")))
    assert caught.value.key == "image-refused"
    assert await shop.packaging.list() == []


@pytest.mark.parametrize(
    ("asked", "key", "words"),
    [
        ({"base": "python:3.11"}, "image-refused", "a tag may be another image"),
        ({"base": f"evil.example/python@sha256:{'0' * 64}"}, "image-refused", "images.registries"),
        ({"dockerfile": "0" * 64}, "dockerfile-refused", "images.engine"),
        ({"devices": ("/etc/shadow",)}, "container-invalid", "devices"),
    ],
)
async def test_what_the_settings_do_not_allow_is_not_done(
    shop: Shop, asked: dict[str, Any], key: str, words: str
) -> None:
    with pytest.raises(Unprocessable, match=words) as caught:
        await contained(shop, saved(), **asked)
    assert caught.value.key == key


@pytest.fixture
async def registry() -> AsyncIterator[tuple[str, str, dict[str, bytes]]]:
    """A registry with one image, which wants a token that it gives to anybody: host, index's digest, its blobs."""
    blobs, index = oci_blobs()
    app = web.Application()

    async def token(request: web.Request) -> web.Response:
        assert request.query["scope"] == "repository:python:pull"
        return web.json_response({"token": "for-anybody"})

    async def blob(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer for-anybody":
            realm = f'Bearer realm="http://{request.host}/token",service="x",scope="repository:python:pull"'
            return web.Response(status=401, headers={"WWW-Authenticate": realm})
        data = blobs.get(request.match_info["digest"])
        return web.Response(status=404) if data is None else web.Response(body=data)

    app.router.add_get("/token", token)
    app.router.add_get("/v2/python/{kind:manifests|blobs}/{digest}", blob)
    async with TestServer(app) as server:
        yield f"127.0.0.1:{server.port}", index, blobs


async def test_a_base_is_pulled_from_a_registry_by_its_digest(
    store: Store, blobs: FolderBlobs, events: Events, clock: SetClock, registry: tuple[str, str, dict[str, bytes]]
) -> None:
    host, index, held = registry
    shop = Shop(store, blobs, events, clock)
    bases = Bases(ImageSettings(registries=(host,)))
    shop.packaging = Packaging(store, blobs, events, shop.registry, built_in(), "acme", clock, bases=bases)
    await shop.register(model_onnx=linear(2.0))
    manifest = await contained(shop, b"", base=f"{host}/python@{index}")
    image = image_of(manifest, blobs)
    assert image.config.rootfs.diff_ids[:2] == tuple(digest_of(layer) for layer in LAYERS)
    held[index] += b" "
    with pytest.raises(Unprocessable, match=f"expected {index}"):
        await contained(shop, b"", base=f"{host}/python@{index}")
    with pytest.raises(Unprocessable, match="expected status 200, got 404"):
        await contained(shop, b"", base=f"{host}/python@sha256:{'0' * 64}")


async def test_a_registry_that_is_not_there_is_said_to_be_so(
    store: Store, blobs: FolderBlobs, events: Events, clock: SetClock
) -> None:
    shop = Shop(store, blobs, events, clock)
    bases = Bases(ImageSettings(registries=("127.0.0.1:9",)))
    shop.packaging = Packaging(store, blobs, events, shop.registry, built_in(), "acme", clock, bases=bases)
    await shop.register(model_onnx=linear(2.0))
    with pytest.raises(Unavailable, match="try again later"):
        await contained(shop, b"", base=f"127.0.0.1:9/python@sha256:{'0' * 64}")
