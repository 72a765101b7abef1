"""The worker's orders, over a real socket pair with a real process."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from agent.sandbox.protocol import (
    Broken,
    Drain,
    Drained,
    Passed,
    Ping,
    SelfTest,
    Serve,
    SetPolicy,
    Start,
    Stop,
)  # fmt: skip
from modules.bundle import sha256_hex
from modules.manifest import Health, Manifest, Runtime, SamplingPolicy, encode_manifest
from modules.tensors import GoldenCase, GoldenSet, Tensor, TensorSpec, encode_golden
from modules.windows import LATENCY_BINS, ReferenceProfile, encode_reference, unpack_counts
from support.waiting import until
from worker.conftest import INPUTS, OUTPUTS, Digits
from worker.driver import WorkerDriver, infer_request, json_input, running_as_root, write_module


async def test_a_module_starts_passes_its_golden_and_stops(tmp_path: Path, digits_module: Manifest) -> None:
    async with WorkerDriver(tmp_path / "slot", digits_module) as worker:
        ready = await worker.start()
        assert ready.execution.startswith("onnx: ")
        assert ready.execution.endswith("on CPUExecutionProvider")
        assert "rlimits" in ready.confinement
        passed = await worker.order(SelfTest(), Passed)
        assert passed.cases == 1
        assert passed.worst_error < 1e-3
        worker.send(Stop())
        assert await worker.exit_code() == 0


async def test_the_end_of_the_channel_ends_the_worker(tmp_path: Path, digits_module: Manifest) -> None:
    async with WorkerDriver(tmp_path / "slot", digits_module) as worker:
        await worker.start()
        worker.writer.write_eof()
        assert await worker.exit_code() == 0


async def test_bytes_that_are_no_order_end_the_worker(tmp_path: Path, digits_module: Manifest) -> None:
    async with WorkerDriver(tmp_path / "slot", digits_module) as worker:
        worker.writer.write(b"\0\0\0\x03abc")
        assert await worker.exit_code() == 0


async def test_an_order_before_start_is_answered_broken(tmp_path: Path, digits_module: Manifest) -> None:
    async with WorkerDriver(tmp_path / "slot", digits_module) as worker:
        assert (await worker.order(Ping(), Broken)).key == "internal"
        assert "expected Start first" in (await worker.order(Serve(), Broken)).text


async def test_a_wrong_golden_is_a_mismatch_with_expected_and_got(tmp_path: Path, digits: Digits) -> None:
    golden = Tensor("probabilities", "FP32", (1, 10), np.full((1, 10), 0.1, np.float32).tobytes())
    case = GoldenCase((Tensor("x", "FP32", (1, 64), digits.x[:1].tobytes()),), (golden,))
    files = {"model.onnx": digits.onnx, "golden": encode_golden(GoldenSet((case,)))}
    manifest = write_module(tmp_path / "slot", files, inputs=INPUTS, outputs=OUTPUTS, health=Health(golden="golden"))
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        await worker.start()
        broken = await worker.order(SelfTest(), Broken)
        assert broken.key == "golden-mismatch"
        assert "golden case 0, output probabilities: expected 0.1" in broken.text
        assert (await worker.stats()).requests == 0  # it is still there


async def test_a_golden_that_cannot_run_has_failed(tmp_path: Path, digits: Digits) -> None:
    case = GoldenCase((Tensor("x", "FP32", (1, 3), bytes(12)),), ())
    files = {"model.onnx": digits.onnx, "golden": encode_golden(GoldenSet((case,)))}
    manifest = write_module(tmp_path / "slot", files, inputs=INPUTS, outputs=OUTPUTS, health=Health(golden="golden"))
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        await worker.start()
        assert (await worker.order(SelfTest(), Broken)).key == "golden-failed"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file"),
        (b"this is no model, this is prose" * 20, "expected an ONNX model"),
        (b"\x08\x08", "model.onnx"),
    ],
)
async def test_a_file_that_is_no_model_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    manifest = write_module(tmp_path / "slot", {"model.onnx": data}, inputs=INPUTS, outputs=OUTPUTS)
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        broken = await worker.start_broken()
        assert broken.key == "load-failed"
        assert words in broken.text


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ((TensorSpec("pixels", "FP32", (-1, 64)),), OUTPUTS, "inputs: expected pixels, got x"),
        ((TensorSpec("x", "FP64", (-1, 64)),), OUTPUTS, "expected FP64 [-1, 64], got FP32"),
        ((TensorSpec("x", "FP32", (-1, 63)),), OUTPUTS, "expected FP32 [-1, 63], got FP32"),
        (INPUTS, (TensorSpec("score", "FP32", (-1, 10)),), "outputs: expected score, got label, probabilities"),
    ],
)
async def test_a_model_that_differs_from_its_manifest_is_refused(
    tmp_path: Path, digits: Digits, inputs: tuple[TensorSpec], outputs: tuple[TensorSpec], words: str
) -> None:
    manifest = write_module(tmp_path / "slot", {"model.onnx": digits.onnx}, inputs=inputs, outputs=outputs)
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        broken = await worker.start_broken()
        assert broken.key == "load-failed"
        assert words in broken.text


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "other.bin"])
async def test_a_model_that_reads_files_outside_the_module_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64 * 10 * 4))
    manifest = write_module(tmp_path / "slot", {"model.onnx": _external_model(location)}, **_MATMUL)
    async with WorkerDriver(tmp_path / "slot", manifest, confine=False) as worker:
        broken = await worker.start_broken()
        assert broken.key == "load-failed"
        assert f"expected external data among the module's files, got '{location}'" in broken.text


async def test_a_model_may_read_the_weights_it_was_signed_with(tmp_path: Path) -> None:
    files = {"model.onnx": _external_model("weights.bin"), "weights.bin": np.ones((64, 10), np.float32).tobytes()}
    manifest = write_module(tmp_path / "slot", files, **_MATMUL)
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        await worker.serve()
        response = await worker.infer({"inputs": [json_input(np.ones((1, 64)))]})
        assert response.array("y").tolist() == [[64.0] * 10]


async def test_bytes_that_are_no_manifest_are_refused(tmp_path: Path, digits_module: Manifest) -> None:
    async with WorkerDriver(tmp_path / "slot", digits_module) as worker:
        broken = await worker.order(Start(str(worker.slot), b"{}", SamplingPolicy(), ()), Broken)
        assert broken.key == "bad-manifest"


async def test_a_drained_worker_has_sent_its_window_and_its_samples(
    worker: WorkerDriver, digits: Digits, reference: ReferenceProfile
) -> None:
    rows = digits.x[:50]
    response = await worker.infer({"id": "batch", "inputs": [json_input(rows)]})
    assert response.status == 200
    await worker.infer({"inputs": []})
    assert (await worker.order(Drain(5.0), Drained)).cut == 0
    (window,) = worker.windows
    assert (window.rows, window.errors, window.refused) == (50, 0, 1)
    assert window.start <= window.end
    assert window.module == "digits"
    assert window.manifest_sha256 == sha256_hex(encode_manifest(worker.manifest))
    assert window.reference_sha256 == sha256_hex(encode_reference(reference))
    assert sum(unpack_counts(window.latency, LATENCY_BINS)) == 1
    cells = unpack_counts(window.counts, reference.cells)
    at = sum(feature.cells for feature in reference.inputs)
    assert cells[at : at + 10] == np.bincount(digits.probabilities[:50].argmax(axis=1), minlength=10).tolist()
    assert [sample.prediction_id for sample in worker.samples] == [f"batch#{i}" for i in range(50)]
    assert worker.samples[3].inputs[0].data == rows[3:4].tobytes()
    assert worker.samples[3].inputs[0].shape == (1, 64)
    assert worker.samples[3].outputs[0].shape == (1,)


async def test_a_window_is_closed_on_time_also_when_nothing_comes(
    tmp_path: Path, digits_module: Manifest, digits: Digits
) -> None:
    policy = SamplingPolicy(rate=0.0, window_s=0.2)
    async with WorkerDriver(tmp_path / "slot", digits_module, policy) as worker:
        await worker.serve()
        await worker.infer({"inputs": [json_input(digits.x[:3])]})
        await until(lambda: bool(worker.windows), "the window")
        (window,) = worker.windows
        assert window.rows == 3
        assert math.floor(window.end / 0.2 + 1e-6) > math.floor(window.start / 0.2 + 1e-6)


async def test_a_new_policy_counts_from_the_next_prediction(worker: WorkerDriver, digits: Digits) -> None:
    await worker.infer({"id": "before", "inputs": [json_input(digits.x[:1])]})
    worker.send(SetPolicy(SamplingPolicy(rate=0.0, window_s=3600)))
    await worker.stats()
    await worker.infer({"id": "after", "inputs": [json_input(digits.x[:1])]})
    stats = await worker.stats()
    assert (stats.requests, stats.rows, stats.sampled) == (2, 2, 1)
    assert stats.p50_us > 0
    assert stats.p99_us >= stats.p50_us
    await until(lambda: len(worker.samples) == 1, "the sample")
    assert worker.samples[0].prediction_id == "before"


async def test_a_hand_over_drops_no_request(tmp_path: Path, digits_module: Manifest, digits: Digits) -> None:
    body = infer_request({"inputs": [json_input(digits.x[:1])]})
    slot = tmp_path / "slot"
    async with WorkerDriver(slot, digits_module) as old:
        await old.serve()
        kept = await old.connect()
        assert (await kept.ask(body)).status == 200
        async with WorkerDriver(slot, digits_module, listener=old.listener) as new:
            await new.serve()
            old.send(Drain(20.0))
            answers = [await old.ask(body) for _ in range(20)]
            last = await kept.ask(body)  # the old worker still owns this connection, and ends it with its answer
            assert await kept.ended()
            await kept.close()
            await old.answered(Drained)
            answers += [await old.ask(body) for _ in range(5)]
            assert {answer.status for answer in [last, *answers]} == {200}
            assert last.headers["connection"] == "close"
            assert Path(old.path).exists()  # the socket is the parent's
            assert (await old.stats()).requests + (await new.stats()).requests == 27


async def test_a_connection_that_stays_silent_is_closed_at_the_drain_deadline(worker: WorkerDriver) -> None:
    silent = await worker.connect()
    await silent.ask(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    halfway = await worker.connect()
    halfway.writer.write(b"POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
    await worker.ask(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")  # the worker has seen the bytes before
    assert (await worker.order(Drain(0.1), Drained)).cut == 1
    assert await silent.ended()
    await silent.close()
    await halfway.close()


@pytest.mark.skipif(not running_as_root(), reason="changing the user needs root")
@pytest.mark.usefixtures("readable_by_all")
async def test_as_root_the_worker_becomes_the_user_it_was_given(
    tmp_path: Path, digits_module: Manifest, digits: Digits
) -> None:
    async with WorkerDriver(tmp_path / "slot", digits_module, uid=54321) as worker:
        ready = await worker.serve()
        assert ready.confinement.startswith("uid+rlimits")
        status = Path(f"/proc/{worker.process.pid}/status").read_text()
        assert "Uid:\t54321\t54321\t54321\t54321" in status
        assert (await worker.infer({"inputs": [json_input(digits.x[:1])]})).status == 200


@pytest.mark.skipif(not running_as_root(), reason="changing the user needs root")
async def test_a_slot_below_a_closed_folder_is_read_by_the_other_user(
    tmp_path: Path, digits_module: Manifest, digits: Digits
) -> None:
    tmp_path.chmod(0o700)
    async with WorkerDriver(tmp_path / "slot", digits_module, uid=54321) as worker:
        await worker.serve()
        await worker.order(SelfTest(), Passed)


_MATMUL = {
    "inputs": (TensorSpec("x", "FP32", (-1, 64)),),
    "outputs": (TensorSpec("y", "FP32", (-1, 10)),),
    "runtime": Runtime(),
}


def _external_model(location: str) -> bytes:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64, 10])
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [weights],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
