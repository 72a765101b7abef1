"""What the engine is told of a module's container, and what it is refused. Pure; called by `agent.containers.runtime`.

Everything is off that the manifest does not ask for, and of what it asks for, the device's settings have the last word
about networks and devices.
Source: Docker Engine API 1.41, ContainerCreate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.containers.door import INSIDE
from agent.containers.protocol import MANAGED, MODULE
from agent.containers.settings import ContainerSettings
from agent.errors import WorkerError
from agent.sandbox.cgroup import MAX_PROCESSES, RUNTIME_MIB
from agent.sandbox.share import share
from modules.containers import Container
from modules.images import MODULE_ROOT
from modules.manifest import Manifest

SLOT = f"/{MODULE_ROOT}"
_MIB = 1024 * 1024
_LOG = {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}}
# As of a worker process, see agent.sandbox.environment.
_ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1", "HOME": "/nonexistent"}


class NotAllowed(WorkerError):
    """A module asks for more of the device than its settings give to containers."""

    def __init__(self, text: str) -> None:
        super().__init__(text, "container-refused")


def options(
    manifest: Manifest, image: str, settings: ContainerSettings, owner: str, uid: int, door: Path | None,
    cpus: tuple[int, ...] = (), cache: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Of one container. `door` is the folder through which our worker is reached, None for a program of the image's.

    Raises NotAllowed.
    """
    container = manifest.runtime.container
    assert container is not None  # noqa: S101 - only modules with one come here
    _check(manifest.name, container, settings)
    environment = {**_ENVIRONMENT, "AZUREML_MODEL_DIR": SLOT, **container.environment}
    command = [container.python, "-P", "-m", "agent.containers.inside"] if door is not None else [*container.command]
    return {
        "Image": image,
        **({"Entrypoint": command, "Cmd": [], "WorkingDir": "/"} if command else {}),
        "User": f"{uid}:{uid}",
        "Env": [f"{name}={value}" for name, value in sorted(environment.items())],
        "Labels": {MANAGED: owner, MODULE: manifest.name},
        "Healthcheck": {"Test": ["NONE"]},  # the agent asks by itself
        "HostConfig": {**_host(manifest, container, cpus), "Mounts": _mounts(door, cache)},
    }


def seen_at(manifest: Manifest, slot: Path) -> str:
    """Where the module's worker finds its files: in the image where it is in there, else in the slot."""
    container = manifest.runtime.container
    return SLOT if container is not None and container.serves == "worker" else str(slot)


def _mounts(door: Path | None, cache: Path | None) -> list[dict[str, Any]]:
    """The way in, and what the module's runtime has compiled before, at its own path."""
    shown = [(door, INSIDE, True)] if door is not None else []
    shown += [(cache, str(cache), False)] if cache is not None else []
    return [
        {"Type": "bind", "Source": str(path), "Target": target, "ReadOnly": read_only}
        for path, target, read_only in shown
    ]


def _host(manifest: Manifest, container: Container, cpus: tuple[int, ...]) -> dict[str, Any]:
    its = share(manifest.resources)
    folder = f"rw,noexec,nosuid,nodev,mode=1777,size={container.writable_mib}m"
    host: dict[str, Any] = {
        "ReadonlyRootfs": True,
        "NetworkMode": container.network,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "PidsLimit": MAX_PROCESSES,
        "Tmpfs": dict.fromkeys(container.writable, folder),
        "ShmSize": container.writable_mib * _MIB,
        "Devices": [
            {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"} for path in container.devices
        ],
        "RestartPolicy": {"Name": "no"},  # the agent's units do that, with its back-off
        "LogConfig": _LOG,
        "CpuShares": its.weight * 1024 // 100,  # the engine's own default is 1024, as a weight of 100
        "OomScoreAdj": its.oom_score,
    }
    if manifest.resources.cpu_percent:
        host["NanoCpus"] = manifest.resources.cpu_percent * 10_000_000
    if manifest.resources.memory_mib:
        limit = (manifest.resources.memory_mib + RUNTIME_MIB) * _MIB
        host |= {"Memory": limit, "MemorySwap": limit}
    if container.gpus:
        host["DeviceRequests"] = [{"Driver": "", "Count": container.gpus, "Capabilities": [["gpu"]]}]
    if cpus:
        host["CpusetCpus"] = ",".join(map(str, cpus))
    return host


def _check(name: str, container: Container, settings: ContainerSettings) -> None:
    if container.network != "none" and container.network not in settings.networks:
        raise NotAllowed(
            f"module {name}: it asks for the network {container.network}; this device gives none "
            f"(containers.networks is {list(settings.networks)})"
        )
    for device in container.devices:
        if device not in settings.devices:
            raise NotAllowed(
                f"module {name}: it asks for {device}, which this device does not give "
                f"(containers.devices is {list(settings.devices)})"
            )
