"""Asks the device's own code, in a process of its own, what a model takes and what a module answers.

The hub imports nothing of the agent's; it starts `agent.backends.answers`, with a limit of memory and a deadline, and
without its secrets. So known answers of chains and steps are those that a device computes. Called by `model_module`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from cloud_hub.errors import Unprocessable
from modules.manifest import Manifest, encode_manifest
from modules.runtime import Stage

DEADLINE_S = 300.0
MEMORY_BYTES = 8 * 1024**3
MAX_FAILURE_TEXT = 2000
PROGRAM = "agent.backends.answers"


async def described(stages: tuple[Stage, ...], slot: Path) -> tuple[Stage, ...]:
    """The stages with the tensors of their files, where they name none. Raises Unprocessable `model-refused`."""
    if all(stage.inputs or stage.outputs for stage in stages):
        return stages
    out = await _ask({"slot": str(slot), "memory_bytes": MEMORY_BYTES, "stages": stages})
    return msgspec.json.decode(out, type=tuple[Stage, ...])


async def answered(manifest: Manifest, slot: Path, feeds: Path, to: Path) -> None:
    """Writes the answers to the arrays of `feeds`, and these, to the file `to` (.npz). Raises Unprocessable."""
    body = encode_manifest(manifest)
    question = {"slot": str(slot), "memory_bytes": MEMORY_BYTES, "manifest": body, "feeds": str(feeds), "to": str(to)}
    await _ask(question)


async def _ask(question: dict[str, object]) -> bytes:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", PROGRAM, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=_environment(),
    )  # fmt: skip
    try:
        out, said = await asyncio.wait_for(child.communicate(msgspec.json.encode(question)), DEADLINE_S)
    except TimeoutError as error:
        raise Unprocessable("model-refused", f"the model was not ready after {DEADLINE_S:.0f} s") from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        text = said.decode(errors="replace").strip()[-MAX_FAILURE_TEXT:]
        raise Unprocessable("model-refused", text or f"the model's process ended with status {child.returncode}")
    return out


def _environment() -> dict[str, str]:
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    return keep | {"ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
