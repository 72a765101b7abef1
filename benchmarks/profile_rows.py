"""Rows per second that the worker's windows count: 20 float features, at batch 1, 32 and 1024, on one core."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from agent.watching.profiler import Profiler
from benchmarks.common import median, report
from modules.manifest import Lineage, Manifest, Runtime
from modules.tensors import TensorSpec
from modules.windows import Numeric, ReferenceProfile

FEATURES = 20
BINS = 20
ROUNDS = 5
ROUND_S = 0.4


def main() -> None:
    rng = np.random.default_rng(0)
    metrics = {}
    for batch in (1, 32, 1024):
        rates = [_rate(_profiler(rng), _batches(rng, batch), batch) for _ in range(ROUNDS)]
        metrics[f"rows_per_s_batch{batch}"] = median(rates)
        print(f"batch {batch:5}: {median(rates):12,.0f} rows/s (from {min(rates):,.0f} to {max(rates):,.0f})")
    report("profile_rows", metrics)


def _profiler(rng: np.random.Generator) -> Profiler:
    training = rng.normal(size=(10_000, FEATURES))
    features = tuple(_feature(i, training[:, i]) for i in range(FEATURES))
    manifest = Manifest(
        "bench", 1, "bench", Lineage("bench", 1), (TensorSpec("x", "FP32", (-1, FEATURES)),), (), (), Runtime(model="")
    )
    return Profiler(ReferenceProfile(len(training), features), manifest)


def _feature(index: int, column: np.ndarray) -> Numeric:
    edges = np.quantile(column, np.linspace(0, 1, BINS + 1))
    counts = (*np.histogram(column, edges)[0].tolist(), 0, 0, 0)
    return Numeric(f"f{index}", "x", tuple(edges.tolist()), counts, 0.0, 1.0, index=index)


def _batches(rng: np.random.Generator, batch: int) -> list[dict[str, np.ndarray]]:
    """As they come from requests: every batch an array of its own."""
    count = max(4, 4096 // batch)
    return [{"x": rng.normal(size=(batch, FEATURES)).astype(np.float32)} for _ in range(count)]


def _rate(profiler: Profiler, batches: list[dict[str, np.ndarray]], batch: int) -> float:
    rows = 0
    nothing: dict[str, np.ndarray] = {}
    started = time.perf_counter()
    while (took := time.perf_counter() - started) < ROUND_S:
        for inputs in batches:
            profiler.add(batch, inputs, nothing)
        rows += batch * len(batches)
    profiler.flush()
    cells = profiler.close().cells
    assert sum(cells) == rows * FEATURES, "a row was lost"
    return rows / took


if __name__ == "__main__":
    main()
