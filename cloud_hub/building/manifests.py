"""What a manifest says of a model, its files and a device profile. Pure; called by the files of this folder."""

from __future__ import annotations

import msgspec

from cloud_hub.registry import ModelVersion
from firmware_profiles.profile import DeviceProfile, Requirements
from modules.manifest import NEWER_AGENT, Health, Lineage, Resources, Runtime, SamplingPolicy

# A module needs the memory of its files about three times: file cache, session, activations; plus the runtime.
RUNTIME_MEMORY_MIB = 64


def understood(
    requires: Requirements,
    health: Health | None,
    runtime: Runtime,
    resources: Resources | None = None,
    sampling: SamplingPolicy | None = None,
    *,
    plain: bool = True,
) -> Requirements:
    """With the agent version that these need, where nobody has said a version; `plain`: the reference needs none."""
    said = (health, resources, sampling)
    needed = max((part.agent_version for part in said if part is not None), default="")
    needed = needed if runtime.is_plain and plain else NEWER_AGENT
    return msgspec.structs.replace(requires, agent_version=requires.agent_version or needed)


def requirements(profile: DeviceProfile, size: int, libraries: int = 0) -> Requirements:
    """Of a module with so many bytes of its own, and of libraries for its script."""
    mib = size // 2**20 + 1
    return Requirements(
        arch=(profile.arch,),
        os=(profile.os,),
        hardware_ids=(profile.name,),
        accelerators=tuple(accelerator.kind for accelerator in profile.accelerators),
        memory_mib=RUNTIME_MEMORY_MIB + 3 * mib,
        disk_mib=2 * (mib + libraries // 2**20),
    )


def release_requirements(profile: DeviceProfile, size: int, unpacked: int) -> Requirements:
    """Of a release of the agent: room for its wheels (`size` bytes), and twice for what they hold."""
    disk_mib = (size + 2 * unpacked) // 2**20 + 1
    return Requirements(arch=(profile.arch,), os=(profile.os,), hardware_ids=(profile.name,), disk_mib=disk_mib)


def lineage(model: ModelVersion) -> Lineage:
    return Lineage(
        model=model.name,
        model_version=model.version,
        author=model.author,
        training_run=_training_run(model),
        git_commit=model.git_commit,
        datasets=tuple(model.datasets),
    )


def _training_run(model: ModelVersion) -> str:
    """An MLflow run goes there, too: agents of before version 0.2 refuse a lineage with fields they do not know."""
    run = f"{model.mlflow_uri}#{model.mlflow_run}" if model.mlflow_uri else model.mlflow_run
    return model.training_run or (f"mlflow:{run}" if run else "")
