"""Models made to do harm, against the real worker with the real runtime: rows 39 to 42 and 46; large files: row 34."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from agent.errors import WorkerError
from agent.sandbox.host import spawn
from agent.sandbox.protocol import Start
from agent.slots import SlotError, verify_file
from modules.bundle import Chunk, FileEntry, sha256_hex
from modules.manifest import Health, Manifest, Resources, Runtime, SamplingPolicy, encode_manifest
from modules.tensors import GoldenCase, GoldenSet, Tensor, TensorSpec, encode_golden
from worker.driver import WorkerDriver, json_input, write_module

X, Y = TensorSpec("x", "FP32", (-1, 64)), TensorSpec("y", "FP32", (-1, 10))


def model(nodes: list[Any], tensors: list[TensorProto], width: int = 10) -> bytes:
    """An ONNX model x[n,64] -> y[n,width]. `Any`: onnx's own node type has no type information of use."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def external(**entries: str) -> bytes:
    """Weights in a file beside the model, described by these entries."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64, 10])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        weights.external_data.add(key=key, value=value)
    return model([helper.make_node("MatMul", ["x", "w"], ["y"])], [weights])


def module(slot: Path, onnx: bytes, **fields: Any) -> Manifest:
    files = {"model.onnx": onnx, "weights.bin": np.ones((64, 10), np.float32).tobytes()}
    return write_module(slot, files, inputs=(X,), outputs=(Y,), runtime=Runtime(), **fields)


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../secret.bin"},
        {"location": "/etc/passwd"},
        {"location": "a/../../secret.bin"},
        {"location": "weights.bin/../../secret.bin"},
        {"location": "weights.bin", "offset": "-1"},
        {"location": "weights.bin", "offset": "9223372036854775807"},
        {"location": "weights.bin", "length": "99999999999"},
        {"location": "weights.bin", "length": "1"},
        {"location": "weights.bin", "offset": "4"},
    ],
    ids=["39-up", "39-absolute", "39-down-and-up", "39-through-a-file", "41-offset-negative", "41-offset-huge",
         "41-length-huge", "41-length-short", "41-beyond-the-end"],
)  # fmt: skip
async def test_external_data_that_is_not_the_modules_own(tmp_path: Path, entries: dict[str, str]) -> None:
    """Rows 39 and 41."""
    (tmp_path / "secret.bin").write_bytes(bytes(64 * 10 * 4))
    async with WorkerDriver(tmp_path / "slot", module(tmp_path / "slot", external(**entries)), confine=False) as worker:
        assert (await worker.start_broken()).key == "load-failed"


async def test_a_key_of_external_data_that_names_an_attribute_is_no_key(tmp_path: Path) -> None:
    """Row 41: keys are read from the bytes and never set on objects; the runtime knows its own and no other."""
    hostile = external(location="weights.bin", __class__="os.system", __dict__="x")
    async with WorkerDriver(tmp_path / "slot", module(tmp_path / "slot", hostile), confine=False) as worker:
        assert (await worker.start_broken()).key == "load-failed"


@pytest.mark.parametrize("elements", [2**40, 2**61], ids=["42-4TB", "42-overflow"])
async def test_a_tiny_model_that_wants_enormous_memory_fails_alone(tmp_path: Path, elements: int) -> None:
    """Row 42: under the module's memory limit the prediction fails, and the worker answers on."""
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["xw", "sum"], ["y"]),
    ]
    shape = helper.make_tensor("s", TensorProto.INT64, [1], [elements])
    manifest = module(tmp_path / "slot", model(nodes, [shape, weights()]), resources=Resources(memory_mib=2048))
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        await worker.serve()
        response = await worker.infer({"inputs": [json_input(np.ones((1, 64)))]})
        assert response.status == 500
        assert (await worker.infer({"inputs": []})).status == 400


async def test_a_tiny_model_that_never_ends_is_killed_at_its_deadline(tmp_path: Path) -> None:
    """Row 42: a loop of 2^62 turns. The runtime folds it while it loads, else the golden inputs meet it."""
    turn = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"]), helper.make_node("Identity", ["v"], ["next"])],
        "turn",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Loop", ["turns", "go", "xw"], ["y"], body=turn),
    ]
    turns = helper.make_tensor("turns", TensorProto.INT64, [], [2**62])
    go = helper.make_tensor("go", TensorProto.BOOL, [], [True])
    files = {"model.onnx": model(nodes, [turns, go, weights()]), "golden.msgpack": golden()}
    health = Health(golden="golden.msgpack", load_deadline_s=1.0)
    manifest = write_module(tmp_path / "slot", files, inputs=(X,), outputs=(Y,), runtime=Runtime(), health=health)
    worker = await spawn("digits", (), tmp_path / "worker.log", lambda stream, payload: None)
    order = Start(str(tmp_path / "slot"), encode_manifest(manifest), SamplingPolicy(), ())

    async def tried() -> None:
        await worker.start(order, 3.0)
        await worker.self_test(3.0)

    try:
        with pytest.raises(WorkerError, match="it was killed") as caught:
            await tried()
        assert caught.value.key == "worker-timeout"
        await asyncio.wait_for(worker.exited.wait(), 10)
    finally:
        await worker.kill()


def weights() -> TensorProto:
    tensor: TensorProto = helper.make_tensor("w", TensorProto.FLOAT, [64, 10], np.ones(640, np.float32))
    return tensor


def golden() -> bytes:
    row, answer = np.ones((1, 64), np.float32), np.full((1, 10), 64, np.float32)
    given, expected = Tensor("x", "FP32", (1, 64), row.tobytes()), Tensor("y", "FP32", (1, 10), answer.tobytes())
    return encode_golden(GoldenSet((GoldenCase((given,), (expected,)),)))


def entry(path: Path, size: int, digest: str) -> FileEntry:
    sizes = [min(256 * 1024, size - at) for at in range(0, size, 256 * 1024)]
    return FileEntry(path.name, size, digest, tuple(Chunk("0" * 64, part) for part in sizes))


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", [2**31 + 1, 2**32 + 1], ids=["34-2GiB", "34-4GiB"])
def test_the_last_byte_of_a_file_beyond_32_bits_is_covered(tmp_path: Path, size: int) -> None:
    """Row 34: a sparse file, whose end is changed."""
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(size)
    digest = hashlib.sha256()
    for at in range(0, size, 2**20):
        digest.update(bytes(min(2**20, size - at)))
    signed = entry(path, size, digest.hexdigest())
    verify_file(path, signed)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    with pytest.raises(SlotError, match="expected SHA-256"):
        verify_file(path, signed)


def test_a_second_name_of_a_file_outside_is_refused(tmp_path: Path) -> None:
    """Row 40: the runtime itself follows hard links."""
    outside, inside = tmp_path / "key.pem", tmp_path / "weights.bin"
    outside.write_bytes(b"secret")
    os.link(outside, inside)
    with pytest.raises(SlotError, match="expected one name, got 2"):
        verify_file(inside, FileEntry("weights.bin", 6, sha256_hex(b"secret"), (Chunk(sha256_hex(b"secret"), 6),)))
