"""The files in deploy/: every name in them leads somewhere, every process is watched, and nothing runs as root.

No container is started here: what the scripts and commands do is tried as processes (`support.replicas`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloud_hub import __version__
from cloud_hub.broker import _CONFIGURATION, MAX_CONNECTIONS, MAX_PACKET_BYTES, MAX_QUEUED, MAX_QUEUED_BYTES
from cloud_hub.config import HubConfig
from support.replicas import COMPOSE, REPOSITORY

KUBERNETES = REPOSITORY / "deploy" / "kubernetes"
IMAGES = REPOSITORY / "deploy" / "images"
SECRETS = {"mooring-database": {"password"}, "mooring-bucket": {"access-key-id", "secret-access-key"},
           "mooring-hub-directory": {"hub.tar"}}  # fmt: skip
SCRIPTS = sorted((*COMPOSE.glob("*.sh"), *KUBERNETES.glob("*.sh")))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    return found


@pytest.fixture(scope="module")
def objects() -> list[dict[str, Any]]:
    texts = [path.read_text() for path in sorted(KUBERNETES.glob("*.yaml")) if path.name != "kustomization.yaml"]
    return [one for text in texts for one in yaml.safe_load_all(text)]


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Workloads and what their pods are."""
    for one in objects:
        if one["kind"] in ("StatefulSet", "Deployment", "Job"):
            yield one, one["spec"]["template"]["spec"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def test_each_service_is_healthy_or_ends_before_others_begin(compose: dict[str, Any]) -> None:
    services = compose["services"]
    waited = {name: about["condition"] for service in services.values()
              for name, about in service.get("depends_on", {}).items()}  # fmt: skip
    for name, condition in waited.items():
        assert ("healthcheck" in services[name]) is (condition == "service_healthy"), name
    jobs = {name for name, condition in waited.items() if condition == "service_completed_successfully"}
    assert jobs == {"init", "bucket"}
    assert {name for name, service in services.items() if "healthcheck" not in service} == jobs | {"api"}
    assert {services[name]["command"][1].rpartition("/")[2] for name in ("hub-a", "hub-b")} == {"a", "b"}


def test_what_services_name_is_declared_and_secrets_are_files(compose: dict[str, Any]) -> None:
    made = (COMPOSE / "secrets.sh").read_text()
    for service in compose["services"].values():
        assert set(service.get("secrets", ())) <= set(compose["secrets"])
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (COMPOSE / source).is_file() if source.startswith(".") else source in compose["volumes"], volume
        assert not re.search(r"(?i)(password|secret)(?!.*_FILE)", " ".join(service.get("environment", {})))
    assert {about["file"] for about in compose["secrets"].values()} == set(re.findall(r"\[ -e (secrets/\S+) \]", made))


def test_images_have_versions_and_ours_is_this_one(compose: dict[str, Any], objects: list[dict[str, Any]]) -> None:
    images = [service["image"] for service in compose["services"].values()]
    images += [one["image"] for _, pod in pods(objects) for one in containers(pod) if one["image"] != "mooring-hub"]
    assert {image.rpartition(":")[2] for image in images if image.startswith("mooring")} == {__version__}
    assert all(":" in image and not image.endswith(":latest") for image in images)
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    assert kustomization["images"] == [{"name": "mooring-hub", "newTag": __version__}]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_scripts_can_be_read_by_a_plain_shell_and_stop_at_the_first_error(script: Path) -> None:
    assert script.read_text().splitlines()[0] == "#!/bin/sh"
    assert "set -eu" in script.read_text()
    subprocess.run(["sh", "-n", str(script)], check=True, timeout=30)


def test_secrets_are_made_once_and_kept_from_others(tmp_path: Path) -> None:
    shutil.copy(COMPOSE / "secrets.sh", tmp_path)
    found: dict[str, bytes] = {}
    before: dict[str, bytes] = {}
    for _ in range(2):
        before = found
        subprocess.run(["sh", str(tmp_path / "secrets.sh")], check=True, timeout=30, capture_output=True)
        found = {path.name: path.read_bytes() for path in (tmp_path / "secrets").iterdir()}
    assert found == before
    assert len(found["database-password"]) == 48
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    assert (tmp_path / "secrets" / "bucket.toml").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("folder", [COMPOSE, KUBERNETES], ids=["compose", "kubernetes"])
def test_the_broker_keeps_the_promises_of_the_hubs_own(folder: Path) -> None:
    def promises(text: str) -> dict[str, str]:
        lines = (line.partition(" ") for line in text.splitlines() if line and not line.startswith(("#", "{", "log_")))
        return {name: value for name, _, value in lines}

    names = {name: f"<{name}>" for name in ("folder", "user", "port", "host", "device_ca", "certificate", "key", "crl")}
    numbers = {"max_packet": MAX_PACKET_BYTES, "max_queued": MAX_QUEUED, "max_queued_bytes": MAX_QUEUED_BYTES,
               "max_connections": MAX_CONNECTIONS}  # fmt: skip
    own = promises(_CONFIGURATION.format(**names | {"user": ""}, **numbers))
    shipped = promises((folder / "mosquitto.conf").read_text())
    paths = {"acl_file", "persistence_location", "listener", "cafile", "certfile", "keyfile", "crlfile"}
    assert shipped.keys() == own.keys()
    assert {name: value for name, value in shipped.items() if name not in paths} == {
        name: value for name, value in own.items() if name not in paths
    }
    assert (KUBERNETES / "mosquitto.sh").read_bytes() == (COMPOSE / "mosquitto.sh").read_bytes()


def test_settings_of_the_replicas_are_settings() -> None:
    import tomllib

    import msgspec

    config = msgspec.convert(tomllib.loads((COMPOSE / "hub.toml").read_text()), HubConfig)
    assert config.replicas.names == ("a", "b")
    assert config.blobs.startswith("s3://")


def test_pods_are_restricted_watched_and_bounded(objects: list[dict[str, Any]]) -> None:
    for workload, pod in pods(objects):
        security = pod["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] >= 999
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for one in containers(pod):
            where = f"{workload['metadata']['name']}/{one['name']}"
            assert one["securityContext"]["allowPrivilegeEscalation"] is False, where
            assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}, where
            assert {"requests", "limits"} <= one["resources"].keys(), where
        if workload["kind"] != "Job":
            assert all("livenessProbe" in one for one in pod["containers"]), workload["metadata"]["name"]
            assert any("readinessProbe" in one for one in pod["containers"]), workload["metadata"]["name"]


def test_what_pods_mount_and_read_is_there(objects: list[dict[str, Any]]) -> None:
    maps = {"broker"}  # of the kustomization
    for workload, pod in pods(objects):
        claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", ())}
        volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
        for volume in volumes.values():
            if "secret" in volume:
                assert volume["secret"]["secretName"] in SECRETS
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps
        for one in containers(pod):
            assert {mount["name"] for mount in one.get("volumeMounts", ())} <= volumes.keys() | claims, one["name"]
            for variable in one.get("env", ()):
                key = variable.get("valueFrom", {}).get("secretKeyRef")
                assert key is None or key["key"] in SECRETS[key["name"]]


def test_services_lead_to_pods_and_probes_to_ports(objects: list[dict[str, Any]]) -> None:
    labelled = {tuple(one["spec"]["template"]["metadata"]["labels"].items()): pod for one, pod in pods(objects)}
    services = {one["metadata"]["name"]: one for one in objects if one["kind"] == "Service"}
    for service in services.values():
        pod = labelled[tuple(service["spec"]["selector"].items())]
        ports = {port["name"] for one in pod["containers"] for port in one.get("ports", ())}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for workload, pod in pods(objects):
        if workload["kind"] == "StatefulSet":
            assert workload["spec"]["serviceName"] in services
            assert workload["spec"]["selector"]["matchLabels"] == workload["spec"]["template"]["metadata"]["labels"]
        for one in pod["containers"]:
            ports = {port["name"] for port in one.get("ports", ())}
            for probe in (one[name] for name in one if name.endswith("Probe")):
                assert probe.get("httpGet", probe.get("tcpSocket", {"port": None}))["port"] in ports | {None}


def test_every_secret_is_explained() -> None:
    text = (REPOSITORY / "docs" / "operate" / "scale-out.md").read_text()
    for secret, keys in SECRETS.items():
        assert secret in text
        assert all(key in text for key in keys)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_puts_the_files_together() -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES)], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    found = list(yaml.safe_load_all(built))
    assert {one["metadata"]["namespace"] for one in found if one["kind"] != "Namespace"} == {"mooring"}
    assert f"image: mooring-hub:{__version__}" in built
    assert "image: mooring-hub\n" not in built


@pytest.mark.parametrize("name", ["hub", "agent"])
def test_images_are_built_in_two_stages_from_what_is_here_and_run_as_nobody(name: str) -> None:
    lines = (IMAGES / f"{name}.Dockerfile").read_text().splitlines()
    assert sum(line.startswith("FROM ") for line in lines) == 2
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    assert copied
    assert all((REPOSITORY / word).exists() for word in copied)
    assert "USER 10001:10001" in lines
    assert lines.index("USER 10001:10001") > lines.index(next(line for line in lines if line.startswith("COPY --from")))
