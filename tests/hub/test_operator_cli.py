"""The `mooring` command against a real hub: every group of commands, its errors, its exit statuses."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import aiomqtt
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner, Result

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.initialise import free_ports, initialise
from cloud_hub.operator.cli import app
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.context import HubContext
from modules.enrolment import EnrollAnswer, EnrollRequest
from modules.manifest import decode_manifest
from modules.messages import ModuleReport, encode
from modules.topics import up
from support.built import iris, rows
from support.devices import PROFILE, EnrolledDevice, make_report, make_request
from support.waiting import until_blocking

RUNTIME = """
batch_rows = 64
instances = 2

[[stages]]
name = "net"
model = "model.onnx"

[[after]]
type = "softmax"
tensor = "probabilities"
to = "sure"
"""
COMMAND = str(Path(sys.executable).with_name("mooring"))
HUB_COMMAND = str(Path(sys.executable).with_name("mooring-hub"))


@dataclass(frozen=True)
class Operator:
    """Types commands to one hub."""

    paths: HubPaths

    @property
    def environment(self) -> dict[str, str]:
        return {"MOORING_CONTEXT": str(self.paths.context), "COLUMNS": "160"}

    def run(self, *arguments: object, status: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=self.environment)
        assert result.exit_code == status, f"{arguments}: {result.exit_code}\n{result.output}\n{result.exception!r}"
        return result

    def json(self, *arguments: object, status: int = 0) -> Any:
        return json.loads(self.run(*arguments, "-o", "json", status=status).stdout)

    def refused(self, *arguments: object) -> str:
        """What the command says on standard error when it fails with status 1."""
        text = self.run(*arguments, status=1).stderr
        assert text.startswith("error: ")
        assert "Traceback" not in text
        return text

    @contextmanager
    def process(self, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        """The command as a process of its own."""
        with subprocess.Popen([COMMAND, *arguments], env={**os.environ, **self.environment}, **options) as process:
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """A hub as `mooring-hub serve` runs it, with one model built and signed, and one device."""
    root = tmp_path_factory.mktemp("operator") / "hub"
    api, mqtt = free_ports(2)
    config = HubConfig(dev=True, api_host="127.0.0.1", api_port=api, mqtt_host="127.0.0.1", mqtt_port=mqtt)
    paths = asyncio.run(initialise(root, config))
    ready, log = root.with_name("ready.json"), root.with_name("log")
    with log.open("wb") as output:
        arguments = [HUB_COMMAND, "serve", str(root), "--ready-file", str(ready)]
        process = subprocess.Popen(arguments, stdout=output, stderr=output, start_new_session=True)
    try:
        until_blocking(lambda: ready.exists() or process.poll() is not None, "the hub to be ready", 40)
        assert process.poll() is None, log.read_text()
        yield Operator(paths)
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.onnx, train.npz and golden.npz."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "model.onnx").write_bytes(iris(1))
    np.savez(folder / "train.npz", X=rows(150))
    np.savez(folder / "golden.npz", X=rows(3))
    return folder


@pytest.fixture(scope="module")
def signed(operator: Operator, files: Path) -> str:
    """iris:1, built for this profile and signed."""
    operator.run("model", "register", "iris", files / "model.onnx", "--tag", "task=flowers", "--dataset", "iris@1936")
    data = ("--reference", files / "train.npz", "--golden", files / "golden.npz")
    options = ("--label", "probabilities=setosa,versicolor,virginica", "--rate", "0.5", "--probation", "1")
    sampling = ("--stratum", "odd=1:out-of-range", "--quota", "5MB", "--redact", "X[0]=coarsen:0.5", "--ring-rows", 100)
    operator.run("module", "build", "iris:1", "-p", PROFILE, *data, *options, *sampling)
    operator.run("module", "sign", "iris:1")
    return "iris:1"


@pytest.fixture(scope="module")
def device(operator: Operator) -> EnrolledDevice:
    token = operator.json("device", "token", "--device", "cam-001", "--tag", "site=lab")["token"]
    key = ec.generate_private_key(ec.SECP256R1())
    request = EnrollRequest(token, "cam-001", make_request("cam-001", key), PROFILE)

    async def enrol() -> EnrollAnswer:
        async with HubClient(HubContext.load(operator.paths.context)) as hub:
            return await hub._http.ask(EnrollAnswer, "POST", "/enroll", request)

    return EnrolledDevice(key, asyncio.run(enrol()))


# --- models and modules ---------------------------------------------------------------------------------------


def test_a_model_keeps_where_it_comes_from_and_comes_back_as_it_was(
    operator: Operator, files: Path, signed: str, tmp_path: Path
) -> None:
    [model] = operator.json("model", "list", "--tag", "task=flowers")
    assert (model["name"], model["version"], model["datasets"]) == ("iris", 1, ["iris@1936"])
    assert "task=flowers" in operator.run("model", "show", signed).stdout
    operator.run("model", "download", signed, tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (files / "model.onnx").read_bytes()


def test_a_model_takes_the_commit_of_the_repository_it_is_registered_from(
    operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a.bin").write_bytes(b"a")
    assert operator.json("model", "register", "outside", "weights")["git_commit"] == ""
    git = ["git", "-c", "user.name=Ann", "-c", "user.email=ann@example.com", "-c", "init.defaultBranch=main"]
    for act in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "Add weights"]):
        subprocess.run([*git, *act], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert operator.json("model", "register", "inside", "weights")["git_commit"] == head
    assert operator.json("model", "register", "inside", "weights", "--git-commit", "abc")["git_commit"] == "abc"


def test_a_module_is_listed_with_its_release_and_signing_again_raises_it(operator: Operator, signed: str) -> None:
    before = operator.json("module", "show", f"{signed}/{PROFILE}")[0]["release_counter"]
    assert before >= 1
    [again] = operator.json("module", "sign", f"{signed}/{PROFILE}")
    assert again["release_counter"] == before + 1
    assert f"iris:1/{PROFILE}" in operator.run("module", "list").stdout


def test_the_runtime_of_a_build_comes_from_a_file_with_the_options_over_it(operator: Operator, files: Path) -> None:
    (files / "runtime.toml").write_text(RUNTIME)
    operator.run("model", "register", "chained", files / "model.onnx")
    options = ("--runtime", files / "runtime.toml", "--batch-rows", "4", "--allow-fallback")
    wishes = ("--reference", files / "train.npz", "--result", "sure:FP32:-1,3", "--result", "label:INT64:-1")
    operator.run("module", "build", "chained:1", "-p", PROFILE, *options, *wishes)

    async def manifest_bytes() -> bytes:
        async with HubClient(HubContext.load(operator.paths.context)) as hub:
            return await hub.manifest("chained", 1, PROFILE)

    manifest = decode_manifest(asyncio.run(manifest_bytes()))
    assert (manifest.runtime.batch_rows, manifest.runtime.instances) == (4, 2)
    assert [stage.outputs[0].name for stage in manifest.runtime.stages] == ["label"]
    assert [spec.name for spec in manifest.outputs] == ["sure", "label"]
    again = ("module", "build", "chained:1", "-p", PROFILE, "--reference", files / "train.npz")
    (files / "base.tar").write_bytes(b"no archive")
    assert "base image" in operator.refused(*again, "--base", files / "base.tar")
    assert "images.registries" in operator.refused(*again, "--base", f"registry.test/base@sha256:{'0' * 64}")
    assert "nowhere:1: expected a tar archive, or an image" in operator.refused(*again, "--base", "nowhere:1")
    (files / "runtime.toml").write_text("[container]\nwindows = 3\n")
    wrong = operator.run(*again, "--base", files / "base.tar", "--runtime", files / "runtime.toml", status=2)
    assert "unknown field `windows`" in wrong.stderr


def test_what_the_build_was_told_stands_in_the_manifest(operator: Operator, signed: str) -> None:
    async def manifest() -> bytes:
        async with HubClient(HubContext.load(operator.paths.context)) as hub:
            return await hub.manifest("iris", 1, PROFILE)

    found = json.loads(asyncio.run(manifest()))
    assert (found["sampling"]["rate"], found["health"]["probation_s"]) == (0.5, 1.0)
    assert found["sampling"]["strata"] == [{"name": "odd", "rate": 1.0, "when": "out_of_range"}]
    assert (found["sampling"]["quota_bytes_per_day"], found["sampling"]["ring_rows"]) == (5_000_000, 100)
    assert found["requires"]["agent_version"] == "0.2.0"
    assert found["sampling"]["window_s"] == 300.0
    assert found["outputs"][1]["labels"] == ["setosa", "versicolor", "virginica"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("model", "show", "iris:99"), "no model iris version 99"),
        (("module", "build", "iris:99", "-p", PROFILE), "no model iris version 99"),
        (("module", "build", "iris:1", "-p", "toaster"), "no device profile toaster"),
        (("module", "sign", "iris:77"), "no module iris version 77"),
        (("module", "show", "iris:1/toaster"), "no module iris version 1 for profile toaster"),
        (("device", "show", "nobody"), "no device nobody"),
        (("device", "list", "-q", "what"), "query: expected"),
        (("rollout", "status", "r999"), "no rollout r999"),
        (("rollout", "create", "iris:1", "--target", "id=nobody"), "no device matches"),
        (("rollout", "create", "iris:1", "--target", "all", "--group", "few"), "group: expected a number"),
        (("drift", "show", "tulips"), "no module tulips"),
        (("sampling", "set", "iris", "--device", "nobody", "--rate", "0.5"), "no device that matches"),
        (("sampling", "set", "iris"), "say what to change"),
        (("samples", "request", "--device", "nobody", "--module", "iris"), "no device nobody"),
        (("model", "register", "iris", "no-such-file"), "no-such-file: expected a file"),
        (("model", "register", "Not A Name", "pyproject.toml"), "name: expected"),
        (("module", "verify", "iris:1", "--bundle", "no-such-folder"), "expected a folder written by"),
    ],
)
def test_what_is_not_there_is_named_in_one_paragraph(
    operator: Operator, signed: str, arguments: tuple[str, ...], words: str
) -> None:
    assert words in operator.refused(*arguments)


@pytest.mark.parametrize("text", ["iris", "iris:0", "iris:x", "Iris:1", "iris:1/", "iris:1/a/b"])
def test_a_name_of_another_form_is_a_usage_error_with_an_example(operator: Operator, text: str) -> None:
    assert "NAME:VERSION" in operator.run("module", "show", text, status=2).output


# --- verification ---------------------------------------------------------------------------------------------


def test_a_module_is_verified_from_the_hub_and_says_where_trust_began(operator: Operator, signed: str) -> None:
    found = operator.json("module", "verify", signed)
    assert found["root"] == f"{operator.paths.roots / 'image.root.json'} (pinned)"
    assert (found["golden_cases"], found["hardware_ids"]) == (3, [PROFILE])
    assert found["reference_features"] >= 4


def test_a_module_that_was_deleted_from_the_metadata_or_never_signed_is_refused(
    operator: Operator, files: Path
) -> None:
    operator.run("model", "register", "fresh", files / "model.onnx")
    operator.run("module", "build", "fresh:1", "-p", PROFILE, "--reference", files / "train.npz")
    assert "not in the image repository" in operator.refused("module", "verify", "fresh:1")


@pytest.fixture
def bundle(operator: Operator, signed: str, tmp_path: Path) -> Path:
    operator.run("module", "export", f"{signed}/{PROFILE}", tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_bundle_is_verified_without_a_hub_from_a_pinned_root(
    operator: Operator, bundle: Path, tmp_path: Path
) -> None:
    root = tmp_path / "pinned.json"
    root.write_bytes((bundle / "metadata" / "1.root.json").read_bytes())
    arguments = ("module", "verify", f"iris:1/{PROFILE}", "--bundle", str(bundle), "--root", str(root), "-o", "json")
    offline = CliRunner().invoke(app, arguments, env={"MOORING_CONTEXT": "/nowhere"})
    assert offline.exit_code == 0, offline.output
    assert json.loads(offline.stdout)["root"] == f"{root} (pinned)"


def test_another_hubs_root_does_not_verify_this_hubs_module(operator: Operator, bundle: Path, tmp_path: Path) -> None:
    other = asyncio.run(initialise(tmp_path / "other", HubConfig(dev=True)))

    async def root() -> bytes:
        from cloud_hub.service import open_hub

        async with open_hub(other) as rooms:
            return (await rooms.image.root_json()).encode()

    (tmp_path / "root.json").write_bytes(asyncio.run(root()))
    arguments = ("module", "verify", f"iris:1/{PROFILE}", "--bundle", bundle, "--root", tmp_path / "root.json")
    assert "nothing in it is trusted" in operator.refused(*arguments)


def _flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(bytes(body))


def _manifest_of(bundle: Path) -> Path:
    return next(path for path in (bundle / "blobs").iterdir() if b'"lineage"' in path.read_bytes())


def _model_of(bundle: Path) -> Path:
    return max((bundle / "blobs").iterdir(), key=lambda path: path.read_bytes().count(b"onnx"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda bundle: _flip(bundle / "metadata" / "timestamp.json"), "image repository"),
        (lambda bundle: (bundle / "metadata" / "timestamp.json").unlink(), "nothing was verified"),
        (lambda bundle: _flip(_manifest_of(bundle)), "modules/dev/iris/1"),
        (lambda bundle: _flip(_model_of(bundle)), "model.onnx: expected"),
        (lambda bundle: _model_of(bundle).unlink(), "no file"),
    ],
    ids=["timestamp changed", "timestamp gone", "manifest changed", "model changed", "model gone"],
)
def test_a_bundle_with_one_thing_spoiled_is_refused(
    operator: Operator, bundle: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(bundle)
    assert words in operator.refused("module", "verify", f"iris:1/{PROFILE}", "--bundle", bundle)


# --- devices and rollouts -------------------------------------------------------------------------------------


def test_tags_are_set_and_removed_one_by_one(operator: Operator, device: EnrolledDevice) -> None:
    operator.run("device", "tag", device.id, "floor=2", "owner=ann")
    [found] = operator.json("device", "tag", device.id, "--remove", "owner")
    assert found["tags"] == {"site": "lab", "floor": "2"}
    assert [d["id"] for d in operator.json("device", "list", "-q", "site=lab,floor=2")] == [device.id]


def test_devices_are_put_into_groups_meant_by_saved_queries_and_counted(
    operator: Operator, device: EnrolledDevice
) -> None:
    operator.run("group", "create", "pilot", "--description", "first to get anything")
    assert "1 device came into pilot" in operator.run("group", "add", "pilot", "-q", f"id={device.id}").stderr
    assert operator.json("group", "show", "pilot") == [device.id]
    assert [one["devices"] for one in operator.json("group", "list") if one["name"] == "pilot"] == [1]
    operator.run("query", "save", "quiet-pilots", "group = pilot and not online")
    [saved] = operator.json("query", "show", "quiet-pilots")
    assert saved["query"] == "group = pilot and not online"
    assert [one["id"] for one in operator.json("device", "list", "--all", "-q", "query=quiet-pilots")] == [device.id]
    assert operator.json("device", "summary", "-q", "group=pilot")["devices"] == 1
    assert "expected a value at character 7" in operator.refused("device", "list", "-q", "group=")
    assert "there is no group 'pilots'" in operator.refused("device", "list", "-q", "group=pilots")
    operator.run("query", "delete", "quiet-pilots")
    assert "1 device left pilot" in operator.run("group", "remove", "pilot", device.id).stderr
    operator.run("group", "delete", "pilot", "--yes")


async def _report(device: EnrolledDevice, folder: Path, module: ModuleReport, counter: int) -> None:
    tls = device.context(folder)
    async with aiomqtt.Client(
        "localhost", device.answer.mqtt_port, identifier=device.id, protocol=aiomqtt.ProtocolVersion.V5, tls_context=tls
    ) as client:
        signed = device.sign(make_report(device.id, counter, director_version=99, modules=(module,)))
        await client.publish(up(device.id, "state"), encode(signed), qos=1)


def test_watching_a_rollout_ends_with_it_and_says_how_it_went(
    operator: Operator, device: EnrolledDevice, signed: str, tmp_path: Path
) -> None:
    target = ("--target", f"id={device.id}", "--device-deadline", "300")
    status = operator.json("rollout", "create", signed, *target)
    rollout = status["rollout"]["id"]
    assert status["rollout"]["state"] == "draft"
    operator.run("rollout", "start", rollout)
    assert "under way on cam-001" in operator.refused("rollout", "create", signed, *target, "--start")
    digest = operator.json("module", "show", f"{signed}/{PROFILE}")[0]["manifest_sha256"]
    with operator.process("rollout", "status", rollout, "--watch", "-o", "json", stdout=subprocess.PIPE) as watching:
        module = ModuleReport("iris", 1, digest, 1, rollout, "serving", True, requests=7)
        asyncio.run(_report(device, tmp_path, module, counter=1))
        text, _ = watching.communicate(timeout=40)
    assert watching.returncode == 0
    assert json.loads(text)["rollout"]["state"] == "finished"
    assert "iris:1 serving" in operator.run("device", "list").stdout
    assert "iris:1" in operator.run("device", "show", device.id).stdout
    assert operator.run("rollout", "status", rollout, "--watch").exit_code == 0
    assert "finished" in operator.run("rollout", "list").stdout


def test_an_aborted_rollout_makes_watching_it_fail(operator: Operator, device: EnrolledDevice, files: Path) -> None:
    operator.run("model", "register", "iris", files / "model.onnx")
    operator.run("module", "build", "iris:2", "-p", PROFILE, "--reference", files / "train.npz")
    operator.run("module", "sign", "iris:2")
    rollout = operator.json("rollout", "create", "iris:2", "--target", "site=lab", "--start")["rollout"]["id"]
    operator.run("rollout", "pause", rollout)
    assert "it is paused" in operator.refused("rollout", "pause", rollout)
    operator.run("rollout", "resume", rollout)
    aborted = operator.run("rollout", "abort", rollout, "--reason", "wrong labels").stdout
    assert "aborted (wrong labels)" in aborted
    operator.run("rollout", "status", rollout, "--watch", status=1)


def test_an_interrupt_ends_watching_quietly_with_130(operator: Operator, device: EnrolledDevice, files: Path) -> None:
    operator.run("model", "register", "other", files / "model.onnx")
    operator.run("module", "build", "other:1", "-p", PROFILE, "--reference", files / "train.npz")
    operator.run("module", "sign", "other:1")
    rollout = operator.json("rollout", "create", "other:1", "--target", "all", "--start")["rollout"]["id"]
    terminal, end = pty.openpty()
    try:
        with operator.process("rollout", "status", rollout, "--watch", stdout=end, stderr=end) as watching:
            shown = _read_until(terminal, b"group 1")
            watching.send_signal(signal.SIGINT)
            assert watching.wait(20) == 130
            shown += _read_until(terminal, b"", still=False)
    finally:
        os.close(end)
        os.close(terminal)
        operator.run("rollout", "abort", rollout)
    assert b"Traceback" not in shown


def _read_until(terminal: int, words: bytes, still: bool = True) -> bytes:
    text, limit = b"", time.monotonic() + 30
    while (words not in text or not still) and time.monotonic() < limit:
        if not select.select([terminal], [], [], 1.0 if still else 0.0)[0]:
            if still:
                continue
            break
        text += os.read(terminal, 65536)
    assert words in text, text
    return text


# --- monitoring, context, help --------------------------------------------------------------------------------


def test_monitoring_says_that_nothing_has_been_seen_yet(operator: Operator, signed: str, tmp_path: Path) -> None:
    assert "on fleet: nothing has been counted yet" in operator.run("drift", "show", signed).stdout
    assert operator.json("alerts", "list") == []
    assert operator.json("samples", "list") == []
    operator.run("samples", "export", tmp_path / "samples.ndjson")
    assert (tmp_path / "samples.ndjson").read_bytes() == b""
    assert operator.run("samples", "export", "-").stdout == ""


def test_the_audit_trail_is_listed_by_subject(operator: Operator, signed: str) -> None:
    kinds = [event["kind"] for event in operator.json("events", "list", "--subject", "iris:1")]
    assert "model.registered" in kinds
    assert "model.registered" in operator.run("events", "list", "--limit", 1000).stdout


def test_login_checks_the_hub_and_keeps_the_context_private(
    operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, url = tmp_path / "kept.toml", HubContext.load(operator.paths.context).url
    ca = ("--ca", operator.paths.server_ca_crt)
    operator.run("--context", context, "login", url, "--token-file", operator.paths.operator_token, *ca)
    assert context.stat().st_mode & 0o777 == 0o600
    operator.run("--context", context, "model", "list")
    wrong = tmp_path / "wrong.token"
    wrong.write_text("mho_wrong\n")
    context.unlink()
    refused = operator.refused("--context", context, "login", url, "--token-file", wrong, *ca)
    assert "the token is not known to this hub; nothing was kept" in refused
    assert not context.exists()


def test_a_hub_that_is_not_there_or_not_the_right_one_is_named(operator: Operator, tmp_path: Path) -> None:
    known = HubContext.load(operator.paths.context)
    HubContext("https://localhost:9", known.token, known.ca).write(tmp_path / "gone.toml")
    assert "is the hub running" in operator.refused("--context", tmp_path / "gone.toml", "model", "list")
    HubContext(known.url, known.token, str(operator.paths.device_ca_crt)).write(tmp_path / "foreign.toml")
    assert "was not issued by" in operator.refused("--context", tmp_path / "foreign.toml", "model", "list")
    assert "log in with `mooring login URL`" in operator.refused("--context", tmp_path / "none.toml", "model", "list")
    (tmp_path / "broken.toml").write_text("url = 7")
    assert "write it anew" in operator.refused("--context", tmp_path / "broken.toml", "model", "list")


# --- tab completion -------------------------------------------------------------------------------------------


def completed(environment: dict[str, str], *words: str) -> list[str]:
    """What bash is told for the last word, by the protocol of the script that it has from --install-completion."""
    asked = {"_MOORING_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(("mooring", *words))}
    asked["COMP_CWORD"] = str(len(words))
    run = subprocess.run(
        [COMMAND], env={**os.environ, **environment, **asked}, capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stderr == ""
    return run.stdout.split()


@pytest.fixture(scope="module")
def named(operator: Operator, signed: str, device: EnrolledDevice) -> Operator:
    """A hub with something of every name."""
    operator.run("group", "create", "first-group", "--description", "of\ntwo lines")
    operator.run("query", "save", "second-query", "site=lab")
    operator.run("rollout", "create", signed, "--target", f"id={device.id}")
    return operator


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("device", "show", "cam"), ["cam-001"]),
        (("device", "show", "cam-2"), []),
        (("group", "add", "first-group", "c"), ["cam-001"]),
        (("query", "show", ""), ["second-query"]),
        (("rollout", "status", "r"), ["r1"]),
        (("config", "show", "ir"), ["iris"]),
        (("samples", "list", "--module", ""), ["iris"]),
        (("rollout", "create", "ir"), ["iris:1"]),
        (("module", "show", "ir"), ["iris:1"]),
        (("module", "build", "ir"), ["iris:1"]),
    ],
)
def test_names_that_the_hub_knows_are_completed(named: Operator, words: tuple[str, ...], names: list[str]) -> None:
    found = completed(named.environment, *words)
    assert set(names) <= set(found)
    assert bool(found) == bool(names)
    assert all(name.startswith(words[-1]) for name in found)


def test_bash_gets_what_is_behind_the_colon_where_it_ends_words(named: Operator) -> None:
    script = (
        'eval "$(_MOORING_COMPLETE=source_bash mooring)"; COMP_WORDS=(mooring module show iris :); COMP_CWORD=4; '
        "_mooring_completion mooring; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    path = f"{Path(COMMAND).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **named.environment, "PATH": path}
    run = subprocess.run(
        ["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "1" in run.stdout.split()
    assert run.stderr == ""
    assert completed(named.environment, "module", "show", "iris", ":", "1/") == [f"1/{PROFILE}"]
    assert completed(named.environment, "module", "show", "iris", ":", "99") == []
    assert completed(named.environment, "rollout", "create", "iris", ":", "1", "--dry") == ["--dry-run"]


def test_completion_asks_the_hub_that_the_command_line_names(named: Operator, tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "MOORING_CONTEXT": ""}
    context = ("--context", str(named.paths.context))
    assert completed(environment, *context, "device", "show", "c") == ["cam-001"]


def test_without_a_hub_a_login_or_a_context_nothing_is_completed_and_nothing_said(
    named: Operator, tmp_path: Path
) -> None:
    known = HubContext.load(named.paths.context)
    HubContext("https://localhost:9", known.token, known.ca).write(tmp_path / "gone.toml")
    HubContext(known.url, "mho_wrong", known.ca).write(tmp_path / "stranger.toml")
    HubContext(known.url, known.token, str(tmp_path / "none.crt")).write(tmp_path / "no-ca.toml")
    (tmp_path / "broken.toml").write_text("url = 7")
    for name in ("gone", "stranger", "no-ca", "broken", "none"):
        assert completed({"MOORING_CONTEXT": str(tmp_path / f"{name}.toml")}, "device", "show", "c") == []


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ('[{"id": "cam-1$(touch /tmp/no)"}, {"id": "cam-2"}, {"id": "cam-3\\ncam-4"}]', ["cam-2"]),
        ('[{"name": "cam-1"}]', []),
        ('{"id": "cam-1"}', []),
        ("[1]", []),
        ("<html>", []),
    ],
)
def test_only_plain_names_of_an_answer_come_to_the_shell_which_evaluates_them(
    named: Operator, tmp_path: Path, rows: str, names: list[str]
) -> None:
    class Strange(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(rows.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    known = HubContext.load(named.paths.context)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(named.paths.server_crt, named.paths.server_key)
    with HTTPServer(("127.0.0.1", 0), Strange) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.timeout = 30
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        HubContext(f"https://localhost:{server.server_port}", known.token, known.ca).write(tmp_path / "strange.toml")
        assert completed({"MOORING_CONTEXT": str(tmp_path / "strange.toml")}, "device", "show", "cam") == names
        answering.join(60)


def test_completion_does_not_wait_for_a_hub_that_says_nothing(named: Operator, tmp_path: Path) -> None:
    known = HubContext.load(named.paths.context)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never answers
        url = f"https://localhost:{silent.getsockname()[1]}"
        HubContext(url, known.token, known.ca).write(tmp_path / "silent.toml")
        assert completed({"MOORING_CONTEXT": str(tmp_path / "silent.toml")}, "device", "show", "c") == []


def test_help_and_completion_load_none_of_the_heavy_libraries() -> None:
    program = "import sys, cloud_hub.operator.cli\nprint(*sorted(m for m in sys.modules if '.' not in m))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert {"aiohttp", "sqlalchemy", "numpy", "tuf", "onnx"} & set(run.stdout.split()) == set()


def test_every_table_is_plain_text_where_there_is_no_terminal(operator: Operator, signed: str) -> None:
    text = operator.run("module", "list").stdout
    assert "\x1b" not in text
    assert io.StringIO(text).readline().split() == ["module", "publisher", "size", "manifest", "release", "changed"]
