"""How a built module runs: chains, steps, providers and scripts, completed from the files and checked before anything
is kept.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from agent.formats import check_formats
from agent.sandbox.protocol import Passed, SelfTest
from cloud_hub.blobs import FolderBlobs
from cloud_hub.building.contents import DATA_SUFFIXES, MODEL_SUFFIXES
from cloud_hub.building.request import BuildRequest
from cloud_hub.errors import Unprocessable
from cloud_hub.events import Events
from cloud_hub.store.engine import Store
from modules.bundle import FileEntry
from modules.environment import FOLDER
from modules.manifest import NEWER_AGENT, Lineage, Manifest
from modules.runtime import Provider, Runtime, Stage
from modules.sources import Directory
from modules.steps import Cast, Normalise, Softmax
from modules.tensors import TensorSpec, decode_golden
from support.clock import SetClock
from support.libraries import resolver, shelf
from support.shop import PROFILE, Shop, linear
from support.tflite_models import mlp
from worker.driver import WorkerDriver

ROWS = np.arange(24, dtype=np.float32).reshape(12, 2)
X = TensorSpec("x", "FP32", (-1, 2))
Y = TensorSpec("y", "FP32", (-1, 2))
SCRIPT = b"def init(): pass\ndef run(data): return data\n"


@pytest.fixture
async def shop(store: Store, blobs: FolderBlobs, events: Events, clock: SetClock, tmp_path: Path) -> Shop:
    return Shop(store, blobs, events, clock, resolver(shelf(tmp_path / "wheels")), "chain")


def stage(name: str, **fields: Any) -> Stage:
    return Stage(name, (), (), **fields)


async def answers(shop: Shop, manifest: Manifest, output: str) -> list[list[float]]:
    """What the golden set says, row by row."""
    golden = decode_golden(await shop.blobs.read(manifest.file("golden.msgpack").sha256))
    tensors = [next(t for t in case.outputs if t.name == output) for case in golden.cases]
    return [np.frombuffer(tensor.data, np.float32).tolist() for tensor in tensors]


async def test_a_chain_gets_the_tensors_of_its_files_and_answers_of_the_whole(shop: Shop) -> None:
    await shop.register(first_onnx=linear(2.0, give="middle"), second_onnx=linear(10.0, take="middle"))
    runtime = Runtime(stages=(stage("first", model="first.onnx"), stage("second", model="second.onnx")))
    manifest = await shop.build(runtime=runtime, reference=await shop.arrays(x=ROWS))
    assert (manifest.inputs, manifest.outputs) == ((X,), (Y,))
    assert manifest.runtime.stages[0].outputs == (TensorSpec("middle", "FP32", (-1, 2)),)
    assert await answers(shop, manifest, "y") == (ROWS[:8] * 20).tolist()
    assert manifest.requires.agent_version == NEWER_AGENT
    assert manifest.reference


async def test_steps_stand_around_a_model_whose_tensors_are_its_own(shop: Shop) -> None:
    await shop.register(model_onnx=linear(1.0))
    runtime = Runtime(
        before=(Cast("x", datatype="FP32"), Normalise("x", mean=(1.0,), scale=(2.0,))), after=(Softmax("y", "p"),)
    )
    pixels = TensorSpec("x", "UINT8", (-1, 2))
    raw = np.array([[1, 3], [5, 1]], np.uint8)
    manifest = await shop.build(
        runtime=runtime, inputs=(pixels,), golden=await shop.arrays(x=raw), labels={"p": ("a", "b")}
    )
    assert manifest.inputs == (pixels,)
    assert [(spec.name, spec.labels) for spec in manifest.outputs] == [("p", ("a", "b"))]
    assert manifest.runtime.stages[0].inputs == (X,)
    scores = np.exp((raw.astype(np.float32) - 1) / 2)
    assert np.allclose(await answers(shop, manifest, "p"), scores / scores.sum(axis=1, keepdims=True))


async def test_a_plain_module_keeps_its_bytes_and_runs_on_older_agents(shop: Shop) -> None:
    await shop.register(model_onnx=linear(1.0))
    fields: dict[str, Any] = {"reference": await shop.arrays(x=ROWS)}
    assert (await shop.build(**fields)).requires.agent_version == ""
    first = await shop.packaging.get("chain", 1, PROFILE)
    await shop.build(**fields, runtime=Runtime())
    assert await shop.packaging.get("chain", 1, PROFILE) == msgspec.structs.replace(first)


@pytest.mark.parametrize(
    "runtime",
    [
        Runtime(providers=(Provider("CUDAExecutionProvider", {"device_id": "0"}),), fallback=True),
        Runtime(batch_rows=1),
        Runtime(instances=3),
    ],
)
async def test_wishes_of_the_runtime_stand_in_the_manifest_and_ask_for_a_newer_agent(
    shop: Shop, runtime: Runtime
) -> None:
    await shop.register(model_onnx=linear(1.0))
    manifest = await shop.build(runtime=runtime, reference=await shop.arrays(x=ROWS))
    assert manifest.runtime == runtime
    assert manifest.requires.agent_version == NEWER_AGENT


BOTH = (stage("first", model="first.onnx"), stage("second", model="second.onnx"))
ONE = (stage("first", model="first.onnx"),)


@pytest.mark.parametrize(
    ("fields", "key", "words"),
    [
        ({"runtime": Runtime(stages=(stage("a", model="no.onnx"),))}, "model-missing", "stage a: expected one of"),
        ({"runtime": Runtime(stages=(stage("a"),))}, "model-missing", "exactly one .onnx"),
        ({"runtime": Runtime(stages=BOTH[::-1])}, "chain-refused", "stage second, input middle: expected"),
        ({"runtime": Runtime(stages=ONE, entry="entry.py")}, "runtime-invalid", "in the stages"),
        ({"runtime": Runtime(stages=ONE, after=(Softmax("nope"),))}, "chain-refused", "nope"),
        ({"runtime": Runtime(stages=ONE, before=(Softmax("x"),))}, "chain-refused", "expected the module's inputs"),
        ({"runtime": Runtime(stages=ONE), "outputs": (TensorSpec("z", "FP32", (-1,)),)}, "chain-refused", "output z"),
        ({"runtime": Runtime(model="other.onnx")}, "model-missing", "model: expected one of"),
        ({"runtime": Runtime(backend="tflite")}, "model-missing", "exactly one .tflite"),
        ({"runtime": Runtime(backend="script", model="")}, "model-missing", "expected an entry script"),
        ({"runtime": Runtime(environment="x")}, "runtime-invalid", "the build finds them"),
        ({"runtime": Runtime(stages=ONE, sources=(Directory("nope"),))}, "chain-refused", "nope"),
        ({"runtime": Runtime(stages=(stage("s", backend="script"),))}, "runtime-invalid", "stage s: expected an entry"),
    ],
)
async def test_a_runtime_that_does_not_fit_is_refused_and_nothing_is_remembered(
    shop: Shop, fields: dict[str, Any], key: str, words: str
) -> None:
    await shop.register(first_onnx=linear(2.0, give="middle"), second_onnx=linear(10.0, take="middle"))
    with pytest.raises(Unprocessable) as refused:
        await shop.build(**fields, reference=await shop.arrays(x=ROWS))
    assert (refused.value.key, words in refused.value.message) == (key, True), refused.value.message
    assert await shop.packaging.list() == []


async def test_answers_that_the_devices_code_cannot_give_refuse_the_build(shop: Shop) -> None:
    await shop.register(first_onnx=linear(2.0, give="middle"), second_onnx=b"junk")
    runtime = Runtime(stages=BOTH)
    with pytest.raises(Unprocessable, match="INVALID_PROTOBUF"):
        await shop.build(runtime=runtime, reference=await shop.arrays(x=ROWS))
    await shop.register(first_onnx=linear(2.0, give="middle"), second_onnx=linear(10.0, take="middle"))
    with pytest.raises(Unprocessable, match=r"an array named x in the \.npz, got \['other'\]"):
        await shop.build(2, runtime=runtime, reference=await shop.arrays(other=ROWS))


@pytest.mark.parametrize(
    "runtime", [None, Runtime(backend="tflite"), Runtime(stages=(stage("net", backend="tflite"),))]
)
async def test_a_tflite_model_is_read_and_answered_by_the_devices_code(shop: Shop, runtime: Runtime | None) -> None:
    await shop.register(net_tflite=mlp([(np.diag([1.0, 2.0]).astype(np.float32), np.zeros(2, np.float32))]))
    manifest = await shop.build(runtime=runtime, reference=await shop.arrays(x=ROWS))
    assert (manifest.stages[0].backend, manifest.stages[0].model) == ("tflite", "net.tflite")
    assert (manifest.inputs, manifest.outputs) == ((X,), (Y,))
    high = ROWS[:8] * [1, 2]
    scores = np.exp(high - high.max(axis=1, keepdims=True))
    assert np.allclose(await answers(shop, manifest, "y"), scores / scores.sum(axis=1, keepdims=True), atol=1e-5)


async def test_a_worker_gives_the_answers_that_the_build_has_promised(shop: Shop, tmp_path: Path) -> None:
    net = mlp([(np.diag([1.0, 2.0]).astype(np.float32), np.zeros(2, np.float32))])
    await shop.register(first_tflite=net, second_onnx=linear(3.0, take="p", give="z"))
    stages = (
        stage("first", backend="tflite", model="first.tflite"),
        stage("second", model="second.onnx", feeds={"p": "first.y"}),
    )
    runtime = Runtime(stages=stages, before=(Cast("x", datatype="FP32"),), after=(Softmax("z", "sure"),))
    pixels = (TensorSpec("x", "UINT8", (-1, 2)),)
    raw = np.array([[1, 3], [5, 1], [0, 0]], np.uint8)
    manifest = await shop.build(runtime=runtime, inputs=pixels, golden=await shop.arrays(x=raw))
    slot = tmp_path / "slot"
    for entry in manifest.files:
        (slot / entry.path).parent.mkdir(parents=True, exist_ok=True)
        (slot / entry.path).write_bytes(await shop.blobs.read(entry.sha256))
    async with WorkerDriver(slot, manifest) as worker:
        assert len((await worker.start()).stages) == 2
        assert (await worker.order(SelfTest(), Passed)).cases == 3


async def test_a_sample_as_csv_is_refused_where_it_says_too_little(shop: Shop) -> None:
    await shop.register(model_onnx=linear(1.0))
    with pytest.raises(Unprocessable, match=r"expected an \.npz with one array per input"):
        await shop.build(runtime=Runtime(after=(Softmax("y"),)), reference=await shop.blobs.put(b"a,b\n1,2\n"))


async def script_fields(shop: Shop, source: bytes = SCRIPT, **fields: Any) -> dict[str, Any]:
    golden = await shop.arrays(x=ROWS[:3], y=ROWS[:3])
    entry = await shop.blobs.put(source)
    return {"entry": entry, "inputs": (X,), "outputs": (Y,), "golden": golden, **fields}


async def test_a_script_brings_its_libraries_and_asks_for_the_python_they_are_for(shop: Shop) -> None:
    await shop.register(notes_txt=b"x")
    wanted = await shop.blobs.put(b"greeting\n")
    manifest = await shop.build(**await script_fields(shop, environment=wanted))
    assert manifest.runtime == Runtime(backend="script", model="", entry="entry.py", environment=FOLDER)
    paths = {entry.path for entry in manifest.files}
    assert {"environment/greeting/__init__.py", "environment/politeness/core.x86_64.so", "requirements.lock"} <= paths
    assert (manifest.requires.python, manifest.requires.agent_version) == (("3.11",), NEWER_AGENT)
    assert manifest.requires.memory_mib < 80  # libraries are not held in memory as a model is


async def test_a_new_version_with_the_same_libraries_sends_none_of_them_again(shop: Shop) -> None:
    found = []
    for version in (1, 2):
        await shop.register(notes_txt=str(version).encode())
        wanted = await shop.blobs.put(b"greeting\n")
        manifest = await shop.build(version, **await script_fields(shop, environment=wanted))
        found.append({entry.sha256 for entry in manifest.files if entry.path.startswith(FOLDER)})
    assert found[0] == found[1]


async def test_libraries_without_a_script_are_refused(shop: Shop) -> None:
    await shop.register(model_onnx=linear(1.0))
    with pytest.raises(Unprocessable, match="nothing else imports libraries") as refused:
        await shop.build(reference=await shop.arrays(x=ROWS), environment=await shop.blobs.put(b"greeting"))
    assert refused.value.key == "environment-unused"


async def test_the_models_files_may_lie_in_a_folder_as_scripts_for_azure_expect(shop: Shop) -> None:
    await shop.register(model_onnx=linear(1.0), helper_py=b"x = 1\n")
    manifest = await shop.build(**await script_fields(shop, folder="digits/3"))
    assert {"digits/3/model.onnx", "digits/3/helper.py", "entry.py"} <= {entry.path for entry in manifest.files}


async def test_python_files_are_only_for_modules_with_a_script(shop: Shop) -> None:
    await shop.register(model_onnx=linear(1.0), helper_py=b"x = 1\n")
    with pytest.raises(Unprocessable, match=r"helper\.py: expected one of"):
        await shop.build(reference=await shop.arrays(x=ROWS))


BOMBS = (b"-" * 1_000_000 + b"1", b"x" + b".b" * 1_000_000, b"#" * 5_000_000, b"(" * 100_000)


@pytest.mark.parametrize("source", [b"def init(: pass", b"def init(): pass\n", b"\xff\xfe", *BOMBS], ids=range(7))
async def test_a_script_that_is_none_is_refused(shop: Shop, source: bytes) -> None:
    await shop.register(notes_txt=b"x")
    with pytest.raises(Unprocessable, match=r"entry\.py"):
        await shop.build(**await script_fields(shop, source))


async def test_several_calls_at_once_need_a_script_that_says_so(shop: Shop) -> None:
    await shop.register(notes_txt=b"x")
    runtime = Runtime(instances=2)
    with pytest.raises(Unprocessable, match="expected THREAD_SAFE = True") as refused:
        await shop.build(**await script_fields(shop, runtime=runtime))
    assert refused.value.key == "entry-invalid"
    manifest = await shop.build(**await script_fields(shop, SCRIPT + b"THREAD_SAFE = True\n", runtime=runtime))
    assert manifest.runtime.instances == 2


@pytest.mark.parametrize("suffix", sorted({*DATA_SUFFIXES, *MODEL_SUFFIXES}))
def test_what_the_hub_puts_into_a_module_a_device_takes(suffix: str) -> None:
    files = tuple(FileEntry(path, 0, "0" * 64, ()) for path in ("model.onnx", f"beside{suffix}"))
    check_formats(Manifest("m", 1, PROFILE, Lineage("m", 1), (X,), (Y,), files))


@pytest.mark.parametrize("fields", [{"folder": "../up"}, {"folder": "/abs"}, {"folder": "environment"}])
async def test_a_folder_that_is_not_the_modules_own_is_refused(shop: Shop, fields: dict[str, Any]) -> None:
    await shop.register(notes_txt=b"x")
    with pytest.raises(Unprocessable):
        await shop.build(**await script_fields(shop, **fields))
    assert await shop.packaging.list() == []


def test_a_python_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"python: expected a version such as 3\.11"):
        BuildRequest("x", 1, PROFILE, python="2.7; rm")


async def test_a_script_within_a_chain_is_checked_with_it(shop: Shop) -> None:
    await shop.register(model_onnx=linear(2.0, give="middle"))
    after = Stage("talk", (TensorSpec("middle", "FP32", (-1, 2)),), (Y,), backend="script")
    runtime = Runtime(stages=(stage("net", model="model.onnx"), after))
    manifest = await shop.build(**await script_fields(shop, runtime=runtime))
    assert manifest.runtime.stages[1].entry == "entry.py"
    assert manifest.runtime.stages[0].inputs == (X,)
    wrong = msgspec.structs.replace(after, inputs=(TensorSpec("muddle", "FP32", (-1, 2)),))
    await shop.register(model_onnx=linear(2.0, give="middle"))
    with pytest.raises(Unprocessable, match="stage talk, input muddle"):
        await shop.build(2, **await script_fields(shop, runtime=Runtime(stages=(runtime.stages[0], wrong))))


async def test_rows_that_do_not_come_back_are_named(shop: Shop) -> None:
    await shop.register(model_onnx=linear(1.0))
    buffer = io.BytesIO()
    np.savez(buffer, x=ROWS[:0])
    with pytest.raises(Unprocessable, match="expected more rows"):
        await shop.build(runtime=Runtime(after=(Softmax("y"),)), golden=await shop.blobs.put(buffer.getvalue()))
