"""Entry scripts: the two forms of the contract, and their mistakes. Hostile ones are in test_confinement."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agent.sandbox.protocol import Drain, Drained
from modules.entry import EntryError, check_source
from modules.manifest import Manifest, Resources, Runtime, SamplingPolicy
from modules.tensors import TensorSpec
from worker.conftest import INPUTS, OUTPUTS, Digits
from worker.driver import WorkerDriver, bytes_tensor, json_input, running_as_root, write_module

X = TensorSpec("x", "FP32", (-1, 2))
Y = TensorSpec("y", "FP64", (-1,))
WORD = TensorSpec("word", "BYTES", (-1,))
ROWS = np.array([[1, 2], [3, 4]], np.float32)
UIDS = [0, pytest.param(54321, marks=pytest.mark.skipif(not running_as_root(), reason="needs root"))]
Write = Callable[..., Manifest]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(source: str, *outputs: TensorSpec) -> Manifest:
        text = textwrap.dedent(source).encode()
        return write_module(
            tmp_path / "slot", {"entry.py": text, "factor.txt": b"10"}, inputs=(X,), outputs=outputs or (Y,),
            runtime=Runtime(backend="script", model="", entry="entry.py"),
        )  # fmt: skip

    return written


AZURE = """
    import json, os
    def init():
        global factor
        factor = float(open(os.path.join(os.environ["AZUREML_MODEL_DIR"], "factor.txt")).read())
    def run(data):
        rows = json.loads(data)["data"]
        return [factor * sum(row) for row in rows]
"""
TYPED = """
    import numpy as np
    def init(): print("hello from the script")
    def predict(inputs):
        x = inputs["x"]
        x *= 2
        return {"y": x.sum(axis=1)}
"""


async def test_a_script_of_azures_form_answers(tmp_path: Path, write: Write) -> None:
    async with WorkerDriver(tmp_path / "slot", write(AZURE)) as worker:
        ready = await worker.serve()
        assert ready.execution == "script: entry.py, run()"
        assert (await worker.infer({"inputs": [json_input(ROWS)]})).array("y").tolist() == [30.0, 70.0]


async def test_a_script_of_arrays_answers_and_cannot_change_what_is_sampled(tmp_path: Path, write: Write) -> None:
    async with WorkerDriver(tmp_path / "slot", write(TYPED), SamplingPolicy(rate=1.0, window_s=3600)) as worker:
        await worker.serve()
        for _ in range(3):
            assert (await worker.infer({"inputs": [json_input(ROWS)]})).array("y").tolist() == [6.0, 14.0]
        await worker.order(Drain(1.0), Drained)
        assert worker.samples[0].inputs[0].data == ROWS[:1].tobytes()


async def test_a_script_may_answer_words(tmp_path: Path) -> None:
    source = b"def init(): pass\ndef predict(i): return {'word': [w.upper() for w in i['word']]}\n"
    manifest = write_module(
        tmp_path / "slot", {"entry.py": source}, inputs=(WORD,), outputs=(WORD,),
        runtime=Runtime(backend="script", model="", entry="entry.py"),
    )  # fmt: skip
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        await worker.serve()
        words = {"name": "word", "datatype": "BYTES", "shape": [2]}
        response = await worker.infer({"inputs": [{**words, "data": ["cat", "dog"]}]})
        assert response.json["outputs"][0]["data"] == ["CAT", "DOG"]
        blobs = bytes_tensor(b"a", b"bc")
        head = {"inputs": [{**words, "parameters": {"binary_data_size": len(blobs)}}]}
        response = await worker.infer({**head, "parameters": {"binary_data_output": True}}, blobs)
        assert response.body.endswith(bytes_tensor(b"A", b"BC"))


SCALED = """
    import os
    import numpy as np
    import onnxruntime
    def init():
        global session
        session = onnxruntime.InferenceSession(os.path.join(os.environ["AZUREML_MODEL_DIR"], "model.onnx"))
    def predict(inputs): return {"label": session.run(["label"], {"x": inputs["x"] / np.float32(16)})[0]}
"""


@pytest.mark.parametrize("uid", UIDS)
@pytest.mark.usefixtures("readable_by_all")
async def test_a_script_may_put_a_scaler_before_an_onnx_model(tmp_path: Path, digits: Digits, uid: int) -> None:
    files = {"entry.py": textwrap.dedent(SCALED).encode(), "model.onnx": digits.onnx}
    manifest = write_module(
        tmp_path / "slot", files, inputs=INPUTS, outputs=OUTPUTS[:1], runtime=Runtime(entry="entry.py")
    )
    async with WorkerDriver(tmp_path / "slot", manifest, uid=uid) as worker:
        await worker.serve()
        response = await worker.infer({"inputs": [json_input(digits.x[:9] * 16)]})
        assert response.array("label").tolist() == digits.labels[:9].tolist()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def init(: pass", "SyntaxError"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("def init(): pass", "expected functions init and run (or predict), got init"),
        ("def init(): 1 / 0\ndef run(data): pass", "init() raised ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
async def test_a_script_that_cannot_be_loaded_is_refused(tmp_path: Path, write: Write, source: str, words: str) -> None:
    async with WorkerDriver(tmp_path / "slot", write(source)) as worker:
        broken = await worker.start_broken()
        assert broken.key == "load-failed"
        assert words in broken.text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("1 / 0", "entry.py raised ZeroDivisionError"),
        ("raise SystemExit", "raised SystemExit"),
        ("return {'z': 1}", "expected y, got z"),
        ("return None", "output y: expected shape [-1], got []"),
        ("return {'y': ['a', 'b']}", "raised ValueError"),
        ("return {'y': [[1.0]]}", "output y: expected shape [-1], got [1, 1]"),
        ("return inputs['nope']", "KeyError"),
        ("inputs.clear(); return {'y': (_ for _ in ())}", "raised TypeError"),
        ("return b'{no json'", "expected JSON text"),
        ("def deep(): return deep()\n    deep()", "RecursionError"),
    ],
)
async def test_a_script_that_fails_is_a_500_and_the_worker_goes_on(
    tmp_path: Path, write: Write, body: str, words: str
) -> None:
    async with WorkerDriver(
        tmp_path / "slot", write(f"def init(): pass\ndef predict(inputs):\n    {body}\n")
    ) as worker:
        await worker.serve()
        for _ in range(3):
            response = await worker.infer({"inputs": [json_input(ROWS)]})
            assert response.status == 500
            assert words in response.error
        assert (await worker.stats()).errors == 3


async def test_without_confinement_the_worker_says_so(tmp_path: Path, write: Write) -> None:
    async with WorkerDriver(tmp_path / "slot", write(TYPED), confine=False) as worker:
        assert (await worker.start()).confinement == "none"


async def test_a_script_that_wants_more_memory_than_it_may_fails_alone(tmp_path: Path) -> None:
    source = b"def init(): pass\ndef predict(i): return {'y': bytearray(1 << 30)[:2]}\n"
    manifest = write_module(
        tmp_path / "slot", {"entry.py": source}, inputs=(X,), outputs=(Y,), resources=Resources(memory_mib=256),
        runtime=Runtime(backend="script", model="", entry="entry.py"),
    )  # fmt: skip
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        await worker.serve()
        response = await worker.infer({"inputs": [json_input(ROWS)]})
        assert response.status == 500
        assert "MemoryError" in response.error


@pytest.mark.parametrize(
    ("source", "words"),
    [("def init(", "expected Python"), ("x = 1", "got none of them"), ("def run(data): pass", "got run")],
)
def test_the_source_of_a_script_is_checked_without_running_it(source: str, words: str) -> None:
    with pytest.raises(EntryError, match=words):
        check_source(source, "entry.py")


def test_a_script_may_import_its_functions() -> None:
    check_source("from score import init, run", "entry.py")
