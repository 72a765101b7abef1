"""Every row is counted, whichever way it came in, in the window of its event time where it has one."""

from __future__ import annotations

import asyncio
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.sandbox.protocol import Drain, Drained
from cloud_hub.reference import profile_training
from modules.manifest import Manifest, Runtime, SamplingPolicy
from modules.tensors import TensorSpec
from modules.windows import ReferenceProfile, Window, encode_reference, unpack_counts, unpack_joint
from mooring_client import AsyncClient, Refused
from support.shop import linear
from worker.conftest import INPUTS, OUTPUTS, Digits
from worker.driver import WorkerDriver, binary_input, json_input, request, write_module

HOUR = 3600
POLICY = SamplingPolicy(rate=0.0, window_s=HOUR)
PATH = "/v2/models/digits/infer"


@pytest.fixture
def profile(digits: Digits) -> ReferenceProfile:
    outputs: dict[str, Any] = {"label": digits.labels, "probabilities": digits.probabilities}
    return profile_training({"x": digits.x}, outputs, INPUTS, OUTPUTS)


@pytest.fixture
def module(tmp_path: Path, digits: Digits, profile: ReferenceProfile) -> Manifest:
    files = {"model.onnx": digits.onnx, "reference.json": encode_reference(profile)}
    return write_module(tmp_path / "slot", files, inputs=INPUTS, outputs=OUTPUTS, reference="reference.json")


def with_header(rows: Any, name: str, value: str) -> bytes:

    body = json.dumps({"inputs": [json_input(rows)]}).encode()
    return request("POST", PATH, body, f"{name}: {value}")


async def drained(worker: WorkerDriver) -> list[Window]:
    await worker.order(Drain(20.0), Drained)
    return worker.windows


def counted(profile: ReferenceProfile, windows: list[Window]) -> Any:
    """Rows per feature, in all windows together."""
    cells = np.sum([unpack_counts(window.counts, profile.cells) for window in windows], axis=0)
    starts = np.cumsum([0, *(feature.cells for feature in profile.features)])[:-1]
    return np.add.reduceat(cells, starts)


async def test_every_row_is_counted_in_every_feature_whichever_way_it_came(
    tmp_path: Path, module: Manifest, digits: Digits, profile: ReferenceProfile
) -> None:
    x = digits.x
    async with WorkerDriver(tmp_path / "slot", module, POLICY) as worker:
        await worker.serve()
        assert (await worker.infer({"inputs": [json_input(x[:1])]})).status == 200
        assert (await worker.infer({"inputs": [json_input(x[:7])]})).status == 200
        assert (await worker.infer({"inputs": [binary_input(x[:1])]}, x[:1].tobytes())).status == 200
        assert (await worker.infer({"inputs": [binary_input(x[:40])]}, x[:40].tobytes())).status == 200
        single = {"inputs": [binary_input(x[:1])]}
        said = await asyncio.gather(*(worker.infer(single, x[n : n + 1].tobytes()) for n in range(8)))
        assert {one.status for one in said} == {200}
        async with AsyncClient(worker.path, model="digits", transport="shared-memory") as client:
            for n in range(10):
                await client.predict(x=x[n : n + 1])
            await client.predict(x=x[:100])
        windows = await drained(worker)
    rows = 1 + 7 + 1 + 40 + 8 + 10 + 100
    assert sum(window.rows for window in windows) == rows
    assert set(counted(profile, windows).tolist()) == {rows}
    assert [feature.name for feature in profile.outputs] == ["label", "probabilities.class", "probabilities.confidence"]
    assert profile.joint is not None
    assert sum(unpack_joint(one.joint, profile.joint.dimensions)[0] for one in windows) == rows


async def test_an_event_time_may_come_as_a_parameter_or_as_a_header(
    tmp_path: Path, module: Manifest, digits: Digits, profile: ReferenceProfile
) -> None:
    x, then = digits.x, time.time() - 5 * HOUR
    async with WorkerDriver(tmp_path / "slot", module, POLICY) as worker:
        await worker.serve()
        timed = {"inputs": [binary_input(x[:2])], "parameters": {"event_time": then}}
        for _ in range(3):  # the same head again, which is read once where it may be
            assert (await worker.infer(timed, x[:2].tobytes())).status == 200
        for hours in (0, 1):
            raw = with_header(x[:1], "Mooring-Event-Time", f"{then - hours * HOUR:.3f}")
            assert (await worker.ask(raw)).status == 200
        assert (await worker.infer({"inputs": [binary_input(x[:2])]}, x[:2].tobytes())).status == 200
        windows = await drained(worker)
    period = then // HOUR * HOUR
    rows = {window.start: (window.rows, window.late) for window in windows}
    now = max(rows)
    assert rows == {period: (7, 7), period - HOUR: (1, 1), now: (2, 0)}
    assert now > time.time() - 2 * HOUR
    assert set(counted(profile, windows).tolist()) == {10}


EMBEDDING = """
def init(): pass
def predict(inputs):
    x = inputs["x"]
    return {"embedding": x * x, "y": x * 2}
"""


async def test_what_a_script_gives_to_be_profiled_only_is_answered_to_nobody(tmp_path: Path) -> None:
    spec, rows = TensorSpec("x", "FP32", (-1, 2)), np.random.default_rng(1).normal(size=(50, 2)).astype(np.float32)
    outputs = TensorSpec("embedding", "FP32", (-1, 2), unserved=True), TensorSpec("y", "FP32", (-1, 2))
    profile = profile_training({"x": rows}, {"embedding": rows * rows, "y": rows * 2}, [spec], outputs)
    files = {"s.py": EMBEDDING.encode(), "reference.json": encode_reference(profile)}
    manifest = write_module(
        tmp_path / "slot", files, inputs=(spec,), outputs=outputs, reference="reference.json",
        runtime=Runtime(model="", entry="s.py"),
    )  # fmt: skip
    async with WorkerDriver(tmp_path / "slot", manifest, SamplingPolicy(rate=1.0, window_s=HOUR)) as worker:
        await worker.serve()
        said = await worker.infer({"inputs": [json_input(rows[:10])]})
        assert [output["name"] for output in said.json["outputs"]] == ["y"]
        refused = await worker.infer({"inputs": [json_input(rows[:1])], "outputs": [{"name": "embedding"}]})
        assert (refused.status, refused.json["error"]) == (400, "outputs: expected y, got 'embedding'")
        about = await worker.ask(request("GET", "/v2/models/digits"))
        assert [output["name"] for output in about.json["outputs"]] == ["y"]
        async with AsyncClient(worker.path, model="digits", transport="shared-memory") as client:
            assert [output.name for output in (await client.metadata())[1]] == ["y"]
            for part in (rows[10:11], rows[11:]):
                answer = await client.ask({"x": part}, outputs=("y",))
                assert list(answer) == ["y"]
                np.testing.assert_array_equal(answer["y"], part * 2)
                assert list(await client.predict(x=part)) == ["y"]
        windows = await drained(worker)
    assert set(counted(profile, windows).tolist()) == {10 + 2 * 40}
    assert {tensor.name for tensor in worker.samples[0].outputs} == {"embedding", "y"}


@pytest.mark.parametrize("transport", ["shared-memory", "http"])
async def test_the_python_client_says_event_times(tmp_path: Path, transport: Any) -> None:
    """Of numbers only, so that the worker runs the later ones in the client's memory itself."""
    spec = TensorSpec("x", "FP32", (-1, 2))
    manifest = write_module(
        tmp_path / "slot", {"model.onnx": linear(2.0)}, inputs=(spec,), outputs=(TensorSpec("y", "FP32", (-1, 2)),)
    )
    then, row = time.time() - 5 * HOUR, np.ones((1, 2), np.float32)
    async with WorkerDriver(tmp_path / "slot", manifest, POLICY) as worker:
        await worker.serve()
        async with AsyncClient(worker.path, model="digits", transport=transport) as client:
            for n in range(6):
                said = await client.ask({"x": row}, event_time=then - n % 2 * HOUR)
                np.testing.assert_array_equal(said["y"], 2 * row)
            await client.predict(x=row)
            with pytest.raises(Refused, match="expected seconds since the epoch, got nan"):
                await client.ask({"x": row}, event_time=math.nan)
        windows = await drained(worker)
    period = then // HOUR * HOUR
    rows = {window.start: window.rows for window in windows}
    assert rows == {period: 3, period - HOUR: 3, max(rows): 1}
    assert max(rows) > period


async def test_an_event_time_that_is_no_number_is_refused(tmp_path: Path, module: Manifest, digits: Digits) -> None:
    async with WorkerDriver(tmp_path / "slot", module, POLICY) as worker:
        await worker.serve()
        wrong: list[object] = ["yesterday", True, [1], {}, None]
        for event_time in wrong:
            head = {"inputs": [json_input(digits.x[:1])], "parameters": {"event_time": event_time}}
            refused = await worker.infer(head)
            assert refused.status == 400
            assert b"event_time: expected seconds since the epoch" in refused.body
        for value in ("now", "nan", "1e999", "1" * 50):
            refused = await worker.ask(with_header(digits.x[:1], "mooring-event-time", value))
            assert refused.status == 400
            assert b"Mooring-Event-Time: expected seconds since the epoch" in refused.body


async def test_an_event_time_that_cannot_be_is_answered_counted_as_arrival_and_told(
    tmp_path: Path, module: Manifest, digits: Digits
) -> None:
    odd = [10**400, -(10**400), 1e308, -5, 1, 2**63]
    async with WorkerDriver(tmp_path / "slot", module, POLICY) as worker:
        await worker.serve()
        for event_time in odd:
            head = {"inputs": [json_input(digits.x[:1])], "parameters": {"event_time": event_time}}
            assert (await worker.infer(head)).status == 200
        metrics = (await worker.ask(request("GET", "/metrics"))).body
        assert b'mooring_odd_times_total{module="digits",version="7"} %d' % len(odd) in metrics
        windows = await drained(worker)
    assert sum(window.rows for window in windows) == len(odd)
    assert not any(window.late for window in windows)
    assert all(abs(window.end - time.time()) < HOUR for window in windows)
