"""Row 69 of the table of attacks, and what a machine must not keep: keys that others may read, and core files."""

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.config import StatePaths
from agent.errors import ConfigError
from agent.hardening import check_private as check_agent
from cloud_hub.cli import app
from cloud_hub.config import HubPaths
from cloud_hub.doctor import Finding, examine
from cloud_hub.errors import Conflict, Unavailable
from cloud_hub.hardening import CREDENTIALS, check_private, seal, sealed
from cloud_hub.service import serve
from cloud_hub.trust.keys import ONLINE, Keys, key_folders

# In a child: its memory is closed for the rest of its life.
_DUMPABLE = """
import ctypes, resource
from {module} import keep_memory_private
print(keep_memory_private(), resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""


@pytest.fixture
def hub(tmp_path: Path) -> HubPaths:
    folder = tmp_path / "hub"
    made = CliRunner().invoke(app, ["init", str(folder), "--dev", "--api-port", "0", "--mqtt-port", "0"])
    assert made.exit_code == 0, made.output
    return HubPaths(folder)


def found(paths: HubPaths, subject: str) -> Finding:
    return next(finding for finding in examine(paths) if finding.subject == subject)


@pytest.mark.parametrize("name", ["keys/director-targets.pem", "ca/device-ca.key", "ca/server.key", "operator.token"])
@pytest.mark.parametrize("mode", [0o640, 0o604], ids=["group", "others"])
def test_a_hub_whose_key_others_may_read_does_not_start_row69(hub: HubPaths, name: str, mode: int) -> None:
    (hub.root / name).chmod(mode)
    with pytest.raises(Conflict, match=rf"{name}: expected a file that only its owner can read .* nothing was started"):
        asyncio.run(serve(hub, asyncio.Event().wait, lambda ready: None))
    assert found(hub, "private files").state == "problem"


def test_a_hub_does_not_sign_with_a_key_others_may_read_or_that_is_gone_row69(hub: HubPaths) -> None:
    (hub.keys / "director-targets.pem").chmod(0o644)
    with pytest.raises(Conflict, match="not used"):
        Keys(hub.keys).signer("director-targets")
    (hub.keys / "director-targets.pem").unlink()
    with pytest.raises(Conflict, match="does not hold it, nothing was signed"):
        Keys(hub.keys).signer("director-targets")


@pytest.mark.parametrize("name", ["device.key", "next/device.key"])
def test_an_agent_whose_key_others_may_read_does_not_start_row69(tmp_path: Path, name: str) -> None:
    paths = StatePaths(tmp_path)
    key = paths.identity / name
    key.parent.mkdir(parents=True)
    key.write_text("a key")
    key.chmod(0o600)
    check_agent(paths)
    key.chmod(0o640)
    with pytest.raises(ConfigError, match=r"only its owner can read .* got 0640; the key is not used") as caught:
        check_agent(paths)
    assert caught.value.key == "key-exposed"


@pytest.mark.parametrize("module", ["agent.hardening", "cloud_hub.hardening"])
@pytest.mark.parametrize(("allowed", "said"), [("", "True (0, 0) 0"), ("1", "False")])
def test_no_core_file_and_no_look_into_the_memory(module: str, allowed: str, said: str) -> None:
    program = [sys.executable, "-c", _DUMPABLE.format(module=module)]
    environment = {**os.environ, "MOORING_ALLOW_DUMPS": allowed}
    output = subprocess.run(program, env=environment, capture_output=True, text=True, check=True).stdout
    assert output.startswith(said)


def test_a_hub_that_keeps_plain_keys_says_so(hub: HubPaths) -> None:
    finding = found(hub, "keys at rest")
    assert finding.state == "note"
    assert "plain files, 0600" in finding.text


@pytest.fixture
def sealing(hub: HubPaths) -> HubPaths:
    """A hub on a machine that can seal."""
    program = shutil.which("systemd-creds")
    if program is None:
        pytest.skip("systemd-creds is not installed")
    probe = hub.root.parent / "probe"
    probe.write_text("x")
    tried = subprocess.run([program, "encrypt", "--name=x", str(probe), str(probe) + ".cred"], capture_output=True)
    if tried.returncode != 0:
        pytest.skip(f"systemd-creds cannot seal here: {tried.stderr.decode().strip()[-200:]}")
    return hub


def test_sealed_keys_are_used_as_systemd_opens_them(sealing: HubPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: (sealing.keys / f"{name}.pem").read_bytes() for name in ONLINE}
    result = CliRunner().invoke(app, ["seal", str(sealing.root)])
    assert result.exit_code == 0, result.output
    assert not any((sealing.keys / f"{name}.pem").exists() for name in ONLINE)
    assert not sealing.device_ca_key.exists()
    assert found(sealing, "keys at rest").state == "ok"
    assert found(sealing, "signing keys").state != "problem"
    with pytest.raises(Conflict, match="does not hold it"):
        Keys(*key_folders(sealing)).signer("director-targets")
    # What systemd does with the lines that were printed, at the start of the unit.
    opened = sealing.root.parent / "credentials"
    opened.mkdir()
    for line in result.output.splitlines():
        if line.startswith("LoadCredentialEncrypted="):
            name, place = line.removeprefix("LoadCredentialEncrypted=").split(":", 1)
            subprocess.run(["systemd-creds", "decrypt", f"--name={name}", place, str(opened / name)], check=True)
            (opened / name).chmod(0o440)  # as systemd shows them to a unit's user
    monkeypatch.setenv(CREDENTIALS, str(opened))
    for name, key in before.items():
        assert Keys(*key_folders(sealing)).signer(name).public_key is not None
        assert (opened / f"{name}.pem").read_bytes() == key
        assert key not in sealed(sealing.keys / f"{name}.pem", sealing).read_bytes()
    check_private(sealing)


def test_a_machine_that_cannot_seal_keeps_the_plain_files(hub: HubPaths, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setenv("PATH", str(hub.root))
    with pytest.raises(Unavailable, match="no systemd-creds"):
        seal(hub, [hub.device_ca_key])
    fake = hub.root / "systemd-creds"
    fake.write_text("#!/bin/sh\necho no key here >&2; exit 1\n")
    fake.chmod(0o700)
    with pytest.raises(Conflict, match="no key here; the plain files stay"):
        seal(hub, [hub.device_ca_key])
    assert hub.device_ca_key.exists()
