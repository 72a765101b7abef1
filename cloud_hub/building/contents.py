"""Which files a module is built from, under which paths: the model version's own, the script, and what is refused.

Called by `building.model_module`. What devices take is `agent.formats`'s; a test holds that it is no less than this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from cloud_hub.building.bench import Bench
from cloud_hub.building.request import BuildRequest
from cloud_hub.errors import Unprocessable
from cloud_hub.fpga.module import is_of_overlay, overlay_in
from cloud_hub.registry import ModelVersion
from modules.bundle import check_path
from modules.entry import MAX_SOURCE, THREAD_SAFE, check_source, says_thread_safe
from modules.environment import FOLDER, LOCK_PATH, is_inside
from modules.overlay import OVERLAY_PATH
from modules.runtime import Runtime

ENTRY_PATH = "entry.py"
GOLDEN_PATH = "golden.msgpack"
REFERENCE_PATH = "reference.json"
_RESERVED = (GOLDEN_PATH, REFERENCE_PATH, ENTRY_PATH, LOCK_PATH)
# The models that each backend loads; of a third party's backend, any of them.
BACKEND_SUFFIXES: dict[str, tuple[str, ...]] = {"fpga": (OVERLAY_PATH,), "onnx": (".onnx",), "tflite": (".tflite",)}
MODEL_SUFFIXES = tuple(sorted({suffix for suffixes in BACKEND_SUFFIXES.values() for suffix in suffixes}))
# Formats that carry weights, tables and pictures, never code that runs on loading.
DATA_SUFFIXES = frozenset({
    ".bin", ".csv", ".data", ".jpeg", ".jpg", ".json", ".jsonl", ".md", ".model", ".npy", ".npz", ".onnx_data", ".png",
    ".safetensors", ".spm", ".toml", ".tsv", ".txt", ".vocab", ".yaml", ".yml",
})  # fmt: skip


async def gather(request: BuildRequest, model: ModelVersion, bench: Bench) -> dict[str, Path]:
    """Copies of the files under their own names (external data is found by name), by module path.

    Raises Unprocessable `format-refused` or `path-reserved`, NotFound for an upload that is not there.
    """
    scripted = bool(request.entry) or (request.runtime is not None and request.runtime.scripted)
    circuit = bool(overlay_in([file.path for file in model.files]))
    sources: dict[str, Path] = {}
    for file in model.files:
        path = f"{request.folder}/{file.path}" if request.folder else file.path
        if not (circuit and is_of_overlay(path)):
            _check(path, scripted)
        sources[path] = await bench.fetch(file.sha256, f"model/{path}")
    if request.entry:
        sources[ENTRY_PATH] = await bench.fetch(request.entry, ENTRY_PATH)
        await asyncio.to_thread(_check_script, sources[ENTRY_PATH])
    return sources


def _check(path: str, scripted: bool) -> None:
    check_path(path)
    allowed = {*DATA_SUFFIXES, *MODEL_SUFFIXES, *([".py"] if scripted else [])}
    if PurePosixPath(path).suffix.lower() not in allowed:
        raise Unprocessable("format-refused", f"{path}: expected one of {', '.join(sorted(allowed))} in a module")
    if path in _RESERVED or is_inside(path, FOLDER):
        raise Unprocessable("path-reserved", f"{path}: this name is kept for what the build writes")


def check_instances(runs: Runtime, sources: Mapping[str, Path]) -> None:
    """That a script which shall be called several times at once says that it may. Raises Unprocessable."""
    entries = {runs.entry, *(stage.entry for stage in runs.stages)} - {""}
    for entry in sorted(entries) if runs.instances > 1 else ():
        if not says_thread_safe(sources[entry].read_text(errors="replace"), entry):
            text = f"{entry}: expected {THREAD_SAFE} = True in a script that shall run {runs.instances} calls at once"
            raise Unprocessable("entry-invalid", f"{text} (runtime.instances); nothing was built")


def _check_script(path: Path) -> None:
    """Raises EntryError. Nothing is run."""
    try:
        if path.stat().st_size > MAX_SOURCE:
            raise Unprocessable(
                "entry-invalid", f"{ENTRY_PATH}: expected at most {MAX_SOURCE} bytes; nothing was built"
            )
        check_source(path.read_text(), ENTRY_PATH)
    except UnicodeDecodeError as error:
        raise Unprocessable("entry-invalid", f"{ENTRY_PATH}: expected Python in UTF-8, got {error.reason}") from error
