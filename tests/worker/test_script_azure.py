"""Scripts written for Azure ML run unchanged: the folder of the model, decorators, the whole request, and `/score`."""

from __future__ import annotations

import asyncio
import gzip
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.sandbox.protocol import Drain, Drained
from modules.manifest import Manifest, Runtime, SamplingPolicy
from modules.tensors import TensorSpec
from worker.driver import Response, WorkerDriver, json_input, write_module

X = TensorSpec("data", "FP32", (-1, 2))
Y = TensorSpec("y", "FP64", (-1,))
ROWS = np.array([[1, 2], [3, 4]], np.float32)
BODY = {"data": ROWS.tolist()}
Write = Callable[[str], Manifest]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(source: str) -> Manifest:
        files = {"entry.py": textwrap.dedent(source).encode(), "digits/3/factor.txt": b"10", "factor.txt": b"7"}
        runtime = Runtime(backend="script", model="", entry="entry.py")
        return write_module(tmp_path / "slot", files, inputs=(X,), outputs=(Y,), runtime=runtime)

    return written


async def score(worker: WorkerDriver, body: object, method: str = "POST", target: str = "/score") -> Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nX-Ms-Client: 5\r\nContent-Type: application/json\r\n"
    return await worker.ask(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)


PLAIN = """
    import json, os
    def init():
        global factor
        factor = float(open(os.path.join(os.getenv("AZUREML_MODEL_DIR"), {parts})).read())
    def run(raw_data):
        rows = json.loads(raw_data)["data"]
        return [factor * sum(row) for row in rows]
"""


@pytest.mark.parametrize(("parts", "factor"), [('"factor.txt"', 7), ('"digits", "3", "factor.txt"', 10)])
async def test_a_script_finds_its_model_beside_itself_and_in_a_folder_of_name_and_version(
    tmp_path: Path, write: Write, parts: str, factor: int
) -> None:
    async with WorkerDriver(tmp_path / "slot", write(PLAIN.format(parts=parts))) as worker:
        await worker.serve()
        assert (await score(worker, BODY)).json == [3.0 * factor, 7.0 * factor]
        inferred = await worker.infer({"inputs": [json_input(ROWS, "data")]})
        assert inferred.array("y").tolist() == [3.0 * factor, 7.0 * factor]


SCHEMA = """
    import numpy as np
    from inference_schema.schema_decorators import input_schema, output_schema
    from inference_schema.parameter_types.numpy_parameter_type import NumpyParameterType
    def init(): pass
    @input_schema("data", NumpyParameterType(np.array([[1.0, 2.0]])))
    @output_schema(NumpyParameterType(np.array([1.0])))
    def run(data, scale=1.0):
        assert isinstance(data, np.ndarray), type(data)
        return (scale * data.sum(axis=1)).tolist()
"""


async def test_a_decorated_run_gets_arrays_by_the_names_of_its_parameters(tmp_path: Path, write: Write) -> None:
    pytest.importorskip("inference_schema", reason="the library ends at Python 3.12")
    async with WorkerDriver(tmp_path / "slot", write(SCHEMA)) as worker:
        assert (await worker.serve()).execution == "script: entry.py, run(values)"
        assert (await worker.infer({"inputs": [json_input(ROWS, "data")]})).array("y").tolist() == [3.0, 7.0]
        assert (await score(worker, {**BODY, "scale": 10})).json == [30.0, 70.0]
        for body, status, words in (
            ([[1, 2]], 400, "expected a JSON object, got list"),
            ({"rows": []}, 400, "expected data in the JSON object, got rows"),
            (b"{", 400, "expected a JSON body"),
            (b"[" * 100_000, 400, "expected a JSON body"),
            ({"data": [[1, 2, 3]]}, 500, "array has size 3 on dimension #1"),
        ):
            refused = await score(worker, body)
            assert (refused.status, words in refused.error) == (status, True), refused.error


RAW = """
    from azureml.contrib.services.aml_request import AMLRequest, rawhttp
    from azureml.contrib.services.aml_response import AMLResponse
    import json
    def init(): pass
    @rawhttp
    def run(request):
        if request.method == "GET":
            return AMLResponse("hello " + request.args.get("name", "?"), 202, {"X-Way": "get"})
        if request.headers.get("x-ms-client") == "5" and request.get_data() == b"bytes":
            return AMLResponse(b"\\x00\\x01", 201, {"Content-Type": "image/png", "X-A": "1"})
        return AMLResponse([sum(row) for row in request.get_json()["data"]], 200, json_str=True)
"""


@pytest.mark.parametrize("package", ["azureml.contrib.services", "azureml_inference_server_http.api"])
async def test_a_script_may_take_the_whole_request_and_answer_with_a_response_of_its_own(
    tmp_path: Path, write: Write, package: str
) -> None:
    async with WorkerDriver(tmp_path / "slot", write(RAW.replace("azureml.contrib.services", package))) as worker:
        assert (await worker.serve()).execution == "script: entry.py, run(request)"
        assert (await score(worker, BODY)).json == [3.0, 7.0]
        got = await score(worker, b"bytes")
        assert (got.status, got.headers["content-type"], got.headers["x-a"]) == (201, "image/png", "1")
        assert got.body == b"\x00\x01"
        got = await score(worker, b"", "GET", "/score?name=Ann")
        assert (got.status, got.body, got.headers["x-way"]) == (202, b"hello Ann", "get")
        assert (await worker.infer({"inputs": [json_input(ROWS, "data")]})).array("y").tolist() == [3.0, 7.0]


async def test_run_gets_the_headers_and_a_query_where_it_asks(tmp_path: Path, write: Write) -> None:
    source = """
        import json
        def init(): pass
        def run(data, request_headers):
            return [request_headers.get("X-Ms-Client"), json.loads(data)]
    """
    async with WorkerDriver(tmp_path / "slot", write(source)) as worker:
        await worker.serve()
        assert (await score(worker, {"a": 1})).json == ["5", {"a": 1}]
        assert (await score(worker, b"", "GET", "/score?a=1&a=2&b=x")).json == ["5", {"a": [1, 2], "b": "x"}]
        assert (await score(worker, b"", "PUT")).status == 405
        assert (await score(worker, b"", "OPTIONS")).status == 200
        assert (await score(worker, b"\xff")).status == 400


async def test_a_score_may_be_packed_and_is_not_run_once_its_client_has_gone(tmp_path: Path, write: Write) -> None:
    source = "import time\ndef init(): pass\ndef run(data):\n    time.sleep(0.05)\n    return data\n"
    async with WorkerDriver(tmp_path / "slot", write(source)) as worker:
        await worker.serve()

        def asked(data: bytes, *headers: str) -> bytes:
            head = [f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\nConnection: close", *headers]
            return "\r\n".join([*head, "", ""]).encode() + data

        assert (await worker.ask(asked(gzip.compress(b"{}"), "Content-Encoding: gzip"))).json == "{}"
        assert (await worker.ask(asked(b"junk", "Content-Encoding: gzip"))).status == 400
        first = asyncio.create_task(worker.ask(asked(b"1")))
        late = [worker.ask(asked(b"2", "Request-Deadline-Ms: 1")) for _ in range(3)]
        assert sorted(answer.status for answer in await asyncio.gather(first, *late))[-1] == 504


async def test_a_score_is_sampled_where_it_fits_the_tensors_and_counted_where_it_does_not(
    tmp_path: Path, write: Write
) -> None:
    source = """
        import json
        def init(): pass
        def run(data): return [sum(row) for row in json.loads(data).get("data", [])]
    """
    manifest = write(source)
    async with WorkerDriver(tmp_path / "slot", manifest, SamplingPolicy(rate=1.0, window_s=3600)) as worker:
        await worker.serve()
        assert (await score(worker, BODY)).json == [3.0, 7.0]
        assert (await score(worker, {"other": 1})).json == []
        stats = await worker.stats()
        assert (stats.requests, stats.errors, stats.rows) == (2, 0, 3)
        await worker.order(Drain(1.0), Drained)
        assert [sample.inputs[0].data for sample in worker.samples][:1] == [ROWS[:1].tobytes()]


JUNK = (
    ("return float('nan')", "NaN and infinity are none"),
    ("return {1, 2}", "set is not JSON serializable"),
    ("a = []; a.append(a); return a", "Circular reference"),
    ("a = []\n    for _ in range(100000): a = [a]\n    return a", "expected a value that JSON can say"),
    ("raise KeyboardInterrupt", "raised KeyboardInterrupt"),
    ("raise GeneratorExit", "raised GeneratorExit"),
    ("import sys; sys.exit(3)", "raised SystemExit: 3"),
    ("import os; os.fork()", "PermissionError"),
    ("return AMLResponse('', 204)", "a status from 200 to 599 with a body, got 204"),
    ("return AMLResponse('', 200, {'X': 'a\\r\\nb'})", "headers without line ends"),
    ("class E(Exception):\n        __str__ = None\n    raise E", "cannot say what it is"),
)


async def test_junk_from_run_is_a_500_and_the_worker_goes_on(tmp_path: Path, write: Write) -> None:
    cases = "".join(f"def case{number}():\n    {body}\n" for number, (body, _) in enumerate(JUNK))
    source = "import json\nfrom azureml.contrib.services.aml_response import AMLResponse\n"
    source += f"def init(): pass\ndef run(data): return globals()[json.loads(data)]()\n{cases}"
    async with WorkerDriver(tmp_path / "slot", write(source)) as worker:
        await worker.serve()
        for number, (body, words) in enumerate(JUNK):
            response = await score(worker, f"case{number}")
            assert (response.status, words in response.error) == (500, True), f"{body}: {response.error}"
        assert (await worker.stats()).errors == len(JUNK)


async def test_a_flood_of_prints_harms_nobody(tmp_path: Path, write: Write) -> None:
    source = "def init(): pass\ndef run(data):\n    print('x' * 20_000_000)\n    return [1.0]\n"
    async with WorkerDriver(tmp_path / "slot", write(source)) as worker:
        await worker.serve()
        assert (await score(worker, BODY)).json == [1.0]


async def test_a_script_that_ends_the_process_ends_its_worker_and_nothing_else(tmp_path: Path, write: Write) -> None:
    async with WorkerDriver(
        tmp_path / "slot", write("import os\ndef init(): pass\ndef run(d): os._exit(3)\n")
    ) as worker:
        await worker.serve()
        with pytest.raises((ConnectionError, IndexError, ValueError, EOFError)):
            await score(worker, BODY)
        assert await worker.exit_code() == 3


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("def run(): pass", "expected run() with a parameter for the data"),
        ("def run(*data): pass", "without positional-only parameters"),
        ("run = print", "run()"),
    ],
)
async def test_a_run_that_cannot_be_called_is_refused_at_the_load(
    tmp_path: Path, write: Write, run: str, words: str
) -> None:
    async with WorkerDriver(tmp_path / "slot", write(f"def init(): pass\n{run}\n")) as worker:
        broken = await worker.start_broken()
        assert (broken.key, words in broken.text) == ("load-failed", True), broken.text


async def test_there_is_no_score_without_run(tmp_path: Path, write: Write) -> None:
    async with WorkerDriver(tmp_path / "slot", write("def init(): pass\ndef predict(i): return i\n")) as worker:
        await worker.serve()
        assert (await score(worker, BODY)).status == 404


def typed(**fields: Any) -> dict[str, Any]:
    a, b = TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,))
    return {"inputs": (a, b), "outputs": (TensorSpec("s", "FP32", (-1,)), TensorSpec("d", "FP32", (-1,))), **fields}


async def test_a_typed_predict_gets_each_input_as_a_parameter(tmp_path: Path) -> None:
    source = b"""
import numpy as np
def init(): pass
def predict(b: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a += 0
    return a + b, a - b
"""
    runtime = Runtime(backend="script", model="", entry="entry.py")
    manifest = write_module(tmp_path / "slot", {"entry.py": source}, runtime=runtime, **typed())
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        await worker.serve()
        one, two = np.array([5, 6], np.float32), np.array([1, 2], np.float32)
        answer = await worker.infer({"inputs": [json_input(one, "a"), json_input(two, "b")]})
        assert (answer.array("s").tolist(), answer.array("d").tolist()) == ([6, 8], [4, 4])


async def test_a_typed_predict_with_other_names_is_refused(tmp_path: Path) -> None:
    source = b"import numpy as np\ndef init(): pass\ndef predict(a: np.ndarray, c: np.ndarray): pass\n"
    runtime = Runtime(backend="script", model="", entry="entry.py")
    manifest = write_module(tmp_path / "slot", {"entry.py": source}, runtime=runtime, **typed())
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        assert "expected predict(a, b), got predict(a, c)" in (await worker.start_broken()).text


SLOW = """
import threading
meet = threading.Barrier(2)
{safe}
def init(): pass
def run(data):
    meet.wait(20)
    return [1.0]
"""


async def test_a_script_that_says_it_is_thread_safe_runs_several_calls_at_once(tmp_path: Path) -> None:
    for safe in ("THREAD_SAFE = True", ""):
        runtime = Runtime(backend="script", model="", entry="entry.py", instances=2)
        source = SLOW.format(safe=safe).encode()
        manifest = write_module(tmp_path / "slot", {"entry.py": source}, inputs=(X,), outputs=(Y,), runtime=runtime)
        async with WorkerDriver(tmp_path / "slot", manifest) as worker:
            if safe:
                await worker.serve()
                both = await asyncio.gather(score(worker, BODY), score(worker, BODY))
                assert [answer.json for answer in both] == [[1.0], [1.0]]
            else:
                assert "expected THREAD_SAFE = True" in (await worker.start_broken()).text
        (tmp_path / "endpoint.sock").unlink()
