"""How a module that is built shall run: what the request says, and what is found among the files where it says nothing.

Pure; called by `building.model_module`.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from cloud_hub.building.contents import BACKEND_SUFFIXES, ENTRY_PATH, MODEL_SUFFIXES
from cloud_hub.building.request import BuildRequest
from cloud_hub.errors import Unprocessable
from cloud_hub.fpga.module import overlay_in
from modules.manifest import Runtime
from modules.runtime import Stage

DEFAULT_MODEL = Runtime().model


def runtime(request: BuildRequest, files: Collection[str], environment: str = "") -> Runtime:
    """Every path in it is one of `files`. `environment` is the folder of the script's libraries, or empty.

    Raises Unprocessable `model-missing`, `runtime-invalid` or `environment-unused`.
    """
    wish = request.runtime or Runtime()
    if wish.kind != "process" or wish.container is not None or wish.environment:
        raise _refused("expected neither kind nor container nor environment: the build finds them by what is uploaded")
    done = _chain(wish, request, files) if wish.stages else _single(wish, request, files)
    if environment and not done.scripted:
        text = "expected an entry script with an environment: nothing else imports libraries"
        raise Unprocessable("environment-unused", f"{text}; nothing was built")
    return msgspec.structs.replace(done, environment=environment)


def _single(wish: Runtime, request: BuildRequest, files: Collection[str]) -> Runtime:
    if request.entry or wish.entry:
        entry = ENTRY_PATH if request.entry else _among("entry", wish.entry, files)
        return msgspec.structs.replace(wish, backend="script", model=_beside_script(wish, files), entry=entry)
    if wish.backend == Runtime().backend and wish.model in ("", DEFAULT_MODEL):
        wish = msgspec.structs.replace(wish, backend=_found(files))
        if request.container is not None and request.container.serves == "http":
            return msgspec.structs.replace(wish, model="")  # a program of the image answers, with what it likes
    return msgspec.structs.replace(wish, model=_model(wish.backend, wish.model, files))


def _found(files: Collection[str]) -> str:
    """The backend where nobody has said one: nobody else has an overlay, and a TFLite model alone is meant."""
    if overlay_in(files):
        return "fpga"
    there = {backend for backend in ("onnx", "tflite") for path in files if path.endswith(BACKEND_SUFFIXES[backend])}
    return "tflite" if there == {"tflite"} else Runtime().backend


def _chain(wish: Runtime, request: BuildRequest, files: Collection[str]) -> Runtime:
    """With stages, the module's own backend, model and script mean nothing, so they must not be said."""
    if wish.backend != Runtime().backend or wish.model not in ("", DEFAULT_MODEL) or wish.entry:
        raise _refused("expected backend, model and entry in the stages, got them beside stages")
    stages = tuple(_stage(stage, request, files) for stage in wish.stages)
    if request.entry and not any(stage.entry == ENTRY_PATH for stage in stages):
        raise _refused('expected a stage with backend = "script" for the entry script, got none')
    return msgspec.structs.replace(wish, model="", stages=stages)


def _stage(stage: Stage, request: BuildRequest, files: Collection[str]) -> Stage:
    if stage.backend == "script" or stage.entry:
        entry = stage.entry or (ENTRY_PATH if request.entry else "")
        if not entry:
            raise _refused(f"stage {stage.name}: expected an entry script (--entry), got none")
        return msgspec.structs.replace(stage, entry=_among(f"stage {stage.name}", entry, files))
    if stage.model:
        _among(f"stage {stage.name}", stage.model, files)
        return stage
    return msgspec.structs.replace(stage, model=_model(stage.backend, "", files))


def _model(backend: str, named: str, files: Collection[str]) -> str:
    """The path that is named, or the only file of the backend's kind."""
    if named in files:
        return named
    if named not in ("", DEFAULT_MODEL):
        return _among("model", named, files)
    if backend == "script":
        raise Unprocessable(
            "model-missing", "expected an entry script (--entry) for the backend script; nothing was built"
        )
    suffixes = BACKEND_SUFFIXES.get(backend, MODEL_SUFFIXES)
    found = [path for path in files if path.lower().endswith(suffixes)]
    if len(found) != 1:
        kind = " or ".join(suffixes)
        raise Unprocessable("model-missing", f"expected exactly one {kind} file in the model, got {sorted(files)}")
    return found[0]


def _beside_script(wish: Runtime, files: Collection[str]) -> str:
    """A script opens its models itself; the first one is named for those who read the manifest."""
    if wish.model not in ("", DEFAULT_MODEL):
        return _among("model", wish.model, files)
    return next((path for path in sorted(files) if path.endswith(MODEL_SUFFIXES)), "")


def _among(what: str, path: str, files: Collection[str]) -> str:
    if path not in files:
        raise Unprocessable("model-missing", f"{what}: expected one of {sorted(files)}, got {path[:200]}")
    return path


def _refused(text: str) -> Unprocessable:
    return Unprocessable("runtime-invalid", f"runtime: {text}; nothing was built")
