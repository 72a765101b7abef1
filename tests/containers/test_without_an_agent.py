"""The same image without an agent: run by hand, by `mooring module run`, and described for Kubernetes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cloud_hub.operator.cli.exporting import write_container
from cloud_hub.operator.errors import OperatorError
from support.built import Built, build, build_script
from support.contained import Contained
from support.dockerd import Dockerd
from support.predict import predict, served_version
from support.waiting import until

Make = Callable[..., Contained]
pytestmark = pytest.mark.timeout(180)  # the first one starts an engine, and makes an image
MOORING = str(Path(sys.executable).with_name("mooring"))


def exported(module: Contained | Built, folder: Path) -> Path:
    """The part of an export that holds the files; the metadata plays no role once it is verified."""
    blobs = folder / "blobs"
    blobs.mkdir(parents=True)
    (folder / "metadata").mkdir()
    (blobs / module.sha256).write_bytes(module.manifest_bytes)
    for entry in module.manifest.files:
        held = module.files[entry.path]
        if isinstance(held, bytes):
            (blobs / entry.sha256).write_bytes(held)
        else:
            shutil.copyfile(held, blobs / entry.sha256)
    return folder


@asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[str]]]:
    """`mooring module run`, and what it says."""
    process = await asyncio.create_subprocess_exec(
        MOORING, "module", "run", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    said: list[str] = []

    async def read() -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            said.append(line.decode(errors="replace").rstrip())

    reading = asyncio.create_task(read())
    try:
        yield process, said
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await reading


async def serving(process: asyncio.subprocess.Process, said: list[str]) -> str:
    """The endpoint's address."""
    await until(
        lambda: process.returncode is not None or any("serving http" in line for line in said),
        f"it to serve: {said}",
        40,
    )
    found = [match for line in said if (match := re.search(r"serving (http://[^/]+)/", line))]
    assert found, said
    return found[0][1]


async def test_a_process_module_runs_on_a_desk_with_its_words_on_the_terminal(tmp_path: Path) -> None:
    source = "def init():\n    print('loaded by a script')\ndef predict(inputs):\n    return {}\n"
    bundle = exported(build_script(source), tmp_path / "bundle")
    async with running(str(bundle), "--port", "0", "--memory", "256", "--cpus", "1") as (process, said):
        address = await serving(process, said)
        assert await served_version(address) == 1
        await until(lambda: any(line.endswith(" loaded by a script") for line in said), "the script's words")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        await asyncio.wait_for(process.wait(), 30)
        assert process.returncode == 0
    assert any(line.startswith("drained") for line in said)


async def test_a_module_that_does_not_pass_its_golden_inputs_ends_the_command_with_the_reason(tmp_path: Path) -> None:
    bundle = exported(build(spoil_golden=True), tmp_path / "bundle")
    async with running(str(bundle), "--port", "0") as (process, said):
        await asyncio.wait_for(process.wait(), 40)
    assert process.returncode == 1
    assert any("golden-mismatch" in line for line in said)


async def test_a_contained_module_runs_on_a_desk_through_an_engine(
    contained: Make, engine: Dockerd, tmp_path: Path
) -> None:
    bundle = exported(contained(build()), tmp_path / "bundle")
    async with running(str(bundle), "--port", "0", "--engine", engine.address) as (process, said):
        address = await serving(process, said)
        assert await predict(address) == [0]
        process.send_signal(signal.SIGINT)
        os.killpg(process.pid, signal.SIGINT)
        await asyncio.wait_for(process.wait(), 30)
        assert process.returncode == 0
    with engine.client() as client:
        assert client.containers(all=True) == []


async def test_the_exported_image_serves_by_itself_and_ends_gracefully(
    contained: Make, engine: Dockerd, tmp_path: Path
) -> None:
    module = contained(build())
    bundle, archive = exported(module, tmp_path / "bundle"), tmp_path / "image.tar"
    write_container(bundle, module.sha256, "example/iris:1", archive, None)
    with engine.client() as client:
        with archive.open("rb") as file:
            assert not any("error" in said for said in client.load_image(file))
        host = client.create_host_config(
            network_mode="host", read_only=True, cap_drop=["ALL"], security_opt=["no-new-privileges"]
        )
        made = client.create_container("example/iris:1", ["--port", "0"], host_config=host)
        try:
            client.start(made)
            await until(lambda: b'"serving"' in client.logs(made) or not runs(client, made), "it to serve", 40)
            events = [json.loads(line) for line in client.logs(made).splitlines() if line.startswith(b"{")]
            url = next(event["url"] for event in events if event["event"] == "serving")
            assert await predict(url.split("/v2/")[0]) == [0]
            client.kill(made, "SIGTERM")
            assert client.wait(made, timeout=30)["StatusCode"] == 0
            assert b'"drained"' in client.logs(made)
        finally:
            client.remove_container(made, force=True)
            client.remove_image("example/iris:1", force=True)


def runs(client: Any, container: Any) -> bool:
    return bool(client.inspect_container(container)["State"]["Running"])


# What the cluster's own validation asks of these fields (apps/v1, v1; Pod Security Standards, "restricted").
POD = {
    "type": "object",
    "required": ["containers", "securityContext", "volumes"],
    "properties": {
        "securityContext": {
            "required": ["runAsNonRoot", "seccompProfile"],
            "properties": {
                "runAsNonRoot": {"const": True},
                "runAsUser": {"type": "integer", "minimum": 1},
                "seccompProfile": {"properties": {"type": {"enum": ["RuntimeDefault", "Localhost"]}}},
            },
        },
        "containers": {
            "type": "array",
            "minItems": 1,
            "items": {
                "required": ["name", "image", "ports", "readinessProbe", "livenessProbe", "startupProbe"],
                "properties": {
                    "name": {"pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
                    "securityContext": {
                        "properties": {
                            "allowPrivilegeEscalation": {"const": False},
                            "readOnlyRootFilesystem": {"const": True},
                            "capabilities": {"properties": {"drop": {"const": ["ALL"]}}},
                        },
                        "required": ["allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"],
                    },
                    "resources": {
                        "properties": {"limits": {"properties": {"memory": {"pattern": r"^\d+(Ki|Mi|Gi)$"}}}}
                    },
                },
            },
        },
    },
}


def test_the_exported_objects_are_what_a_cluster_takes(contained: Make, tmp_path: Path) -> None:
    module = contained(build(name="iris_two"))
    target = tmp_path / "module.yaml"
    write_container(exported(module, tmp_path / "bundle"), module.sha256, "registry.example/iris:1", None, target)
    deployment, service = yaml.safe_load_all(target.read_text())
    assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    template = deployment["spec"]["template"]
    jsonschema.validate(template["spec"], POD)
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector.items() <= template["metadata"]["labels"].items()
    assert service["spec"]["selector"] == selector
    [container] = template["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports[service["spec"]["ports"][0]["targetPort"]] == 8000
    assert container["image"] == "registry.example/iris:1"
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in template["spec"]["volumes"]
    }
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"].startswith("/v2/health/")
    for thing in (deployment, service):
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", thing["metadata"]["name"])
    assert deployment["metadata"]["annotations"]["dev.mooring/manifest-sha256"] == module.sha256


def test_a_module_without_a_container_has_no_image_to_export(tmp_path: Path) -> None:
    module = build()
    with pytest.raises(OperatorError, match="--base"):
        write_container(exported(module, tmp_path / "bundle"), module.sha256, "", tmp_path / "image.tar", None)


def test_the_standalone_worker_says_why_a_folder_is_no_module(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "agent.sandbox.standalone", str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert said.returncode == 1
    event = json.loads(said.stdout.splitlines()[-1])
    assert (event["event"], event["key"]) == ("failed", "io")
