"""p50 of one prediction of a 20-64-3 MLP: in process, behind a bare aiohttp handler, and behind our worker.

The worker runs confined, with sampling at 1 % and windows over all 20 features. Binary tensors over a Unix socket,
one client on one kept connection, the same raw socket client for both servers. Rounds are interleaved, so that a
busy moment of the machine meets all three.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import numpy as np

from agent.sandbox.protocol import (
    Notice,
    Order,
    Ping,
    Pong,
    Ready,
    SampleTaken,
    SelfTest,
    Serve,
    Start,
    Stop,
    WindowClosed,
    frame,
)
from benchmarks.common import median, report
from modules.bundle import Chunk, FileEntry, sha256_hex
from modules.manifest import Health, Lineage, Manifest, Runtime, SamplingPolicy, encode_manifest
from modules.tensors import GoldenCase, GoldenSet, Tensor, TensorSpec, encode_golden
from modules.windows import Categorical, Numeric, ReferenceProfile, encode_reference

ROUNDS = 9
WARM_UP = 300
REQUESTS = 800
RNG = np.random.default_rng(0)
ROW = RNG.normal(size=(1, 20)).astype(np.float32)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        model = _model()
        raw = _session(model)
        bare, bare_path = _start_bare(model, place)
        worker = _Worker(place, model, raw)
        try:
            _measure(raw, bare_path, worker)
        finally:
            worker.stop()
            bare.terminate()
            bare.join(10)


def _measure(raw: Any, bare_path: str, worker: _Worker) -> None:
    request = _request()
    clients = {"bare_aiohttp": _Client(bare_path), "ours": _Client(worker.path)}
    runs: dict[str, Callable[[], object]] = {"raw": lambda: raw.run(["y"], {"x": ROW})}
    runs |= {name: partial(client.ask, request) for name, client in clients.items()}
    expected = raw.run(["y"], {"x": ROW})[0].tobytes()
    for name, client in clients.items():
        assert client.ask(request).endswith(expected), f"{name} answers something else"
    p50: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        _times(run, WARM_UP)
    for _ in range(ROUNDS):
        for name, run in runs.items():
            p50[name].append(median(_times(run, REQUESTS)))
    stats = worker.ask(Ping(), Pong).stats
    assert stats.errors == stats.refused == 0
    for name, values in p50.items():
        print(f"{name:13} p50 {median(values):8.1f} us (rounds from {min(values):.1f} to {max(values):.1f})")
    print(f"worker: {stats.requests} requests, {stats.sampled} sampled, confined by {worker.ready.confinement}")
    metrics = {f"{name}_p50_us": median(values) for name, values in p50.items()}
    ratios = [ours / theirs for ours, theirs in zip(p50["ours"], p50["bare_aiohttp"], strict=True)]
    report("serving", {**metrics, "ours_over_bare_p50": median(ratios)})


def _times(run: Callable[[], object], count: int) -> list[float]:
    times = []
    for _ in range(count):
        started = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - started) / 1000)
    return times


class _Client:
    """HTTP over one kept connection, with as little of its own as can be."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)

    def ask(self, request: bytes) -> bytes:
        self._socket.sendall(request)
        data = self._socket.recv(65536)
        while b"\r\n\r\n" not in data:
            data += self._socket.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        while len(body) < length:
            body += self._socket.recv(65536)
        return body


def _request() -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 20], "parameters": {"binary_data_size": 80}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    lines = (
        f"POST /v2/models/bench/infer HTTP/1.1\r\nHost: bench\r\nInference-Header-Content-Length: {len(head)}\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {len(head) + 80}\r\n\r\n"
    )
    return lines.encode() + head + ROW.tobytes()


def _model() -> bytes:
    """Random weights: what they are does not change how long they take."""
    from onnx import TensorProto, helper, numpy_helper

    def weights(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["l"]),
        helper.make_node("Softmax", ["l"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 20])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [weights("w1", 20, 64), weights("b1", 64), weights("w2", 64, 3), weights("b2", 3)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _session(model: bytes) -> Any:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _start_bare(model: bytes, place: Path) -> tuple[Any, str]:
    """The least that a user would write: one aiohttp handler around session.run, in a process of its own."""
    path = str(place / "bare.sock")
    process = multiprocessing.get_context("spawn").Process(target=_serve_bare, args=(model, path), daemon=True)
    process.start()
    deadline = time.monotonic() + 30
    while not Path(path).exists():
        assert time.monotonic() < deadline, "the bare server did not start"
        time.sleep(0.02)
    return process, path


def _serve_bare(model: bytes, path: str) -> None:
    from aiohttp import web

    session = _session(model)

    async def infer(request: web.Request) -> web.Response:
        length = int(request.headers["Inference-Header-Content-Length"])
        body = await request.read()
        tensor = json.loads(body[:length])["inputs"][0]
        x = np.frombuffer(body, np.float32, offset=length).reshape(tensor["shape"])
        y = session.run(["y"], {"x": x})[0]
        output = {"name": "y", "datatype": "FP32", "shape": y.shape, "parameters": {"binary_data_size": y.nbytes}}
        head = json.dumps({"model_name": "bench", "outputs": [output]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        return web.Response(body=head + y.tobytes(), headers=headers, content_type="application/octet-stream")

    app = web.Application()
    app.router.add_post("/v2/models/bench/infer", infer)
    web.run_app(app, path=path, print=None, access_log=None)


class _Worker:
    """Our worker process, driven over its socket pair as the agent's parent does."""

    def __init__(self, place: Path, model: bytes, raw: Any) -> None:
        slot = place / "slot"
        manifest = _module(slot, model, raw)
        self.path = str(place / "ours.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(16)
        self._channel, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agent.sandbox.worker", str(theirs.fileno())],
            pass_fds=(theirs.fileno(), listener.fileno()),
            cwd=Path(__file__).resolve().parent.parent,
        )
        theirs.close()
        policy = SamplingPolicy(rate=0.01, window_s=1.0)
        self.ready = self.ask(Start(str(slot), encode_manifest(manifest), policy, (listener.fileno(),)), Ready)
        self.ask(SelfTest(), msgspec.Struct)
        self.ask(Serve(), msgspec.Struct)

    def ask(self, order: Order, expected: Any) -> Any:
        self._channel.sendall(frame(order))
        while True:
            (length,) = struct.unpack(">I", self._channel.recv(4, socket.MSG_WAITALL))
            notice = msgspec.msgpack.decode(self._channel.recv(length, socket.MSG_WAITALL), type=Notice)
            if not isinstance(notice, SampleTaken | WindowClosed):
                assert isinstance(notice, expected), notice
                return notice

    def stop(self) -> None:
        self._channel.sendall(frame(Stop()))
        self._process.wait(10)


def _module(slot: Path, model: bytes, raw: Any) -> Manifest:
    training = RNG.normal(size=(5000, 20)).astype(np.float32)
    scores = raw.run(["y"], {"x": training})[0]
    features = tuple(_numeric(f"f{i}", "x", training[:, i], i) for i in range(20))
    classes = (*np.bincount(scores.argmax(axis=1), minlength=3).tolist(), 0, 0)
    outputs = (
        Categorical("class", "y", ("a", "b", "c"), classes, take="argmax"),
        _numeric("confidence", "y", scores.max(axis=1), 0, take="max"),
    )
    answer = Tensor("y", "FP32", (1, 3), raw.run(["y"], {"x": ROW})[0].tobytes())
    golden = GoldenSet((GoldenCase((Tensor("x", "FP32", (1, 20), ROW.tobytes()),), (answer,)),))
    files = {
        "model.onnx": model,
        "golden": encode_golden(golden),
        "reference": encode_reference(ReferenceProfile(len(training), features, outputs)),
    }
    slot.mkdir()
    for path, data in files.items():
        (slot / path).write_bytes(data)
    return Manifest(
        "bench",
        1,
        "bench",
        Lineage("bench", 1),
        (TensorSpec("x", "FP32", (-1, 20)),),
        (TensorSpec("y", "FP32", (-1, 3)),),
        tuple(FileEntry(p, len(d), sha256_hex(d), (Chunk(sha256_hex(d), len(d)),)) for p, d in files.items()),
        Runtime(),
        health=Health(golden="golden"),
        reference="reference",
    )


def _numeric(name: str, tensor: str, column: Any, index: int, take: Any = "column") -> Numeric:
    edges = np.quantile(column.astype(float), np.linspace(0, 1, 21))
    counts = (*np.histogram(column, edges)[0].tolist(), 0, 0, 0)
    return Numeric(name, tensor, tuple(edges.tolist()), counts, float(column.mean()), float(column.std()), take, index)


if __name__ == "__main__":
    main()
