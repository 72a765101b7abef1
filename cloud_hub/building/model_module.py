"""The manifest of a module that runs a model or a script: files, runtime, known answers. Called by `packaging`.

Composes the files of this folder: contents, libraries, runtime, known answers.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from cloud_hub.building.bench import Bench
from cloud_hub.building.contents import GOLDEN_PATH, REFERENCE_PATH, check_instances, gather
from cloud_hub.building.environment import environment, target_of
from cloud_hub.building.known_answers import known_answers
from cloud_hub.building.manifests import lineage, requirements, understood
from cloud_hub.building.request import BuildRequest
from cloud_hub.building.resolve import Resolver, Target
from cloud_hub.building.runtime import runtime
from cloud_hub.configuration.schemas import schema_text
from cloud_hub.operations.progress import tell
from cloud_hub.probing.request import ProbeResult
from cloud_hub.registry import ModelVersion
from firmware_profiles.profile import DeviceProfile, Requirements
from modules.bundle import FileEntry
from modules.chain import check_runtime
from modules.environment import FOLDER
from modules.manifest import Health, Manifest, Resources, Runtime, SamplingPolicy
from modules.tensors import served


async def model_manifest(
    request: BuildRequest, model: ModelVersion, profile: DeviceProfile, bench: Bench, resolver: Resolver
) -> Manifest:
    """Raises Unprocessable with what does not fit, NotFound for an upload that is not there."""
    schema = await schema_text(request.config_schema) if request.config_schema is not None else msgspec.UNSET
    tell("reading the model")
    sources = await gather(request, model, bench)
    target = target_of(profile, request.python, resolver)
    tell("finding its libraries")
    libraries = await _libraries(request, target, resolver, bench)
    runs = runtime(request, sources, FOLDER if len(libraries) > 1 else "")
    check_instances(runs, sources)
    tell("asking the model for known answers")
    runs, result = await known_answers(request, runs, sources, bench)
    sources |= _written(result, bench.folder)
    tell("storing its files")
    own, carried = await bench.store(sources), await bench.store(libraries)
    manifest = Manifest(
        name=request.model,
        version=request.version,
        profile=profile.name,
        lineage=lineage(model),
        inputs=result.inputs,
        outputs=result.outputs,
        files=(*own, *carried),
        runtime=runs,
        requires=_required(
            request, runs, profile, target, own, carried, _is_plain(result) and request.config_schema is None
        ),
        resources=request.resources or Resources(),
        health=_health(request, runs, result.golden),
        sampling=request.sampling or SamplingPolicy(),
        reference=REFERENCE_PATH if result.reference else "",
        config_schema=schema,
    )
    if not runs.is_plain:  # as the worker will, before it loads
        check_runtime(runs, manifest.stages, manifest.inputs, manifest.outputs, manifest.resources.memory_mib)
    return manifest


async def _libraries(request: BuildRequest, target: Target, resolver: Resolver, bench: Bench) -> dict[str, Path]:
    if not request.environment:
        return {}
    text = await bench.fetch(request.environment, "libraries/asked")
    return await environment(text, target, resolver, text.parent)


def _required(
    request: BuildRequest,
    runs: Runtime,
    profile: DeviceProfile,
    target: Target,
    own: tuple[FileEntry, ...],
    carried: tuple[FileEntry, ...],
    plain: bool,
) -> Requirements:
    """Libraries take room on the disk, and fit one Python; they are not held in memory as a model is."""
    model, libraries = (sum(entry.size for entry in files) for files in (own, carried))
    needs = request.requires or requirements(profile, model, libraries)
    if runs.environment:
        needs = msgspec.structs.replace(needs, python=needs.python or (target.python,))
    return understood(needs, request.health, runs, request.resources, request.sampling, plain=plain)


def _is_plain(result: ProbeResult) -> bool:
    """Whether agents of before version 0.2 understand the reference, and what is answered."""
    return result.plain and len(served(result.outputs)) == len(result.outputs)


def _health(request: BuildRequest, runs: Runtime, golden: bool) -> Health:
    """Board and emulation of a circuit must agree to the last bit, unless other tolerances than the usual are said."""
    health, usual = request.health or Health(), Health()
    if runs.backend == "fpga" and not runs.stages and (health.rtol, health.atol) == (usual.rtol, usual.atol):
        health = msgspec.structs.replace(health, rtol=0.0, atol=0.0)
    return msgspec.structs.replace(health, golden=GOLDEN_PATH if golden else "")


def _written(result: ProbeResult, folder: Path) -> dict[str, Path]:
    files = {GOLDEN_PATH: result.golden, REFERENCE_PATH: result.reference}
    return {path: folder / path for path, there in files.items() if there}
