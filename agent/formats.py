"""Which files a module may bring: an allow-list by name, because a list of what is dangerous is never complete.

Formats that run code when they are opened (pickles, PyTorch, Keras, joblib), plans built for another machine, archives
and native libraries are not on it. Asked before anything is downloaded (`agent.update.steps`) and again by the worker
before it loads (`agent.sandbox.session`); what is in a model file is `agent.backends.onnx_files`'s to check.
Source: CVE-2025-32434, CVE-2026-24747 (PyTorch); CVE-2025-10155 to 10157 (scanners by-passed).
"""

from __future__ import annotations

from pathlib import PurePosixPath

from agent.errors import AgentError
from modules.environment import is_inside
from modules.manifest import Manifest
from modules.overlay import EMULATION_NAME
from modules.runtime import Runtime, Stage

MODELS = {"fpga": (".json",), "onnx": (".onnx",), "script": (".py",), "tflite": (".tflite",)}
# Data that nothing executes: tables, labels, configuration, arrays without objects, weights, pictures.
_DATA = frozenset({
    "", ".bin", ".csv", ".data", ".jpeg", ".jpg", ".json", ".jsonl", ".lock", ".md", ".model", ".msgpack", ".npy",
    ".npz", ".onnx", ".onnx_data", ".parquet", ".pb", ".pbtxt", ".png", ".raw", ".safetensors", ".spm", ".tflite",
    ".toml", ".tsv", ".txt", ".vocab", ".weight", ".weights", ".xml", ".yaml", ".yml",
})  # fmt: skip
# Circuits and what describes them: only for modules of the FPGA, which the agent programs with what it has verified.
_CIRCUITS = frozenset({".bit", ".dtbo", ".hwh"})


class FormatError(AgentError):
    """A module brings a file of a format that is not allowed, or names one as what it is not."""

    key = "format-refused"


def check_formats(manifest: Manifest) -> None:
    """Raises FormatError, with the file. Python files are allowed only to modules that run a script.

    A release of the agent is code by its nature: wheels and nothing else. Who may sign one is `agent.trust_checks`'s.
    """
    runtime = manifest.runtime
    if runtime.kind == "agent":
        return _check_wheels(manifest)
    if runtime.kind == "container":
        return  # whose files are its image's layers: nothing of them is opened outside the container
    for stage in manifest.stages:
        _check_stage(stage, runtime)
    if runtime.environment and not runtime.scripted:
        raise FormatError(f"{manifest.name}: expected libraries only beside a script; the module is refused")
    fpga = any(stage.backend == "fpga" for stage in manifest.stages)
    for file in manifest.files:
        if is_inside(file.path, runtime.environment):
            continue  # a script runs what it likes; libraries are native code, too, and confined with it
        if fpga and _of_overlay(file.path):
            continue
        if _suffix(file.path) not in _DATA and not (runtime.scripted and _suffix(file.path) == ".py"):
            raise FormatError(
                f"{file.path}: expected a format that runs no code when it is opened, got {_suffix(file.path)}; "
                "the module is refused"
            )


def _check_stage(stage: Stage, runtime: Runtime) -> None:
    model, backend = _suffix(stage.model), stage.backend
    if not runtime.stages:
        backend = runtime.backend  # a script around a model names the model's own
    expected = MODELS.get(backend, ())  # of a third party's backend, whatever is data
    if stage.model and expected and model not in expected and not (stage.entry and model in _DATA):
        text = f"expected a model as {' or '.join(expected)} for {backend}"
        raise FormatError(f"{stage.model}: {text}; it is refused")
    if stage.entry and _suffix(stage.entry) != ".py":
        raise FormatError(f"{stage.entry}: expected an entry script as .py; it is refused")


def _of_overlay(path: str) -> bool:
    """An emulation is native code: like a script, it is run in the confined worker and nowhere else."""
    return _suffix(path) in _CIRCUITS or EMULATION_NAME.fullmatch(PurePosixPath(path).name) is not None


def _check_wheels(manifest: Manifest) -> None:
    for file in manifest.files:
        if _suffix(file.path) != ".whl":
            raise FormatError(f"{file.path}: expected only wheels in a release of the agent; it is refused")
    if manifest.runtime.entry or manifest.runtime.model:
        raise FormatError(f"{manifest.name}: expected no model and no script in a release of the agent; it is refused")


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
