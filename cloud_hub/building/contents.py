"""Which files a module is built from, under which paths: the model version's own, the script, and what is refused.

Called by `building.model_module`. What devices take is `agent.formats`'s; a test holds that it is no less than this.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from cloud_hub.building.bench import Bench
from cloud_hub.building.request import BuildRequest
from cloud_hub.errors import Unprocessable
from cloud_hub.registry import ModelVersion

ENTRY_PATH = "entry.py"
GOLDEN_PATH = "golden.msgpack"
REFERENCE_PATH = "reference.json"
_RESERVED = (GOLDEN_PATH, REFERENCE_PATH, ENTRY_PATH)
# Formats that carry weights and tables, never code that runs on loading.
ALLOWED_SUFFIXES = frozenset({".onnx", ".data", ".bin", ".safetensors", ".npy", ".json", ".txt", ".csv", ".md"})


async def gather(request: BuildRequest, model: ModelVersion, bench: Bench) -> dict[str, Path]:
    """Copies of the files under their own names (external data is found by name), by module path.

    Raises Unprocessable `format-refused` or `path-reserved`, NotFound for an upload that is not there.
    """
    for file in model.files:
        _check(file.path)
    sources = {file.path: await bench.fetch(file.sha256, f"model/{file.path}") for file in model.files}
    if request.entry:
        sources[ENTRY_PATH] = await bench.fetch(request.entry, ENTRY_PATH)
    return sources


def _check(path: str) -> None:
    if PurePosixPath(path).suffix.lower() not in ALLOWED_SUFFIXES:
        allowed = ", ".join(sorted(ALLOWED_SUFFIXES))
        raise Unprocessable("format-refused", f"{path}: expected one of {allowed} in a module")
    if path in _RESERVED:
        raise Unprocessable("path-reserved", f"{path}: this name is kept for what the build writes")
