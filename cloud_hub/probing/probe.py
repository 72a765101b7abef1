"""Looks at an ONNX model, or at what a publisher declares, in a child process. Called by `building.known_answers`."""

from __future__ import annotations

import msgspec

from cloud_hub.probing.process import ask
from cloud_hub.probing.request import ProbeRequest, ProbeResult

PROGRAM = "cloud_hub.probing.child"


async def probe(request: ProbeRequest) -> ProbeResult:
    """Raises Unprocessable (`model-refused`) with the child's words when the model or its data do not fit."""
    return msgspec.json.decode(await ask(PROGRAM, msgspec.json.encode(request)), type=ProbeResult)
