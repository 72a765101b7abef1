"""Rows per second that the worker's windows count, on one core, beside whylogs and DataSketches' KLL; bytes per window.

20 float features in 10 bins each, as the hub builds a reference by default, with joint features and stillness. Rows
come as they do from requests: an array per batch. `wire_bytes_per_window` is a whole message to the hub with one window
of 300 rows in it, and `wire_bytes_per_window_1000` with one of 1,000 rows. Peers run in an environment of their own
(benchmarks/peers/profiling), which is made when it is not there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as the worker has it

import msgspec
import numpy as np

from agent.endpoint.counters import Counters
from agent.watching.profiler import Profiler
from agent.watching.windows import Subject, Windows
from benchmarks._servers import environment
from benchmarks.common import median, report
from cloud_hub.reference import profile_training
from modules.manifest import Lineage, Manifest, Runtime, SamplingPolicy
from modules.messages import Batch, encode
from modules.tensors import TensorSpec
from modules.windows import ReferenceProfile, Window, encode_window

FEATURES = 20
ROUNDS = 5
ROUND_S = 0.4
PEERS = Path(__file__).resolve().parent / "peers/profiling"
PEER_S = 120.0
SPEC = TensorSpec("x", "FP32", (-1, FEATURES))
MANIFEST = Manifest("bench", 1, "generic-x86_64", Lineage("bench", 1), (SPEC,), (), (), Runtime(model=""))
Rng = np.random.Generator
Array = np.ndarray[Any, np.dtype[Any]]


def main() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the peers inherit it
    rng = np.random.default_rng(0)
    reference = profile_training({"x": rng.normal(size=(10_000, FEATURES)).astype(np.float32)}, {}, [SPEC], [])
    assert reference.joint is not None
    metrics: dict[str, float] = {"joint_dimensions": reference.joint.dimensions}
    python = _peer_python()
    for batch in (1, 32, 1024):
        rates = [_rate(Profiler(reference, MANIFEST), _batches(rng, batch), batch) for _ in range(ROUNDS)]
        metrics[f"rows_per_s_batch{batch}"] = median(rates)
        print(f"batch {batch:5}: {median(rates):12,.0f} rows/s (from {min(rates):,.0f} to {max(rates):,.0f})")
        for peer in ("whylogs", "kll"):
            metrics |= _peer(python, peer, batch)
    for rows, name in ((300, "wire_bytes_per_window"), (1000, "wire_bytes_per_window_1000")):
        metrics[name] = _wire_bytes(reference, rng, rows)
        print(f"a message with a window of {rows:5} rows: {metrics[name]:.0f} bytes")
    report("profile_rows", metrics)


def _batches(rng: Rng, batch: int) -> list[dict[str, Array]]:
    """As they come from requests: every batch an array of its own."""
    count = max(4, 4096 // batch)
    return [{"x": rng.normal(size=(batch, FEATURES)).astype(np.float32)} for _ in range(count)]


def _rate(profiler: Profiler, batches: list[dict[str, Array]], batch: int) -> float:
    rows = 0
    nothing: dict[str, Array] = {}
    started = time.perf_counter()
    while (took := time.perf_counter() - started) < ROUND_S:
        for inputs in batches:
            profiler.add(batch, inputs, nothing)
        rows += batch * len(batches)
    profiler.flush()
    cells = profiler.close().cells
    assert sum(cells) == rows * FEATURES, "a row was lost"
    return rows / took


def _wire_bytes(reference: ReferenceProfile, rng: Rng, rows: int) -> float:
    """In the middle of some."""
    return median(_message_bytes(reference, rng, rows) for _ in range(ROUNDS))


def _message_bytes(reference: ReferenceProfile, rng: Rng, rows: int) -> int:
    """As a worker makes it of requests of one row each, and as it lies in a message of its own."""
    sent: list[Window] = []
    counters = Counters()
    now = [1_790_000_123.456789]
    subject = Subject(MANIFEST, "5" * 64, reference, "c" * 64)

    def send(window: Window) -> bool:
        sent.append(window)
        return True

    windows = Windows(subject, SamplingPolicy(), counters, lambda: now[0], lambda: 5.0, send, _raised)
    for row in rng.normal(size=(rows, FEATURES)).astype(np.float32):
        windows.add(1, {"x": row[np.newaxis]}, {})
        counters.latency.add(int(rng.lognormal(6, 0.5)))
    now[0] += 300.0
    windows.look()
    return len(encode(_batch(encode_window(sent[0]))))


def _raised(error: Exception) -> None:
    raise error


def _batch(window: bytes) -> Batch:
    return Batch(epoch="0123456789abcdef", stream="window", previous=1233, entries=((1234, window),))


def _peer_python() -> Path | None:
    try:
        return environment(PEERS, "")
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no peers, their environment could not be made: {error}")
        return None


def _peer(python: Path | None, peer: str, batch: int) -> dict[str, float]:
    """Its metrics; none, and a line that says so, where it does not run here."""
    if python is None:
        return {}
    command = [str(python), "-W", "ignore", str(PEERS / "count.py"), peer, str(batch), str(FEATURES), str(ROUND_S)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=PEER_S, check=False)
    if run.returncode:
        print(f"{peer} does not run here: {run.stderr.strip().splitlines()[-1:]}")
        return {}
    found = msgspec.json.decode(run.stdout.splitlines()[-1], type=dict[str, float])
    print(f"    {peer:8}: {found['rows_per_s']:12,.0f} rows/s, {found['bytes']:,.0f} bytes of 1,000 rows")
    return {f"{peer}_rows_per_s_batch{batch}": found["rows_per_s"], f"{peer}_bytes_batch{batch}": found["bytes"]}


if __name__ == "__main__":
    main()
