"""Asks the device's own code, in a process of its own, what a model takes and what a module answers.

The hub imports nothing of the agent's; it starts `agent.backends.answers`, with a limit of memory and a deadline, and
without its secrets. So known answers of chains and steps are those that a device computes. Called by `model_module`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from cloud_hub.probing.process import MEMORY_BYTES, ask
from modules.manifest import Manifest, encode_manifest
from modules.runtime import Stage

PROGRAM = "agent.backends.answers"


async def described(stages: tuple[Stage, ...], slot: Path) -> tuple[Stage, ...]:
    """The stages with the tensors of their files, where they name none. Raises Unprocessable `model-refused`."""
    if all(stage.inputs or stage.outputs for stage in stages):
        return stages
    out = await _ask({"slot": str(slot), "stages": stages})
    return msgspec.json.decode(out, type=tuple[Stage, ...])


async def answered(manifest: Manifest, slot: Path, feeds: Path, to: Path) -> None:
    """Writes the answers to the arrays of `feeds`, and these, to the file `to` (.npz). Raises Unprocessable."""
    body = encode_manifest(manifest)
    question = {"slot": str(slot), "manifest": body, "feeds": str(feeds), "to": str(to)}
    await _ask(question)


async def _ask(question: Mapping[str, object]) -> bytes:
    return await ask(PROGRAM, msgspec.json.encode({**question, "memory_bytes": MEMORY_BYTES}))
