"""Closed-loop load from a program in C (closed.c), compiled when it is first needed: gcc must be there."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import msgspec

_SOURCE = Path(__file__).with_name("closed.c")
_SLACK_S = 60.0


class Answers(msgspec.Struct, frozen=True):
    """What came back. Latencies in microseconds; `refused` counts answers that are not 200."""

    answers: int
    per_s: float
    p50_us: float
    p99_us: float
    refused: int


def closed(address: str, connections: int, seconds: float, request: Path) -> Answers:
    """`address` is a Unix socket's path or HOST:PORT. Raises RuntimeError when the server does not hold out."""
    command = [_program(), address, str(connections), str(seconds), str(request)]
    run = subprocess.run(command, capture_output=True, timeout=seconds + _SLACK_S, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr.decode().strip())
    return msgspec.json.decode(run.stdout, type=Answers)


@functools.cache
def _program() -> str:
    compiler = shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("gcc is needed for the load; scripts/setup installs it")
    out = Path(tempfile.mkdtemp(prefix="mooring-load-")) / "closed"
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", str(out), str(_SOURCE)], check=True)
    return str(out)
