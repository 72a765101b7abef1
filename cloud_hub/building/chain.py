"""A module with stages or steps, or with a backend that the hub's own probe does not know: its tensors, checked.

What the request leaves open is read off the files: the tensors of a stage, the module's inputs (what no stage before
gives) and outputs (what the steps after the stages write, or what the last stage gives). Called by `model_module`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec

from cloud_hub.building.device_code import described
from cloud_hub.building.request import BuildRequest
from cloud_hub.errors import Unprocessable
from modules.chain import after_stages, check_runtime, largest_bytes, wiring
from modules.errors import ModuleError
from modules.manifest import Runtime
from modules.runtime import Stage
from modules.steps import flow, step_files
from modules.tensors import TensorSpec

Tensors = tuple[TensorSpec, ...]
ONLY_STAGE = "model"


class Fitted(msgspec.Struct, frozen=True):
    """The runtime with the tensors of every stage, and the module's own."""

    runtime: Runtime
    inputs: Tensors
    outputs: Tensors


async def fitted(request: BuildRequest, runtime: Runtime, files: Collection[str], slot: Path) -> Fitted:
    """Raises Unprocessable `chain-refused` with what does not fit, `model-refused`."""
    for path in step_files((*runtime.before, *runtime.after)):
        if path not in files:
            raise _refused(f"a step reads {path}, which is not among the files")
    stages = await described(_stages(runtime), slot)
    try:
        return _fit(request, runtime, stages)
    except ModuleError as error:
        raise _refused(str(error)) from error


def _fit(request: BuildRequest, runtime: Runtime, stages: tuple[Stage, ...]) -> Fitted:
    memory_mib = request.resources.memory_mib if request.resources else 0
    limit = largest_bytes(memory_mib)
    inputs = request.inputs or _inputs(runtime, stages)
    before = flow(runtime.before, {spec.name: spec for spec in inputs}, limit)
    through = after_stages(stages, before)
    after = flow(runtime.after, through, limit)
    outputs = request.outputs or tuple(
        spec
        for name, spec in after.items()
        if "." not in name and (through.get(name) is not spec if runtime.after else spec in stages[-1].outputs)
    )
    inputs, outputs = (_labelled(specs, request) for specs in (inputs, outputs))
    if runtime.stages or runtime.before or runtime.after:
        runtime = msgspec.structs.replace(
            runtime, stages=stages, backend=Runtime().backend, model="", providers=(), fallback=False
        )
    check_runtime(runtime, stages, inputs, outputs, memory_mib)
    return Fitted(runtime, inputs, outputs)


def _stages(runtime: Runtime) -> tuple[Stage, ...]:
    """The runtime's, or one with what stands beside them: steps change tensors, so the model's are its own."""
    if runtime.stages:
        return runtime.stages
    return (Stage(ONLY_STAGE, (), (), runtime.backend, runtime.model, "", runtime.providers, runtime.fallback),)


def _inputs(runtime: Runtime, stages: tuple[Stage, ...]) -> Tensors:
    """What the stages take and no stage gives: what a later one gives is a mistake in their order, and is told as one.
    With steps before, only the request can say.
    """
    if runtime.before:
        raise _refused("expected the module's inputs (--input) with steps before the model: the steps change them")
    given = {spec.name for stage in stages for spec in stage.outputs}
    given |= {f"{stage.name}.{spec.name}" for stage in stages for spec in stage.outputs}
    found: dict[str, TensorSpec] = {}
    for stage in stages:
        specs = {spec.name: spec for spec in stage.inputs}
        for name, source in wiring(stage):
            if source not in given and source not in found:
                found[source] = msgspec.structs.replace(specs[name], name=source)
    return tuple(found.values())


def _labelled(specs: Tensors, request: BuildRequest) -> Tensors:
    return tuple(
        msgspec.structs.replace(spec, labels=tuple(request.labels.get(spec.name, spec.labels))) for spec in specs
    )


def _refused(text: str) -> Unprocessable:
    return Unprocessable("chain-refused", f"runtime: {text}; nothing was built")
