"""A TFLite model from the registry to a worker that serves it: the build reads its tensors and answers, and the device
agrees with them.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from agent.sandbox.protocol import Passed, Ready, SelfTest, Serve, Serving
from cloud_hub.blobs import FolderBlobs
from cloud_hub.errors import Unprocessable
from cloud_hub.events import Events
from cloud_hub.store.engine import Store
from modules.manifest import NEWER_AGENT, Manifest
from modules.runtime import Provider, Runtime
from modules.tensors import TensorSpec, decode_golden
from modules.windows import decode_reference
from support import tflite_models
from support.clock import SetClock
from support.shop import Shop
from worker.driver import WorkerDriver, json_input

Trained = tuple[bytes, np.ndarray[Any, Any], np.ndarray[Any, Any]]


@pytest.fixture
def shop(store: Store, blobs: FolderBlobs, events: Events, clock: SetClock) -> Shop:
    return Shop(store, blobs, events, clock, name="digits")


@pytest.fixture(scope="module")
def trained() -> Trained:
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MLPClassifier((32,), max_iter=12, random_state=0).fit(x, y)
    layers = list(zip(model.coefs_, model.intercepts_, strict=True))
    return tflite_models.mlp(layers), x, model.predict_proba(x)


async def into_slot(shop: Shop, manifest: Manifest, slot: Path) -> None:
    for entry in manifest.files:
        (slot / entry.path).parent.mkdir(parents=True, exist_ok=True)
        (slot / entry.path).write_bytes(await shop.blobs.read(entry.sha256))


async def test_a_tflite_model_is_built_without_a_word_and_served_with_its_known_answers(
    shop: Shop, trained: Trained, tmp_path: Path
) -> None:
    model, x, expected = trained
    await shop.register(digits_tflite=model)
    manifest = await shop.build(reference=await shop.arrays(x=x[:200]), labels={"y": tuple("0123456789")})
    assert (manifest.runtime.backend, manifest.runtime.model) == ("tflite", "digits.tflite")
    assert manifest.inputs == (TensorSpec("x", "FP32", (-1, 64)),)
    assert (manifest.outputs[0].shape, manifest.outputs[0].labels) == ((-1, 10), tuple("0123456789"))
    assert manifest.requires.agent_version == NEWER_AGENT
    golden = decode_golden(await shop.blobs.read(manifest.file("golden.msgpack").sha256))
    first = np.frombuffer(golden.cases[0].outputs[0].data, np.float32)
    np.testing.assert_allclose(first, expected[0], rtol=1e-4, atol=1e-5)
    assert decode_reference(await shop.blobs.read(manifest.file(manifest.reference).sha256)).rows == 200

    await into_slot(shop, manifest, tmp_path / "slot")
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        ready = await worker.start()
        assert isinstance(ready, Ready)
        assert ready.execution == "tflite: 3/3 nodes on XNNPACK"
        assert (await worker.order(SelfTest(), Passed)).cases == len(golden.cases)
        await worker.order(Serve(), Serving)
        answer = await worker.infer({"inputs": [json_input(x[5:9])]})
        np.testing.assert_allclose(answer.array("y"), expected[5:9], rtol=1e-4, atol=1e-5)


async def test_what_a_tflite_module_asks_for_stands_in_its_manifest(shop: Shop, trained: Trained) -> None:
    await shop.register(digits_tflite=trained[0])
    asked = Runtime(backend="tflite", providers=(Provider("EdgeTPU", {"device": "usb"}),), fallback=True)
    manifest = await shop.build(runtime=asked, golden=await shop.arrays(x=trained[1][:4]))
    assert manifest.runtime.providers == asked.providers
    assert manifest.runtime.fallback


async def test_a_tflite_file_that_is_none_is_refused_with_the_runtimes_words(shop: Shop) -> None:
    await shop.register(digits_tflite=b"\x1c\x00\x00\x00TFL3" + b"junk" * 50)
    with pytest.raises(Unprocessable, match="not a valid Flatbuffer") as error:
        await shop.build(golden=await shop.arrays(x=np.ones((2, 64), np.float32)))
    assert error.value.key == "model-refused"


async def test_a_model_of_some_hundred_bytes_that_wants_all_memory_is_refused(shop: Shop) -> None:
    await shop.register(digits_tflite=tflite_models.greedy(64 * 1024))
    with pytest.raises(Unprocessable) as error:
        await shop.build(golden=await shop.arrays(x=np.ones((2, 1), np.float32)))
    assert error.value.key == "model-refused"
