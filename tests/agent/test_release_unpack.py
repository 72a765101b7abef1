"""Wheels become an environment whose own packages come first, or nothing that is marked as whole."""

from __future__ import annotations

import stat
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from agent.errors import UpdateError
from agent.release import unpack as unpacking
from agent.release.environment import Environments
from agent.release.pointer import COMPLETE, FOLDER
from agent.release.unpack import WheelError, unpack
from support.releases import agent_wheel

RELEASE = "d" * 32
PACKAGES = [sysconfig.get_path("purelib")]


def wheel(folder: Path, members: dict[str, bytes], mode: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "thing-1.0-py3-none-any.whl", "w") as archive:
        for name, data in members.items():
            information = zipfile.ZipInfo(name)
            information.external_attr = mode << 16
            archive.writestr(information, data)
    return folder


def test_what_a_release_brings_stands_before_what_is_installed(tmp_path: Path) -> None:
    members = {
        "msgspec/__init__.py": b"x = 'ours'",
        "thing.data/purelib/other.py": b"y = 1",
        "thing.data/scripts/tool": b"#!/bin/sh\n",
        "thing.data/headers/a.h": b"",
    }
    slot = wheel(tmp_path / "slot", members)
    unpack(slot, tmp_path / "env", PACKAGES)
    assert (tmp_path / "env" / COMPLETE).is_file()
    code = "import msgspec, other, numpy; print(msgspec.x, other.y, 'site-packages' in numpy.__file__)"
    python = str(tmp_path / "env" / "bin" / "python")
    said = subprocess.run([python, "-E", "-P", "-c", code], capture_output=True, text=True, check=True, timeout=50)
    assert said.stdout == "ours 1 True\n"
    assert (tmp_path / "env" / "bin" / "tool").stat().st_mode & 0o111
    assert not list((tmp_path / "env").rglob("a.h"))


@pytest.mark.parametrize(
    ("name", "mode"),
    [("../out.py", 0), ("/etc/out.py", 0), ("a/../../out.py", 0), ("thing.data/purelib/../../../out.py", 0),
     ("a\\b.py", 0), ("link", stat.S_IFLNK | 0o777)],
)  # fmt: skip
def test_a_wheel_that_would_write_elsewhere_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    slot = wheel(tmp_path / "slot", {name: b"/etc/passwd"}, mode)
    with pytest.raises(WheelError, match="does not stay inside its folder"):
        unpack(slot, tmp_path / "env", PACKAGES)
    assert not (tmp_path / "env" / COMPLETE).exists()
    assert not (tmp_path / "out.py").exists()


def test_a_wheel_that_grows_beyond_all_bounds_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MAX_UNPACKED_BYTES", 100_000)
    slot = wheel(tmp_path / "slot", {"zeros.bin": bytes(200_000)})
    with pytest.raises(WheelError, match="at most 100000 bytes"):
        unpack(slot, tmp_path / "env", PACKAGES)


def test_what_is_no_archive_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "slot").mkdir()
    (tmp_path / "slot" / "broken.whl").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(WheelError, match=r"broken\.whl"):
        unpack(tmp_path / "slot", tmp_path / "env", PACKAGES)


async def test_a_release_that_does_not_unpack_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    slot = wheel(tmp_path / "slot", {"../out.py": b""})
    with pytest.raises(UpdateError, match="does not stay inside its folder") as caught:
        await Environments(tmp_path, 1).build(RELEASE, slot)
    assert caught.value.key == "release-unpack"
    assert not (tmp_path / FOLDER / RELEASE).exists()


async def test_a_release_that_would_leave_a_newer_database_is_refused(tmp_path: Path) -> None:
    """It could not be taken back: the agent that runs now reads an older one."""
    from agent.config import AgentConfig, StatePaths
    from firmware_profiles.catalog import built_in

    paths = StatePaths(tmp_path / "state")
    paths.root.mkdir()
    config = AgentConfig("cam-17", "https://localhost:1", "localhost", 1, built_in()["generic-x86_64"])
    paths.config.write_text(config.to_toml())
    subprocess.run([sys.executable, "-m", "agent.schema", str(paths.database)], check=True, timeout=50)
    slot = tmp_path / "slot"
    slot.mkdir()
    agent_wheel(slot, "9.0.0")
    assert await Environments(paths.root, schema=99).build(RELEASE, slot) == "9.0.0"
    with pytest.raises(UpdateError, match="it could not be reverted") as caught:
        await Environments(paths.root, schema=0).build(RELEASE, slot)
    assert caught.value.key == "release-check"
