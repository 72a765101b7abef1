"""The client with a real worker: what it answers, over both transports, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from client.conftest import make_echo
from modules.manifest import Manifest
from mooring_client import AsyncClient, Client, ClientError, Gone, Prediction, Refused, Tensor, Timeout
from mooring_client.client import Transport
from mooring_client.places import Place, find
from worker.conftest import Digits
from worker.driver import WorkerDriver

BOTH: tuple[Transport, ...] = ("shared-memory", "http")


@pytest.fixture
async def echo(tmp_path: Path, echo_module: Manifest) -> AsyncIterator[WorkerDriver]:
    async with WorkerDriver(tmp_path / "slot", echo_module) as driver:
        await driver.serve()
        yield driver


def ask(path: str, transport: Transport = "shared-memory", **inputs: object) -> Prediction:
    with Client(path, model="digits", transport=transport) as client:
        return client.predict(**inputs)


@pytest.mark.parametrize("transport", BOTH)
async def test_it_answers_as_the_model_does_offline(worker: WorkerDriver, digits: Digits, transport: Transport) -> None:
    said = await asyncio.to_thread(ask, worker.path, transport, x=digits.x[:5])
    np.testing.assert_array_equal(said["label"], digits.labels[:5])
    np.testing.assert_allclose(said["probabilities"], digits.probabilities[:5], rtol=1e-3, atol=1e-5)
    assert said.version == "7"
    assert said.id


async def test_shared_memory_is_taken_where_there_is_any(worker: WorkerDriver, tmp_path: Path) -> None:
    def transports() -> list[str]:
        found = []
        for _ in range(2):
            with Client(worker.path, model="digits") as client:
                found.append(client.transport)
            (tmp_path / "endpoint.fast.sock").unlink(missing_ok=True)  # as an agent of before has it
        return found

    assert await asyncio.to_thread(transports) == ["shared-memory", "http"]


@pytest.mark.parametrize("transport", BOTH)
async def test_it_tells_inputs_outputs_and_version(worker: WorkerDriver, transport: Transport) -> None:
    def described() -> tuple[object, ...]:
        with Client(worker.path, model="digits", transport=transport) as client:
            return client.inputs, client.outputs, client.version

    inputs, outputs, version = await asyncio.to_thread(described)
    assert inputs == (("x", "FP32", (-1, 64), ()),)
    assert outputs == (("label", "INT64", (-1,), ()), ("probabilities", "FP32", (-1, 10), ()))
    assert version == "7"


@pytest.mark.parametrize("transport", BOTH)
async def test_lists_and_text_go_in_and_text_comes_out(echo: WorkerDriver, transport: Transport) -> None:
    said = await asyncio.to_thread(ask, echo.path, transport, x=[[1, 2], [3, 4]], word=["a", "grüße"])
    np.testing.assert_array_equal(said["twice"], [[2, 4], [6, 8]])
    assert said["said"].tolist() == [b"a!", "grüße!".encode()]


@pytest.mark.parametrize("transport", BOTH)
async def test_some_outputs_are_asked_for_by_name_under_an_id_of_the_callers(
    worker: WorkerDriver, digits: Digits, transport: Transport
) -> None:
    def some() -> Prediction:
        with Client(worker.path, model="digits", transport=transport) as client:
            return client.ask({"x": digits.x[:2]}, outputs=("probabilities",), id="frame 17")

    said = await asyncio.to_thread(some)
    assert list(said) == ["probabilities"]
    assert said.id == "frame 17"
    await worker.stats()


@pytest.mark.parametrize("transport", BOTH)
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": np.ones((1, 64))}, r"input x: expected FP32, got FP64"),
        ({"x": np.ones((1, 63), np.float32)}, r"input x: expected shape \[-1, 64\], got \[1, 63\]"),
        ({"x": np.ones(64, np.float32)}, r"input x: expected shape \[-1, 64\], got \[64\]"),
        ({"x": np.ones((0, 64), np.float32)}, r"input x: expected shape \[-1, 64\], got \[0, 64\]"),
        ({"y": np.ones((1, 64), np.float32)}, r"inputs: expected x, got y"),
        ({}, r"inputs: expected x, got none"),
        ({"x": [["one"] * 64]}, r"input x: expected values of FP32"),
        ({"x": np.full((1, 64), np.nan, np.float32)}, r"input x: expected numbers"),
        ({"x": Tensor("FP32", (1, 64), b"short")}, r"input x: expected 256 bytes, got 5"),
        ({"x": Tensor("INT8", (1, 64), bytes(64))}, r"input x: expected FP32, got INT8"),
    ],
)
async def test_a_wrong_input_is_refused_in_words_and_the_client_goes_on(
    worker: WorkerDriver, digits: Digits, transport: Transport, inputs: dict[str, object], words: str
) -> None:
    def both() -> int:
        with Client(worker.path, model="digits", transport=transport) as client:
            with pytest.raises(Refused, match=words) as refused:
                client.ask(inputs)
            assert refused.value.status == 400
            return int(client.predict(x=digits.x[:1])["label"][0])

    assert await asyncio.to_thread(both) == digits.labels[0]


async def test_an_input_may_be_called_anything(worker: WorkerDriver) -> None:
    def named() -> None:
        with Client(worker.path, model="digits") as client, pytest.raises(Refused, match="expected x, got self"):
            client.predict(**{"self": [1.0]})

    await asyncio.to_thread(named)


async def test_an_unknown_output_and_a_long_id_are_refused(worker: WorkerDriver, digits: Digits) -> None:
    def tried() -> None:
        with Client(worker.path, model="digits") as client:
            with pytest.raises(Refused, match="outputs: expected some of label, probabilities, got 'labels'"):
                client.ask({"x": digits.x[:1]}, outputs=("labels",))
            with pytest.raises(Refused, match="id: expected at most 255 bytes, got 300"):
                client.ask({"x": digits.x[:1]}, id="x" * 300)

    await asyncio.to_thread(tried)


async def test_requests_of_any_size_get_the_room_they_need_up_to_the_modules_limit(
    worker: WorkerDriver, digits: Digits
) -> None:
    def grown() -> None:
        with Client(worker.path, model="digits") as client:
            for rows in (1, 100, 1, 1797, 5):
                said = client.predict(x=digits.x[:rows])
                np.testing.assert_array_equal(said["label"], digits.labels[:rows])
            with pytest.raises(Refused, match="expected tensors of at most 16777216 bytes in all") as refused:
                client.predict(x=np.ones((100_000, 64), np.float32))
            assert refused.value.status == 413
            np.testing.assert_array_equal(client.predict(x=digits.x[:3])["label"], digits.labels[:3])

    await asyncio.to_thread(grown)


async def test_outputs_are_the_callers_own_unless_views_were_asked_for(worker: WorkerDriver, digits: Digits) -> None:
    def kept() -> None:
        with Client(worker.path, model="digits") as client:
            first = client.predict(x=digits.x[:1])["probabilities"]
            before = first.copy()
            client.predict(x=digits.x[7:8])
            np.testing.assert_array_equal(first, before)
        with Client(worker.path, model="digits", copy=False) as client:
            first = client.predict(x=digits.x[:1])["probabilities"]
            second = client.predict(x=digits.x[7:8])["probabilities"]
            np.testing.assert_array_equal(first, second, "both show the same memory")

    await asyncio.to_thread(kept)


async def test_inputs_made_in_shared_memory_are_used_in_place(worker: WorkerDriver, digits: Digits) -> None:
    def in_place() -> None:
        with Client(worker.path, model="digits") as client:
            room = client.room(x=(3, 64))
            for start in (0, 10):
                room["x"][...] = digits.x[start : start + 3]
                said = client.predict(**room)
                np.testing.assert_array_equal(said["label"], digits.labels[start : start + 3])

    await asyncio.to_thread(in_place)


async def test_without_numpy_tensors_go_in_and_come_out(worker: WorkerDriver, digits: Digits) -> None:
    """In an interpreter that has no NumPy: not even by accident may the client need it."""
    program = (
        "import sys\nsys.modules['numpy'] = None\n"
        "from mooring_client import Client, Tensor\n"
        "data = sys.stdin.buffer.read()\n"
        "with Client(sys.argv[1], model='digits', transport=sys.argv[2]) as client:\n"
        "    said = client.predict(x=Tensor('FP32', (2, 64), data))\n"
        "assert said['label'].datatype == 'INT64', said\n"
        "print(*memoryview(said['label'].data).cast('q'))\n"
    )

    def run(transport: str) -> str:
        command = [sys.executable, "-c", program, worker.path, transport]
        done = subprocess.run(command, input=digits.x[:2].tobytes(), capture_output=True, timeout=30, check=True)
        return done.stdout.decode().strip()

    for transport in BOTH:
        assert await asyncio.to_thread(run, transport) == f"{digits.labels[0]} {digits.labels[1]}"


@pytest.mark.parametrize("transport", BOTH)
async def test_a_deadline_ends_the_wait_and_the_late_answer_is_nobodys(
    echo: WorkerDriver, transport: Transport
) -> None:
    def late() -> None:
        with Client(echo.path, model="digits", transport=transport) as client:
            client.predict(x=[[0, 0]], word=["first"])
            with pytest.raises(Timeout, match=r"expected an answer within 0\.2 s"):
                client.ask({"x": [[1, 1]], "word": ["wait 1"]}, timeout_s=0.2)
            said = client.predict(x=[[2, 2]], word=["next"])
            assert said["twice"].tolist() == [[4, 4]]
            assert said["said"].tolist() == [b"next!"]

    await asyncio.to_thread(late)


async def test_a_client_may_be_shared_by_threads(worker: WorkerDriver, digits: Digits) -> None:
    answered: dict[int, int] = {}

    def asks(client: Client, start: int) -> None:
        for row in range(start, start + 50):
            answered[row] = int(client.predict(x=digits.x[row : row + 1])["label"][0])

    def together() -> None:
        with Client(worker.path, model="digits") as client:
            threads = [threading.Thread(target=asks, args=(client, start)) for start in range(0, 200, 50)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)

    await asyncio.to_thread(together)
    assert answered == dict(enumerate(digits.labels[:200].tolist()))


async def test_a_thread_that_was_kept_near_may_go_everywhere_afterwards(worker: WorkerDriver, digits: Digits) -> None:
    def near() -> tuple[set[int], int, set[int]]:
        before = os.sched_getaffinity(0)
        with Client(worker.path, model="digits", near=True) as client:
            for _ in range(20):
                client.predict(x=digits.x[:1])
            meanwhile = len(os.sched_getaffinity(0))
        return before, meanwhile, os.sched_getaffinity(0)

    before, meanwhile, after = await asyncio.to_thread(near)
    assert meanwhile == 1
    assert after == before


@pytest.mark.parametrize("transport", BOTH)
async def test_asyncio_applications_get_the_same_answers(
    worker: WorkerDriver, digits: Digits, transport: Transport
) -> None:
    async with AsyncClient(worker.path, model="digits", transport=transport) as client:
        assert await client.transport() == transport
        inputs, _ = await client.metadata()
        assert inputs[0].name == "x"
        answers = await asyncio.gather(*(client.predict(x=digits.x[n : n + 1]) for n in range(20)))
        assert [int(said["label"][0]) for said in answers] == digits.labels[:20].tolist()
        with pytest.raises(Refused, match="expected FP32, got FP64"):
            await client.predict(x=np.ones((1, 64)))
        many = await client.predict(x=digits.x)
        np.testing.assert_array_equal(many["label"], digits.labels)


@pytest.mark.parametrize("transport", BOTH)
async def test_asyncio_applications_have_deadlines_and_may_be_cancelled(
    echo: WorkerDriver, transport: Transport
) -> None:
    async with AsyncClient(echo.path, model="digits", transport=transport) as client:
        with pytest.raises(Timeout, match=r"expected an answer within 0\.2 s"):
            await client.ask({"x": [[1, 1]], "word": ["wait 0.5"]}, timeout_s=0.2)
        asking = asyncio.create_task(client.predict(x=[[1, 1]], word=["wait 0.5"]))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        assert (await client.predict(x=[[2, 2]], word=["next"]))["said"].tolist() == [b"next!"]


@pytest.mark.parametrize("transport", BOTH)
def test_where_nobody_serves_it_says_so(tmp_path: Path, transport: Transport) -> None:
    with Client("absent", state=tmp_path, transport=transport) as client, pytest.raises(Gone, match="nobody serves"):
        client.predict(x=[[1.0]])


def test_what_listens_and_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.bind(str(tmp_path / "m.fast.sock"))
        silent.listen()
        with Client(tmp_path / "m.sock", timeout_s=0.1) as client, pytest.raises(Timeout):
            client.predict(x=[[1.0]])


@pytest.mark.parametrize("first", [b"", b"Wgibberish", b'W{"protocol":9}', b"X", b"R"])
def test_a_worker_that_speaks_otherwise_is_named(tmp_path: Path, first: bytes) -> None:
    def speak(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):  # until it is closed
            while True:
                with listening.accept()[0] as one:
                    one.send(first)

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(tmp_path / "m.fast.sock"))
        listening.listen()
        speaker = threading.Thread(target=speak, args=(listening,), daemon=True)
        speaker.start()
        with Client(tmp_path / "m.sock", timeout_s=10) as client, pytest.raises(ClientError):
            client.predict(x=[[1.0]])
        listening.shutdown(socket.SHUT_RDWR)
        speaker.join(10)


async def test_two_modules_are_asked_beside_each_other(worker: WorkerDriver, digits: Digits, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    slot = tmp_path / "two" / "slot"
    async with WorkerDriver(slot, make_echo(slot, name="echo")) as other:
        await other.serve()

        def asked() -> tuple[object, object]:
            with Client(worker.path, model="digits") as one, Client(other.path, model="echo") as two:
                return one.predict(x=digits.x[:1])["label"][0], two.predict(x=[[1, 2]], word=["w"])["twice"].tolist()

        assert await asyncio.to_thread(asked) == (digits.labels[0], [[2, 4]])


def test_a_module_is_found_by_name_path_and_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOORING_STATE", raising=False)
    assert find("digits", None, "").plain == "/var/lib/mooring/endpoints/digits.sock"
    monkeypatch.setenv("MOORING_STATE", "/data")
    assert find("digits", None, "").fast == "/data/endpoints/digits.fast.sock"
    assert find("digits", tmp_path, "").plain == f"{tmp_path}/endpoints/digits.sock"
    for given in ("/run/m.sock", "/run/m.fast.sock"):
        assert find(given, None, "") == Place("m", "/run/m.fast.sock", "/run/m.sock")
    assert find("http://[::1]:90/v2/models/m", None, "") == Place("m", host="::1", port=90)


@pytest.mark.parametrize("wrong", ["", "Digits", "a b", "http://host", "http://host:99999/v2/models/m", "../x y"])
def test_what_names_no_module_is_refused_at_once(wrong: str) -> None:
    if wrong == "../x y":
        assert find(wrong, None, "").model == "x y", "a path is the caller's affair"
        return
    with pytest.raises(ClientError, match="expected"):
        Client(wrong)
