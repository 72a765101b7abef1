"""What the benchmarks share: the machine in words, medians, and the last line that each of them prints."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return {
        "arch": platform.machine(),
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def report(name: str, metrics: Mapping[str, float]) -> None:
    """Prints the line that machines read: it must be the last."""
    rounded = {key: round(value, 3) for key, value in metrics.items()}
    print(json.dumps({"name": name, "metrics": rounded, "machine": machine()}), flush=True)


if __name__ == "__main__":
    report("machine", {})  # run with the others, it only says where they ran
