"""The manifest of a release of the agent. Its wheels are looked at, never run: devices try them out.

Called by `packaging`.
"""

from __future__ import annotations

import asyncio

from cloud_hub.agent_wheels import check_release
from cloud_hub.building.bench import Bench
from cloud_hub.building.manifests import lineage, release_requirements
from cloud_hub.building.request import BuildRequest
from cloud_hub.errors import Unprocessable
from cloud_hub.registry import ModelVersion
from firmware_profiles.profile import DeviceProfile
from modules.manifest import Health, Manifest, Runtime
from modules.targets import AGENT_PUBLISHER


async def agent_manifest(
    request: BuildRequest, model: ModelVersion, profile: DeviceProfile, bench: Bench, publisher: str
) -> Manifest:
    """Raises Unprocessable `agent-publisher` or `wheel-refused`."""
    if publisher != AGENT_PUBLISHER:
        text = f"expected the publisher {AGENT_PUBLISHER}, got {publisher}"
        raise Unprocessable("agent-publisher", f"a release of the agent: {text}; no device would run it")
    sources = {file.path: await bench.fetch(file.sha256, f"model/{file.path}") for file in model.files}
    unpacked = await asyncio.to_thread(check_release, sources, profile)
    files = await bench.store(sources)
    return Manifest(
        name=request.model,
        version=request.version,
        profile=profile.name,
        lineage=lineage(model),
        inputs=(),
        outputs=(),
        files=files,
        runtime=Runtime(kind="agent", backend="script", model=""),
        requires=request.requires or release_requirements(profile, sum(entry.size for entry in files), unpacked),
        health=request.health or Health(),
    )
