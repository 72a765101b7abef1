"""Packaging: a model version and a profile become a manifest whose every byte is stored by digest."""

import io
from typing import Any

import msgspec
import numpy as np
import pytest
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sqlalchemy import update

from cloud_hub.blobs import FolderBlobs
from cloud_hub.building.request import BuildRequest
from cloud_hub.errors import Conflict, NotFound, Unprocessable
from cloud_hub.events import Events
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules
from modules.bundle import sha256_hex
from modules.manifest import NEWER_AGENT, Health, SamplingPolicy, decode_manifest
from modules.targets import TargetPath
from modules.tensors import TensorSpec
from support.clock import SetClock
from support.shop import PROFILE, Shop, linear

samples, labels = load_iris(return_X_y=True)
measures = samples.astype(np.float32)


@pytest.fixture(scope="session")
def iris() -> bytes:
    model = LogisticRegression(max_iter=500).fit(measures, labels)
    onnx = to_onnx(model, measures[:1], options={id(model): {"zipmap": False}}, target_opset=17)
    data: bytes = onnx.SerializeToString()
    return data


@pytest.fixture
async def shop(store: Store, blobs: FolderBlobs, events: Events, clock: SetClock, iris: bytes) -> Shop:
    shop = Shop(store, blobs, events, clock)
    await shop.register(model_onnx=iris)
    return shop


async def _request(shop: Shop, version: int = 1, **changes: Any) -> BuildRequest:
    fields = {"profile": PROFILE, "reference": await shop.arrays(X=measures)}
    return BuildRequest(model="iris", version=version, **(fields | changes))


async def test_a_module_is_built_with_everything_that_a_device_needs(shop: Shop) -> None:
    release = await shop.packaging.build(await _request(shop, labels={"label": ("a", "b", "c")}), "ann")
    body = await shop.packaging.manifest("iris", 1, "generic-x86_64")
    manifest = decode_manifest(body)
    assert (release.manifest_sha256, release.manifest_size) == (sha256_hex(body), len(body))
    assert release.target == str(TargetPath("acme", "iris", 1, "generic-x86_64"))
    assert (release.release_counter, release.signed_at) == (None, None)
    assert [entry.path for entry in manifest.files] == ["golden.msgpack", "model.onnx", "reference.json"]
    assert (manifest.health.golden, manifest.reference) == ("golden.msgpack", "reference.json")
    assert manifest.outputs[0].labels == ("a", "b", "c")
    assert (manifest.lineage.author, manifest.lineage.git_commit) == ("Ann", "abc123")
    assert manifest.requires.hardware_ids == ("generic-x86_64",)
    for entry in manifest.files:
        stored = await shop.blobs.read(entry.sha256)
        assert len(stored) == entry.size
        offset = 0
        for chunk in entry.chunks:
            assert sha256_hex(stored[offset : offset + chunk.size]) == chunk.sha256
            offset += chunk.size


async def test_what_old_agents_cannot_read_is_kept_from_them(
    store: Store, blobs: FolderBlobs, events: Events, clock: SetClock
) -> None:
    shop = Shop(store, blobs, events, clock, name="eye")
    await shop.register(model_onnx=linear(2.0, columns=2))
    await shop.register(model_onnx=linear(2.0, columns=300))
    narrow, wide = np.zeros((30, 2), np.float32), np.random.default_rng(1).normal(size=(30, 300)).astype(np.float32)
    for version, rows, needed in ((1, narrow, ""), (2, wide, NEWER_AGENT)):
        manifest = await shop.build(version, reference=await shop.arrays(x=rows))
        assert manifest.requires.agent_version == needed


async def test_the_same_input_gives_the_same_manifest(shop: Shop) -> None:
    first = await shop.packaging.build(await _request(shop), "ann")
    second = await shop.packaging.build(await _request(shop), "ann")
    assert first.manifest_sha256 == second.manifest_sha256
    assert len(await shop.packaging.list("iris")) == 1


async def test_policies_of_the_publisher_stand_in_the_manifest(shop: Shop) -> None:
    request = await _request(shop, sampling=SamplingPolicy(rate=0.25), health=Health(probation_s=5, rtol=0.5))
    await shop.packaging.build(request, "ann")
    manifest = decode_manifest(await shop.packaging.manifest("iris", 1, "generic-x86_64"))
    assert manifest.sampling.rate == 0.25
    assert (manifest.health.probation_s, manifest.health.golden) == (5, "golden.msgpack")


async def test_a_new_version_shares_the_chunks_that_did_not_change(shop: Shop, iris: bytes) -> None:
    weights = np.random.default_rng(1).bytes(2_000_000)
    await shop.register(model_onnx=iris, weights_bin=weights)
    await shop.register(model_onnx=iris, weights_bin=b"new head" + weights)
    chunks = []
    for version in (2, 3):
        await shop.packaging.build(await _request(shop, version), "ann")
        manifest = decode_manifest(await shop.packaging.manifest("iris", version, "generic-x86_64"))
        chunks.append({chunk.sha256 for chunk in manifest.file("weights.bin").chunks})
    assert len(chunks[0] & chunks[1]) >= len(chunks[0]) - 2


async def test_a_signed_module_stays_as_it_is(shop: Shop, store: Store) -> None:
    await shop.packaging.build(await _request(shop), "ann")
    async with store.write() as connection:
        await connection.execute(update(modules).values(signed_at=1.0, release_counter=1))
    with pytest.raises(Conflict, match="is signed and stays as it is"):
        await shop.packaging.build(await _request(shop), "ann")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 7}, "iris version 7"),
        ({"profile": "toaster"}, "no device profile toaster"),
        ({"reference": "0" * 64}, "0000"),
    ],
)
async def test_what_is_not_there_is_named(shop: Shop, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(NotFound, match=words):
        await shop.packaging.build(await _request(shop, **changes), "ann")


async def test_a_module_without_known_answers_is_refused(shop: Shop) -> None:
    with pytest.raises(Unprocessable, match="without known answers"):
        await shop.packaging.build(await _request(shop, reference=""), "ann")


async def test_formats_that_can_run_code_are_refused(shop: Shop, iris: bytes) -> None:
    await shop.register(model_onnx=iris, weights_pkl=b"\x80\x04K\x01.")
    with pytest.raises(Unprocessable, match=r"weights\.pkl: expected one of"):
        await shop.packaging.build(await _request(shop, 2), "ann")


async def test_a_model_without_an_onnx_file_is_refused(shop: Shop) -> None:
    await shop.register(notes_txt=b"hello")
    with pytest.raises(Unprocessable, match=r"exactly one \.onnx file"):
        await shop.packaging.build(await _request(shop, 2), "ann")


async def test_a_broken_model_is_refused_and_nothing_is_remembered(shop: Shop) -> None:
    await shop.register(model_onnx=b"junk")
    with pytest.raises(Unprocessable, match="not a valid ONNX model"):
        await shop.packaging.build(await _request(shop, 2), "ann")
    assert await shop.packaging.list() == []


async def test_an_entry_script_needs_its_tensors_declared(shop: Shop) -> None:
    script = await shop.blobs.put(b"def init(): pass\ndef run(data): return data\n")
    with pytest.raises(Unprocessable, match="the hub runs no scripts"):
        await shop.packaging.build(await _request(shop, entry=script), "ann")
    buffer = io.BytesIO()
    np.savez(buffer, X=measures[:4], y=labels[:4])
    request = await _request(
        shop,
        entry=script,
        reference="",
        golden=await shop.blobs.put(buffer.getvalue()),
        inputs=(TensorSpec("X", "FP32", (-1, 4)),),
        outputs=(TensorSpec("y", "INT64", (-1,)),),
    )
    await shop.packaging.build(request, "ann")
    manifest = decode_manifest(await shop.packaging.manifest("iris", 1, "generic-x86_64"))
    assert (manifest.runtime.backend, manifest.runtime.entry) == ("script", "entry.py")
    assert "entry.py" in {entry.path for entry in manifest.files}
    assert msgspec.to_builtins(manifest.inputs)[0]["name"] == "X"
