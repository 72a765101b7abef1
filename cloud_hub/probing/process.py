"""Asks a child process, with a deadline and without the hub's secrets: model files come from outside, so the hub itself
never opens one. Called by `probe` and by `building.device_code`.
"""

from __future__ import annotations

import asyncio
import os
import sys

from cloud_hub.errors import Unprocessable

DEADLINE_S = 300.0
MEMORY_BYTES = 8 * 1024**3  # which the child takes as its limit
MAX_FAILURE_TEXT = 2000


async def ask(program: str, question: bytes) -> bytes:
    """What the module `program` answers on standard output to the question on its standard input.

    Raises Unprocessable (`model-refused`) with the child's words.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=_environment(),
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(child.communicate(question), DEADLINE_S)
    except TimeoutError as error:
        raise Unprocessable("model-refused", f"the model was not ready after {DEADLINE_S:.0f} s") from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        text = err.decode(errors="replace").strip()[-MAX_FAILURE_TEXT:]
        raise Unprocessable("model-refused", text or f"the model's process ended with status {child.returncode}")
    return out


def _environment() -> dict[str, str]:
    """No secrets of the hub reach the child, and ONNX Runtime sends nothing home."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    return keep | {"ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
