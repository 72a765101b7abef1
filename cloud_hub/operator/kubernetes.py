"""A module in a container as a Deployment and a Service of Kubernetes: the same image, run without an agent. Pure.

Called by `mooring module export --kubernetes`. What the agent does on a device, the cluster does here: restarts,
limits, probes. It takes no windows and no samples.
Source: Kubernetes API reference 1.30, apps/v1 Deployment and v1 Service; Pod Security Standards, "restricted".
"""

from __future__ import annotations

from typing import Any

from cloud_hub.operator.errors import OperatorError
from modules.containers import Container
from modules.images import STANDALONE_PORT
from modules.manifest import Manifest

USER = 65_532
RUNTIME_MIB = 256  # beside the module's own memory, as on a device
PROBE_S = 2
DRAIN_S = 30
_HTTP = "http"


def objects(manifest: Manifest, manifest_sha256: str, image: str) -> list[dict[str, Any]]:
    """`image` is the reference under which the cluster finds it. Raises OperatorError where there is no container."""
    container = manifest.runtime.container
    if container is None:
        text = f"{manifest.name}:{manifest.version}: expected a module in a container; build it with --base"
        raise OperatorError("not-a-container", text)
    name = manifest.name.replace("_", "-")  # labels of DNS have no underscores
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "mooring"}
    described = {
        "name": name,
        "labels": labels | {"app.kubernetes.io/version": str(manifest.version)},
        "annotations": {"dev.mooring/manifest-sha256": manifest_sha256, "dev.mooring/image": container.digest},
    }
    pod = {"metadata": {"labels": described["labels"]}, "spec": _pod(manifest, container, image)}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": described,
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": labels, "ports": [{"name": _HTTP, "port": 80, "targetPort": _HTTP}]},
    }
    return [deployment, service]


def _pod(manifest: Manifest, container: Container, image: str) -> dict[str, Any]:
    folders = list(container.writable)
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": DRAIN_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(manifest, container, image, folders)],
        "volumes": [
            {"name": _volume(at), "emptyDir": {"medium": "Memory", "sizeLimit": f"{container.writable_mib}Mi"}}
            for at in range(len(folders))
        ],
    }


def _container(manifest: Manifest, container: Container, image: str, folders: list[str]) -> dict[str, Any]:
    ours = container.serves == "worker"
    ready = _probe("/v2/health/ready" if ours else container.health)
    found: dict[str, Any] = {
        "name": "module",
        "image": image,
        "ports": [{"name": _HTTP, "containerPort": STANDALONE_PORT if ours else container.port}],
        "resources": _resources(manifest, container),
        "securityContext": {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "startupProbe": {**ready, "failureThreshold": max(1, int(2 * manifest.health.load_deadline_s / PROBE_S))},
        "readinessProbe": ready,
        "livenessProbe": _probe("/v2/health/live" if ours else container.health),
        "volumeMounts": [{"name": _volume(at), "mountPath": path} for at, path in enumerate(folders)],
    }
    if container.environment:
        found["env"] = [{"name": name, "value": value} for name, value in sorted(container.environment.items())]
    return found


def _probe(path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": _HTTP}, "periodSeconds": PROBE_S, "timeoutSeconds": PROBE_S}


def _resources(manifest: Manifest, container: Container) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if manifest.resources.memory_mib:
        limits["memory"] = f"{manifest.resources.memory_mib + RUNTIME_MIB}Mi"
    if manifest.resources.threads:
        limits["cpu"] = str(manifest.resources.threads)
    if container.gpus > 0:
        limits["nvidia.com/gpu"] = container.gpus
    return {"limits": limits, "requests": limits} if limits else {}


def _volume(at: int) -> str:
    return f"writable-{at}"
