"""Latency and failures of an ONNX module's endpoint while it is updated: 1,000 requests a second, open loop.

A real agent process behind a real Mosquitto; the load is a process of its own (`_load.py`). Each update (from the
doorbell, before fetching, to the report that it is committed) is held against as long a time just before it. p99 is
that of all requests due in that time. The hub shares the machine, which on a device it does not.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import numpy as np

from agent.config import AgentConfig, FetchLimits, ServingSettings, StatePaths, UpdateLimits
from benchmarks._load import records
from benchmarks._servers import http
from benchmarks._slots import session
from benchmarks.common import median, report
from firmware_profiles.catalog import built_in
from modules.bundle import Chunk, FileEntry, sha256_hex
from modules.manifest import Health, Lineage, Manifest, Resources, Runtime, SamplingPolicy, encode_manifest
from modules.tensors import GoldenCase, GoldenSet, Tensor, TensorSpec, encode_golden
from support.agents import AgentProcess, enrolled
from support.built import Built
from support.edge import HubSide
from support.hub import FakeHub
from support.mosquitto import Mosquitto
from support.repository import World
from support.waiting import until

RATE, KEPT = 1000, 16
UPDATES = int(os.environ.get("UPDATES", "5"))
PROBATION_S = 3.0
WIDE = 1024  # a model of 4 MiB
CHUNK = 64 * 1024
NAME = "bench"
CALM_S = 1.5  # after what came before
DEADLINE_S = 120.0


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        paths = StatePaths(Path(folder) / "state")
        for path in (paths.root, paths.identity, paths.roots, paths.metadata):
            path.mkdir(parents=True)
        broker = Mosquitto(_made(Path(folder) / "broker"))
        await broker.start()
        world = World()
        world.write_roots(paths.roots)
        config = AgentConfig("cam-17", "https://localhost:1", "localhost", 1, built_in()["generic-x86_64"],
                             fetch=FetchLimits(disk_margin_bytes=0))  # fmt: skip
        config = enrolled(config, paths, broker)
        config = msgspec.structs.replace(config, serving=ServingSettings(), update=UpdateLimits(latency_factor=0.0))
        paths.config.write_text(config.to_toml())
        agent = AgentProcess(paths)
        try:
            async with FakeHub(broker, world.files) as hub:
                await _measure(HubSide(world, hub), agent, Path(folder))
        finally:
            print(agent.tail() if os.environ.get("TAIL") else "", file=sys.stderr)
            await agent.stop()
            await broker.kill()


async def _measure(hub: HubSide, agent: AgentProcess, folder: Path) -> None:
    modules = [_module(version) for version in range(1, UPDATES + 2)]
    await agent.start()
    await _update(hub, agent, modules[0])
    address = await agent.serving(NAME)
    load = _start(folder, address, agent.paths.endpoints / f"{NAME}.sock")
    spans: list[tuple[float, float, float]] = []
    moments: list[tuple[float, str]] = []
    noting = asyncio.create_task(_note(agent.log, moments))
    length_s = 8.0  # a guess for the first
    for module in modules[1:]:
        await asyncio.sleep(CALM_S + length_s)
        started = time.monotonic()
        await _update(hub, agent, module)
        length_s = time.monotonic() - started
        spans.append((started - length_s, started, started + length_s))
    noting.cancel()
    reasons = json.loads(load.communicate()[0])
    status = agent.status()
    assert status is not None
    print(f"worker: {status.report.modules[0].execution}, {status.report.modules[0].confinement}")
    _tell(list(records(folder / "load.bin")), spans, reasons, moments)


def _tell(
    seen: list[tuple[float, float]], spans: list[tuple[float, float, float]], reasons: dict[str, int],
    moments: list[tuple[float, str]],
) -> None:  # fmt: skip
    ratios, befores, durings, maxima = [], [], [], []
    for begin, middle, end in spans:
        before = _latencies(seen, begin, middle)
        during = _latencies(seen, middle, end)
        ratios.append(_p(during, 99) / _p(before, 99))
        befores.append(_p(before, 99))
        durings.append(_p(during, 99))
        maxima.append(max(during))
        shown = {"p50": (_p(before, 50), _p(during, 50)), "p99": (_p(before, 99), _p(during, 99)),
                 "longest": (max(before), max(during))}  # fmt: skip
        words = ", ".join(f"{name} {was:.2f} -> {now:.2f} ms" for name, (was, now) in shown.items())
        print(f"update of {end - middle:.2f} s: {words}")
    for name in ("fetching", "verifying", "staging", "trying", "activating", "probation"):
        starts = [(at, moments[n + 1][0]) for n, (at, state) in enumerate(moments[:-1]) if state == name]
        values = [value for begin, end in starts for value in _latencies(seen, begin, end)]
        if values:
            length = median([end - begin for begin, end in starts])
            print(f"  {name:10} {length:5.2f} s: p50 {_p(values, 50):6.2f} ms, p99 {_p(values, 99):6.2f} ms")
    failed = sum(latency < 0 for _, latency in seen)
    print(f"{len(seen)} requests, {failed} failed {reasons or ''}")
    report(
        "handover",
        {
            "failed": failed,
            "requests": len(seen),
            "p99_during_over_before": median(ratios),
            "p99_before_ms": median(befores),
            "p99_during_ms": median(durings),
            "longest_ms": max(maxima),
            "update_s": median([end - middle for _, middle, end in spans]),
        },
    )


def _latencies(seen: list[tuple[float, float]], begin: float, end: float) -> list[float]:
    """In milliseconds."""
    return [latency * 1000 for due, latency in seen if begin <= due < end and latency >= 0]


def _p(values: list[float], share: float) -> float:
    return float(np.percentile(values, share))


async def _update(hub: HubSide, agent: AgentProcess, module: Built) -> None:
    version = await hub.deploy(module)

    def ended() -> bool:
        status = agent.status()
        return status is not None and status.report.last.director_version >= version

    await until(ended, f"the update to version {version} to end", DEADLINE_S)
    status = agent.status()
    assert status is not None
    assert status.report.last.state == "committed", status.report.last


async def _note(log: Path, moments: list[tuple[float, str]]) -> None:
    """When the agent entered each state, by its log as it is written."""
    at = 0
    while True:
        with log.open() as file:
            file.seek(at)
            found = [re.search('"update state" state=([a-z]+)', line) for line in file]
            moments.extend((time.monotonic(), match[1]) for match in found if match)
            at = file.tell()
        await asyncio.sleep(0.02)


def _start(folder: Path, address: str, path: Path, rate: int = RATE) -> subprocess.Popen[bytes]:
    host, _, port = address.removeprefix("http://").partition(":")
    request = _request()
    spec: dict[str, Any] = {"rate": rate, "kept": KEPT, "host": host, "port": int(port), "path": str(path),
                            "request": request.hex(), "out": str(folder / "load.bin")}  # fmt: skip
    (folder / "load.json").write_text(json.dumps(spec))
    command = [sys.executable, str(Path(__file__).with_name("_load.py")), str(folder / "load.json")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _request() -> bytes:
    """One row, as bytes both ways."""
    row = np.random.default_rng(0).normal(size=(1, 20)).astype(np.float32)
    parameters = {"binary_data_size": row.nbytes}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 20], "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return http(f"/v2/models/{NAME}/infer", head + row.tobytes(), len(head))


def _module(version: int) -> Built:
    random = np.random.default_rng(version)
    model = _model(random)
    row = random.normal(size=(1, 20)).astype(np.float32)
    answer = session(model).run(["y"], {"x": row})[0]
    golden = GoldenSet((GoldenCase((Tensor("x", "FP32", (1, 20), row.tobytes()),),
                                   (Tensor("y", "FP32", (1, 3), answer.tobytes()),)),))  # fmt: skip
    files = {"model.onnx": model, "golden": encode_golden(golden)}
    manifest = Manifest(
        NAME, version, "generic-x86_64", Lineage(NAME, version), (TensorSpec("x", "FP32", (-1, 20)),),
        (TensorSpec("y", "FP32", (-1, 3)),), tuple(_entry(path, data) for path, data in files.items()), Runtime(),
        resources=Resources(threads=1), health=Health(golden="golden", probation_s=PROBATION_S),
        sampling=SamplingPolicy(rate=0.01),
    )  # fmt: skip
    return Built(manifest, encode_manifest(manifest), files)


def _entry(path: str, data: bytes) -> FileEntry:
    parts = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    return FileEntry(path, len(data), sha256_hex(data), tuple(Chunk(sha256_hex(part), len(part)) for part in parts))


def _model(random: np.random.Generator) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    def weights(name: str, *shape: int) -> Any:
        return numpy_helper.from_array((random.normal(size=shape) / 32).astype(np.float32), name)

    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("Gemm", ["r1", "w2", "b2"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["r2"]),
        helper.make_node("Gemm", ["r2", "w3", "b3"], ["l"]),
        helper.make_node("Softmax", ["l"], ["y"]),
    ]
    shapes = {"w1": (20, WIDE), "b1": (WIDE,), "w2": (WIDE, WIDE), "b2": (WIDE,), "w3": (WIDE, 3), "b3": (3,)}
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 20])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [weights(name, *shape) for name, shape in shapes.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    asyncio.run(main())
