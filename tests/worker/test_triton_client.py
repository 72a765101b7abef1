"""The public Triton client, unchanged, against a real worker: what it asks for and can pass. Sync and asyncio."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype
from tritonclient.utils import shared_memory as shm

from agent.sandbox.given import Given
from modules.manifest import Manifest, Runtime
from modules.tensors import TensorSpec
from worker.conftest import Digits
from worker.driver import WorkerDriver, write_module

NUMBERS = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BOOL")
ECHO = b"def init(): pass\ndef predict(inputs):\n    return {'out_' + name: array for name, array in inputs.items()}\n"
_Answer = TypeVar("_Answer")


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield listener


@pytest.fixture
async def serving(tmp_path: Path, digits_module: Manifest, tcp: socket.socket) -> AsyncIterator[str]:
    given = Given(shares_memory=True)
    async with WorkerDriver(tmp_path / "slot", digits_module, listener=tcp, given=given) as driver:
        await driver.serve()
        yield _address(tcp)


@pytest.fixture
async def echoing(tmp_path: Path, tcp: socket.socket) -> AsyncIterator[str]:
    """A module that gives back what it gets, in every datatype."""
    names = (*NUMBERS, "BYTES")
    specs = [tuple(TensorSpec(prefix + n, n, (-1, 2)) for n in names) for prefix in ("", "out_")]
    manifest = write_module(
        tmp_path / "slot", {"entry.py": ECHO}, inputs=specs[0], outputs=specs[1],
        runtime=Runtime(backend="script", model="", entry="entry.py"),
    )  # fmt: skip
    async with WorkerDriver(tmp_path / "slot", manifest, listener=tcp) as driver:
        await driver.serve()
        yield _address(tcp)


def _address(tcp: socket.socket) -> str:
    return f"127.0.0.1:{tcp.getsockname()[1]}"


async def using(address: str, ask: Callable[[Any], _Answer]) -> _Answer:
    """What a thread with a client of its own gets."""

    def inside() -> _Answer:
        with triton.InferenceServerClient(address) as client:
            return ask(client)

    return await asyncio.to_thread(inside)


def an_input(rows: np.ndarray[Any, Any], name: str = "x", binary: bool = True) -> Any:
    given = triton.InferInput(name, list(rows.shape), np_to_triton_dtype(rows.dtype))
    given.set_data_from_numpy(rows, binary_data=binary)
    return given


async def test_it_asks_for_health_metadata_configuration_and_settings(serving: str) -> None:
    def ask(client: Any) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("digits")
        assert client.is_model_ready("digits", "7")
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["extensions"] == [
            "binary_tensor_data", "parameters", "statistics", "model_configuration", "system_shared_memory",
        ]  # fmt: skip
        assert client.get_model_metadata("digits", "7")["versions"] == ["7"]
        config = client.get_model_config("digits")
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 64]}]
        index = client.get_model_repository_index()
        assert index == [{"name": "digits", "version": "7", "state": "READY", "reason": ""}]
        assert client.get_trace_settings("digits")["trace_level"] == ["OFF"]
        assert client.get_log_settings()["log_error"] is True

    await using(serving, ask)


@pytest.mark.parametrize(
    "change",
    [
        lambda client: client.load_model("digits"),
        lambda client: client.unload_model("digits"),
        lambda client: client.update_log_settings({"log_verbose_level": 1}),
        lambda client: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
    ],
)
async def test_it_is_told_that_nothing_is_changed_here(serving: str, change: Callable[[Any], Any]) -> None:
    with pytest.raises(InferenceServerException, match="digits and its settings are the director's"):
        await using(serving, change)


@pytest.mark.parametrize("binary", [True, False])
async def test_it_predicts_without_naming_outputs(serving: str, digits: Digits, binary: bool) -> None:
    def ask(client: Any) -> Any:
        answer = client.infer("digits", [an_input(digits.x[:4], binary=binary)], request_id="mine", timeout=30_000_000)
        assert answer.get_response()["id"] == "mine"
        return answer.as_numpy("label")

    assert (await using(serving, ask)).tolist() == digits.labels[:4].tolist()


@pytest.mark.parametrize("binary", [True, False])
async def test_every_datatype_goes_there_and_back(echoing: str, binary: bool) -> None:
    rows = {name: np.array([[0, 1], [1, 3]]).astype(triton_dtype(name)) for name in NUMBERS}
    rows["BYTES"] = np.array([[b"", "grün".encode()], [b"x" * 300, b"4"]], object)
    if not binary:
        del rows["FP16"]  # which the client cannot send as JSON

    def ask(client: Any) -> Any:
        inputs = [an_input(rows[name], name, binary or name == "FP16") for name in rows]
        if not binary:
            inputs.append(an_input(np.zeros((2, 2), np.float16), "FP16"))
        outputs = [triton.InferRequestedOutput("out_" + name, binary_data=binary) for name in rows]
        return client.infer("digits", inputs, outputs=outputs)

    answer = await using(echoing, ask)
    for name, sent in rows.items():
        came = answer.as_numpy("out_" + name)
        wanted = sent.tolist()
        if name == "BYTES" and not binary:
            wanted = [[item.decode() for item in row] for row in wanted]  # JSON knows text alone
        assert came.tolist() == wanted, name
        assert came.dtype == sent.dtype


def triton_dtype(name: str) -> Any:
    from tritonclient.utils import triton_to_np_dtype

    return triton_to_np_dtype(name)


async def test_it_sees_what_was_counted(serving: str, digits: Digits) -> None:
    def ask(client: Any) -> Any:
        for count in (1, 3):
            client.infer("digits", [an_input(digits.x[:count])])
        with pytest.raises(InferenceServerException, match="expected shape"):
            client.infer("digits", [an_input(digits.x[:1, :3].copy())])
        return client.get_inference_statistics("digits"), client.get_inference_statistics()

    one, everything = await using(serving, ask)
    assert one == everything
    (stats,) = one["model_stats"]
    assert (stats["name"], stats["version"], stats["inference_count"], stats["execution_count"]) == (
        "digits",
        "7",
        4,
        2,
    )
    told = stats["inference_stats"]
    assert (told["success"]["count"], told["fail"]["count"]) == (2, 1)
    assert 0 < told["compute_infer"]["ns"] < told["success"]["ns"]
    assert [part["batch_size"] for part in stats["batch_stats"]] == [1, 2]
    assert stats["last_inference"] > 1_600_000_000_000


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_bodies_may_be_packed_both_ways(serving: str, digits: Digits, encoding: str) -> None:
    def ask(client: Any) -> Any:
        return client.infer(
            "digits", [an_input(digits.x[:2])], request_compression_algorithm=encoding,
            response_compression_algorithm=encoding,
        ).as_numpy("label")  # fmt: skip

    assert (await using(serving, ask)).tolist() == digits.labels[:2].tolist()


async def test_the_asyncio_client_predicts_too(serving: str, digits: Digits) -> None:
    client = triton_aio.InferenceServerClient(serving)
    try:
        assert await client.is_model_ready("digits")
        answer = await client.infer("digits", [an_input(digits.x[:2])])
        assert answer.as_numpy("label").tolist() == digits.labels[:2].tolist()
    finally:
        await client.close()


@contextmanager
def region(name: str, size: int) -> Iterator[Any]:
    """Shared memory that the worker's user may open, too."""
    key = f"/mooring-test-{name}"
    handle = shm.create_shared_memory_region(name, key, size)
    Path(f"/dev/shm{key}").chmod(0o666)
    try:
        yield handle
    finally:
        shm.destroy_shared_memory_region(handle)


async def test_tensors_go_through_shared_memory(serving: str, digits: Digits) -> None:
    rows = digits.x[:4]

    def ask(client: Any) -> Any:
        with region("in", rows.nbytes + 64) as put, region("out", 4096) as got:
            client.unregister_system_shared_memory()
            shm.set_shared_memory_region(put, [rows], offset=64)
            client.register_system_shared_memory("in", "/mooring-test-in", rows.nbytes + 64)
            client.register_system_shared_memory("out", "/mooring-test-out", 4096)
            told = client.get_system_shared_memory_status()
            assert {(one["name"], one["byte_size"]) for one in told} == {("in", rows.nbytes + 64), ("out", 4096)}
            given = triton.InferInput("x", list(rows.shape), "FP32")
            given.set_shared_memory("in", rows.nbytes, offset=64)
            wanted = triton.InferRequestedOutput("label")
            wanted.set_shared_memory("out", 32, offset=8)
            answer = client.infer("digits", [given], outputs=[wanted])
            told_of = answer.get_output("label")
            assert told_of["parameters"]["shared_memory_region"] == "out"
            labels = shm.get_contents_as_numpy(got, np.int64, told_of["shape"], offset=8).copy()
            _try_wrong_regions(client, rows)
            client.unregister_system_shared_memory("in")
            with pytest.raises(InferenceServerException, match="expected a region that is registered, got 'in'"):
                client.infer("digits", [given])
            client.unregister_system_shared_memory()
            assert client.get_system_shared_memory_status() == []
            return labels

    assert (await using(serving, ask)).tolist() == digits.labels[:4].tolist()


def _try_wrong_regions(client: Any, rows: np.ndarray[Any, Any]) -> None:
    """While `in` and `out` are registered."""
    wrong = [
        ("in", "/mooring-test-in", 8, 0, "expected a new name"),
        ("a", "/mooring-test-in", 1 << 20, 0, "expected 1048576 bytes"),
        ("a", "/mooring-test-in", 8, 1 << 20, "expected 1048584 bytes"),
        ("a", "/../../etc/passwd", 8, 0, "expected the key of shared memory"),
        ("a", "/mooring-test-none", 8, 0, "No such file"),
        ("a", "/mooring-test-in", 0, 0, "expected an offset of 0 or more"),
    ]
    for name, key, size, offset, words in wrong:
        with pytest.raises(InferenceServerException, match=words):
            client.register_system_shared_memory(name, key, size, offset)
    given = triton.InferInput("x", list(rows.shape), "FP32")
    given.set_shared_memory("in", rows.nbytes, offset=65)
    with pytest.raises(InferenceServerException, match="expected at most"):
        client.infer("digits", [given])
    wanted = triton.InferRequestedOutput("label")
    wanted.set_shared_memory("out", 31)
    with pytest.raises(InferenceServerException, match="expected a region of 32 bytes at least, got 31"):
        client.infer("digits", [an_input(rows)], outputs=[wanted])


async def test_memory_of_a_gpu_is_told_not_to_be_there(serving: str) -> None:
    def ask(client: Any) -> None:
        client.unregister_cuda_shared_memory()
        assert client.get_cuda_shared_memory_status() == []
        with pytest.raises(InferenceServerException, match="cudasharedmemory: expected tensors"):
            client.register_cuda_shared_memory("gpu", b"handle", 0, 64)

    await using(serving, ask)


async def test_shared_memory_is_refused_where_the_device_does_not_allow_it(
    tmp_path: Path, digits_module: Manifest, tcp: socket.socket
) -> None:
    async with WorkerDriver(tmp_path / "slot", digits_module, listener=tcp) as driver:
        await driver.serve()

        def ask(client: Any) -> None:
            client.unregister_system_shared_memory()
            assert client.get_system_shared_memory_status() == []
            assert "system_shared_memory" not in client.get_server_metadata()["extensions"]
            with pytest.raises(InferenceServerException, match=r"setting serving\.shared_memory"):
                client.register_system_shared_memory("in", "/mooring-test-in", 64)

        await using(_address(tcp), ask)
