"""What `mooring-agent doctor` says of the container engine. Called by `agent.doctor`."""

from __future__ import annotations

from agent.checks import Check
from agent.containers.client import EngineClient, EngineError
from agent.containers.protocol import Look, Seen
from agent.containers.settings import ContainerSettings

LOOK_S = 15.0


async def containers(settings: ContainerSettings) -> Check:
    """A device without an engine is well; it only runs no modules in containers."""
    engine = EngineClient(settings.engine)
    try:
        seen = await engine.ask(Look(), Seen, LOOK_S)
    except EngineError as error:
        return Check("containers", "ok", f"modules in containers do not run here: {error}")
    finally:
        await engine.close()
    gpus = "GPUs by its runtime nvidia" if "nvidia" in seen.runtimes else "no runtime for NVIDIA GPUs"
    return Check("containers", "ok", f"Docker {seen.version} at {settings.engine}, layers by {seen.storage}, {gpus}")
