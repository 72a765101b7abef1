import json
import signal
import ssl
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cloud_hub import __version__
from cloud_hub.cli import app
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import BadRequest, NotFound
from cloud_hub.trust.keys import ONLINE, offline
from support.waiting import until_blocking

HUB = [sys.executable, "-c", "from cloud_hub.cli import main; main()"]
PORTS = ("--api-port", "0", "--mqtt-port", "0")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


@pytest.fixture
def hub(tmp_path: Path) -> HubPaths:
    """A development hub, freshly made."""
    result = run("init", str(tmp_path / "hub"), "--dev", *PORTS)
    assert result.exit_code == 0, result.output
    return HubPaths(tmp_path / "hub")


@contextmanager
def serving(paths: HubPaths) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The hub as a process of its own, ready, with what its ready file says. Stopped with SIGTERM."""
    ready = paths.root.parent / "ready.json"
    command = [*HUB, "serve", str(paths.root), "--ready-file", str(ready)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            until_blocking(lambda: ready.exists() or process.poll() is not None, "the hub to be ready")
            assert process.poll() is None, process.communicate()[0]
            yield process, json.loads(ready.read_text())
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


def ask(paths: HubPaths, path: str, body: object = None, token: bool = True) -> Any:
    """The API's answer, over TLS checked with the hub's CA."""
    context = tomllib.loads(paths.context.read_text())
    headers = {"Authorization": f"Bearer {context['token']}"} if token else {}
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{context['url']}/api/v1{path}", data=data, headers=headers)
    tls = ssl.create_default_context(cafile=context["ca"])
    with urllib.request.urlopen(request, timeout=20, context=tls) as answer:
        return json.loads(answer.read())


def test_a_development_hub_has_every_key_and_says_so_loudly(tmp_path: Path) -> None:
    result = run("init", str(tmp_path / "hub"), "--dev", *PORTS)
    paths = HubPaths(tmp_path / "hub")
    assert "ALL private keys" in result.stderr
    assert {path.stem for path in paths.keys.iterdir()} == {*ONLINE, *offline("dev")}


def test_nobody_else_may_read_anything_in_a_hub(hub: HubPaths) -> None:
    modes = {path.stat().st_mode & 0o077 for path in (hub.root, *hub.root.rglob("*"))}
    assert modes == {0}


def test_the_operators_token_is_in_a_file_and_only_its_digest_in_the_database(hub: HubPaths) -> None:
    token = hub.operator_token.read_text().strip()
    assert tomllib.loads(hub.context.read_text()) == {
        "url": HubConfig.load(hub.root).api_url, "token": token, "ca": str(hub.server_ca_crt),
        "image_root": str(hub.roots / "image.root.json"), "director_root": str(hub.roots / "director.root.json"),
    }  # fmt: skip
    assert token.encode() not in hub.database.read_bytes()


def test_a_real_hub_needs_a_place_for_its_offline_keys_and_keeps_none_of_them(tmp_path: Path) -> None:
    refused = run("init", str(tmp_path / "hub"))
    assert (refused.exit_code, "--offline-keys" in refused.stderr) == (1, True)
    assert files_in(tmp_path) == []
    made = run("init", str(tmp_path / "hub"), "--offline-keys", str(tmp_path / "safe"), *PORTS)
    assert (made.exit_code, "ALL private keys" in made.stderr) == (0, False)
    assert {path.stem for path in (tmp_path / "hub" / "keys").iterdir()} == set(ONLINE)
    assert {path.stem for path in (tmp_path / "safe").glob("*.pem")} == set(offline("dev"))
    assert {path.name for path in (tmp_path / "safe").glob("*.json")} == {"image.root.json", "director.root.json"}


def test_offline_keys_inside_the_hub_are_refused(tmp_path: Path) -> None:
    result = run("init", str(tmp_path / "hub"), "--offline-keys", str(tmp_path / "hub" / "safe"))
    assert (result.exit_code, "lies inside the hub" in result.stderr) == (1, True)
    assert files_in(tmp_path) == []


def test_a_hub_is_never_made_over_another_or_over_other_files(hub: HubPaths, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in hub.root.rglob("*") if path.is_file()}
    again = run("init", str(hub.root), "--dev")
    assert (again.exit_code, "there is a hub already" in again.stderr) == (1, True)
    assert {path: path.read_bytes() for path in hub.root.rglob("*") if path.is_file()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    other = run("init", str(tmp_path / "other"), "--dev")
    assert (other.exit_code, "found thesis.txt" in other.stderr) == (1, True)
    assert files_in(tmp_path / "other") == ["thesis.txt"]


def test_a_failed_init_leaves_everything_as_it_was(tmp_path: Path) -> None:
    safe = tmp_path / "safe"
    safe.mkdir()
    (safe / "image-targets.pem").write_text("an old key")
    result = run("init", str(tmp_path / "hub"), "--offline-keys", str(safe))
    assert result.exit_code == 1
    assert files_in(tmp_path) == ["safe", "safe/image-targets.pem"]
    assert (safe / "image-targets.pem").read_text() == "an old key"


def test_a_hub_can_be_made_in_an_empty_folder_with_remains_of_an_interrupted_try(tmp_path: Path) -> None:
    (tmp_path / "hub" / ".init-remains" / "keys").mkdir(parents=True)
    assert run("init", str(tmp_path / "hub"), "--dev", *PORTS).exit_code == 0
    assert [path.name for path in (tmp_path / "hub").glob(".init-*")] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--look", "0"), "look_s: expected a number above 0"),
        (("--publisher", "My Team"), "publisher: expected"),
        (("--broker", "http://broker"), "broker: expected mqtts://HOST:PORT"),
        (("--api-port", "70000"), "less than or equal to 65535"),
    ],
)
def test_settings_that_cannot_be_are_refused_as_a_wrong_command(
    tmp_path: Path, arguments: tuple[str, str], words: str
) -> None:
    result = run("init", str(tmp_path / "hub"), "--dev", *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert files_in(tmp_path) == []


def test_free_ports_are_picked_once_and_kept(hub: HubPaths) -> None:
    first, second = HubConfig.load(hub.root), HubConfig.load(hub.root)
    assert first == second
    assert first.api_port != first.mqtt_port


def test_the_environment_overrides_the_file_and_wrong_settings_are_named(hub: HubPaths) -> None:
    config = HubConfig.load(hub.root, {"MOORING_HUB_LOOK_S": "60", "MOORING_HUB_DEV": "false"})
    assert (config.look_s, config.dev) == (60.0, False)
    with pytest.raises(BadRequest, match=r"look_s.*nothing was started"):
        HubConfig.load(hub.root, {"MOORING_HUB_LOOK_S": "long"})
    hub.config.write_text(hub.config.read_text() + "colour = 1\n")
    with pytest.raises(BadRequest, match=r"colour.*nothing was started"):
        HubConfig.load(hub.root, {})


def test_commands_on_a_folder_without_a_hub_say_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="mooring-hub init"):
        HubConfig.load(tmp_path)
    for command in ("serve", "doctor"):
        result = run(command, str(tmp_path / "none"))
        assert result.exit_code == 1
        assert "mooring-hub init" in " ".join(result.output.split())
    assert files_in(tmp_path) == []


def test_the_description_of_the_api_is_printed_as_json() -> None:
    result = run("openapi")
    assert json.loads(result.stdout)["openapi"] == "3.1.0"


def test_doctor_is_content_with_a_new_hub_and_names_what_is_wrong(hub: HubPaths) -> None:
    assert run("doctor", str(hub.root)).exit_code == 0
    (hub.keys / "image-snapshot.pem").unlink()
    hub.server_key.chmod(0o644)
    result = run("doctor", str(hub.root))
    text = "".join(result.output.split())
    assert result.exit_code == 1
    assert "server.key:chmod600" in text
    assert "image-snapshot;restoreabackup" in text


def test_every_command_has_help_with_an_example() -> None:
    for command in ("init", "serve", "openapi", "doctor"):
        assert f"mooring-hub {command}" in " ".join(run(command, "--help").output.split()).split("Example:")[1]


def test_a_restarted_hub_has_everything_at_the_same_addresses(hub: HubPaths) -> None:
    with serving(hub) as (_, first):
        assert ask(hub, "/health", token=False) == {"status": "ok", "version": __version__, "broker": True}
        sha256 = ask(hub, "/uploads", b"model bytes")["sha256"]
        made = ask(hub, "/models", {"name": "digits", "files": [{"path": "model.onnx", "sha256": sha256}]})
    with serving(hub) as (_, second):
        assert ask(hub, "/models/digits/1") == made
        assert (second["api"], second["broker"]) == (first["api"], first["broker"])


def test_a_hub_stops_in_order_when_told_to_and_takes_its_ready_file_along(hub: HubPaths) -> None:
    with serving(hub) as (process, _):
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert "ready: API https://localhost:" in output
    assert not (hub.root.parent / "ready.json").exists()


def test_a_second_hub_in_the_same_folder_is_refused(hub: HubPaths) -> None:
    with serving(hub):
        second = subprocess.run([*HUB, "serve", str(hub.root)], capture_output=True, text=True, timeout=30, check=False)
    assert (second.returncode, "another process serves" in second.stderr) == (1, True)


def test_a_hub_whose_port_is_taken_says_which(hub: HubPaths, tmp_path: Path) -> None:
    other = tmp_path / "other"
    port = str(HubConfig.load(hub.root).api_port)
    assert run("init", str(other), "--dev", "--api-port", port, "--mqtt-port", "0").exit_code == 0
    with serving(hub):
        second = subprocess.run([*HUB, "serve", str(other)], capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 1
    assert f":{port}: " in second.stderr
    assert "is another program listening there" in second.stderr


def test_a_client_that_trusts_another_ca_does_not_talk_to_the_hub(hub: HubPaths) -> None:
    with serving(hub) as (_, ready), pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"{ready['api']}/api/v1/health", timeout=20, context=ssl.create_default_context())


def test_the_keys_of_a_hub_that_runs_are_not_sealed(hub: HubPaths) -> None:
    with serving(hub):
        result = run("seal", str(hub.root))
    assert result.exit_code == 1, result.output
    assert "another process serves" in result.output
    assert hub.device_ca_key.is_file()
