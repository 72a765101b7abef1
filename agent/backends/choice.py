"""The backend that a module asks for: one of ours by name, or a third party's by entry point. Called by the session.

A chain of several stages, and the steps before and after, are backends around backends.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from agent.backends import Backend, BackendError, Prepares
from modules.chain import check_runtime
from modules.manifest import Manifest
from modules.runtime import Stage

ENTRY_POINTS = "mooring.backends"
# Where each of ours lives, as text: its libraries are imported only when a module asks for it.
_OURS = {
    "fpga": "agent.backends.fpga:FpgaBackend",
    "onnx": "agent.backends.onnx:OnnxBackend",
    "script": "agent.backends.script:ScriptBackend",
    "tflite": "agent.backends.tflite:TfliteBackend",
}


def open_backend(manifest: Manifest) -> Backend:
    """What runs the whole module, to be loaded with `whole`. Imports what that needs. Raises BackendError; StepError
    and SourceError when steps, stages and sources do not fit each other.
    """
    runtime, memory_mib = manifest.runtime, manifest.resources.memory_mib
    if not runtime.is_plain:
        check_runtime(runtime, manifest.stages, manifest.inputs, manifest.outputs, memory_mib)
    if not _is_composed(manifest):
        return open_stage(manifest.stages[0])
    # Both are small, but a module that has neither need not load them.
    from agent.backends.chain import ChainBackend
    from agent.backends.steps import StepsBackend

    chain = ChainBackend([(stage, open_stage(stage)) for stage in manifest.stages])
    return StepsBackend(chain, manifest.stages, runtime.before, runtime.after, memory_mib)


def whole(manifest: Manifest) -> Stage:
    """What to load the module's backend with: the module's own tensors, where it has stages or steps."""
    if not _is_composed(manifest):
        return manifest.stages[0]
    return Stage(manifest.name, manifest.inputs, manifest.outputs, "mooring.chain")


def _is_composed(manifest: Manifest) -> bool:
    runtime = manifest.runtime
    return bool(runtime.stages or runtime.before or runtime.after)


def open_stage(stage: Stage) -> Backend:
    """What runs one stage. A module with an entry script is run by the script. Raises BackendError("load-failed")."""
    name = "script" if stage.entry else stage.backend
    where = _OURS.get(name)
    backend: Backend
    if where is None:
        backend = _third_party(stage, name)
    else:
        file, _, attribute = where.partition(":")
        backend = getattr(import_module(file), attribute)()
    if isinstance(backend, Prepares):
        backend.prepare(stage)
    return backend


def _third_party(stage: Stage, name: str) -> Backend:
    """Of the one installed distribution that has a backend of this name."""
    found = list(entry_points(group=ENTRY_POINTS, name=name))
    if len(found) != 1:
        known = ", ".join(sorted({*_OURS, *(point.name for point in entry_points(group=ENTRY_POINTS))}))
        got = name if not found else f"{len(found)} distributions with {name}"
        raise BackendError("load-failed", f"stage {stage.name}: expected a backend among {known}, got {got}")
    try:
        backend: Backend = found[0].load()()
    except Exception as error:  # code of a third party, which may raise anything
        text = f"the backend {name} ({found[0].value}) does not start: {type(error).__name__}: {error}"
        raise BackendError("load-failed", f"stage {stage.name}: {text}"[:1000]) from error
    return backend
