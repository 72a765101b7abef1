"""The manifest of a module that runs a model or a script: files, runtime, known answers. Called by `packaging`.

The model is looked at in a process of its own (`model_probe`); a script is never run here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from cloud_hub.building.bench import Bench
from cloud_hub.building.contents import GOLDEN_PATH, REFERENCE_PATH, gather
from cloud_hub.building.manifests import lineage, requirements, understood
from cloud_hub.building.request import BuildRequest
from cloud_hub.building.runtime import model_path, runtime
from cloud_hub.errors import Unprocessable
from cloud_hub.model_probe import ProbeRequest, ProbeResult, probe
from cloud_hub.registry import ModelVersion
from firmware_profiles.profile import DeviceProfile
from modules.manifest import Health, Manifest, Resources, SamplingPolicy


async def model_manifest(request: BuildRequest, model: ModelVersion, profile: DeviceProfile, bench: Bench) -> Manifest:
    """Raises Unprocessable with what does not fit, NotFound for an upload that is not there."""
    sources = await gather(request, model, bench)
    result = await probe(_probe_request(request, sources, bench))
    sources |= _written(result, bench.folder)
    files = await bench.store(sources)
    size = sum(entry.size for entry in files)
    runs = runtime(sources, bool(request.entry))
    return Manifest(
        name=request.model,
        version=request.version,
        profile=profile.name,
        lineage=lineage(model),
        inputs=result.inputs,
        outputs=result.outputs,
        files=files,
        runtime=runs,
        requires=understood(request.requires or requirements(profile, size), request.health, runs),
        resources=request.resources or Resources(),
        health=msgspec.structs.replace(request.health or Health(), golden=GOLDEN_PATH if result.golden else ""),
        sampling=request.sampling or SamplingPolicy(),
        reference=REFERENCE_PATH if result.reference else "",
    )


def _probe_request(request: BuildRequest, sources: Mapping[str, Path], bench: Bench) -> ProbeRequest:
    if not request.reference and not request.golden:
        raise Unprocessable(
            "golden-missing",
            "expected a training sample (reference) or golden inputs: without known answers no device can tell "
            "whether the module works",
        )
    if request.entry and not (request.inputs and request.outputs and request.golden):
        raise Unprocessable(
            "tensors-missing",
            "expected `inputs`, `outputs` and golden arrays for both with an entry script: the hub runs no scripts",
        )
    for digest in filter(None, (request.reference, request.golden)):
        bench.blobs.size(digest)
    return ProbeRequest(
        model="" if request.entry else str(sources[model_path(sources)]),
        inputs=request.inputs,
        outputs=request.outputs,
        training=str(bench.blobs.path(request.reference)) if request.reference else "",
        golden=str(bench.blobs.path(request.golden)) if request.golden else "",
        output_folder=str(bench.folder),
        labels=request.labels,
    )


def _written(result: ProbeResult, folder: Path) -> dict[str, Path]:
    files = {GOLDEN_PATH: result.golden, REFERENCE_PATH: result.reference}
    return {path: folder / path for path, there in files.items() if there}
