"""`mooring-hub blobs move` and `doctor`: a hub's files go to a bucket and back, and the hub goes on with them there."""

import asyncio
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from cloud_hub.cli import app
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.context import HubContext
from support.s3 import S3, running_s3
from support.waiting import until_blocking

HUB = [sys.executable, "-c", "from cloud_hub.cli import main; main()"]
TO = "s3://models/fleet"
MODEL, TENSOR = b"a model" * 1000, b"a tensor"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as server:
        server.make("models")
        yield server


@pytest.fixture
def hub(s3: S3, tmp_path: Path) -> HubPaths:
    """A development hub that knows the store, with files in its folder."""
    settings = s3.settings(tmp_path)
    lines = (f"{name} = {json.dumps(value)}\n" for name, value in msgspec.to_builtins(settings).items())
    (tmp_path / "more.toml").write_text("[bucket]\n" + "".join(lines))
    more = ("--settings", str(tmp_path / "more.toml"))
    result = run("init", str(tmp_path / "hub"), "--dev", "--api-port", "0", "--mqtt-port", "0", *more)
    assert result.exit_code == 0, result.output
    paths = HubPaths(tmp_path / "hub")
    assert HubConfig.load(paths.root).bucket == settings
    stored(paths.blobs, MODEL)
    stored(paths.sample_blobs, TENSOR)
    return paths


def stored(folder: Path, data: bytes) -> Path:
    sha256 = hashlib.sha256(data).hexdigest()
    place = folder / sha256[:2] / sha256
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    return place


@contextmanager
def serving(paths: HubPaths) -> Iterator[None]:
    """As a process of its own, until the end of the block."""
    ready = paths.root.parent / "ready.json"
    command = [*HUB, "serve", str(paths.root), "--ready-file", str(ready)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            until_blocking(lambda: ready.exists() or process.poll() is not None, "the hub to be ready", 60)
            assert process.poll() is None, process.communicate()[0]
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


async def asked(paths: HubPaths, data: bytes) -> dict[str, Any]:
    """What the hub says of a file that is put there anew and read."""
    async with HubClient(HubContext.load(paths.context)) as client:
        (paths.root.parent / "upload").write_bytes(data)
        uploaded = await client.upload(paths.root.parent / "upload")
        return {"sha256": uploaded.sha256, "back": await client.blob(uploaded.sha256), "old": await client.blob(
            hashlib.sha256(MODEL).hexdigest())}  # fmt: skip


@pytest.mark.timeout(300)  # two hubs are started, one after the other
def test_files_go_to_a_bucket_beside_a_running_hub_and_are_its_own_after_a_stop(hub: HubPaths) -> None:
    with serving(hub):
        beside = run("blobs", "move", str(hub.root), TO)
        assert beside.exit_code == 0, beside.output
        assert "2 sent now" in beside.output
        assert "stop it and run this again" in beside.output
    assert HubConfig.load(hub.root).blobs == "folder"
    stored(hub.blobs, b"it came after the first round")
    alone = run("blobs", "move", str(hub.root), TO)
    assert "3 files" in alone.output
    assert "1 sent now" in alone.output
    assert HubConfig.load(hub.root).blobs == TO
    assert (run("blobs", "move", str(hub.root), TO).exit_code, hub.blobs.is_dir()) == (1, True)
    hub.blobs.rename(hub.root / "old-blobs")
    assert TO in run("doctor", str(hub.root)).output
    with serving(hub):
        found = asyncio.run(asked(hub, b"a new model"))
    assert (found["back"], found["old"]) == (b"a new model", MODEL)
    back = run("blobs", "move", str(hub.root), "folder")
    assert "4 files" in back.output
    assert (hub.blobs / found["sha256"][:2] / found["sha256"]).read_bytes() == b"a new model"


def test_a_file_that_is_damaged_stops_the_move_and_changes_no_setting(hub: HubPaths) -> None:
    stored(hub.blobs, b"sound").write_bytes(b"spoilt")
    result = run("blobs", "move", str(hub.root), "s3://models/another")
    assert result.exit_code == 1
    assert "blob-damaged" in result.output
    assert HubConfig.load(hub.root).blobs == "folder"


def test_a_store_that_is_away_is_said_by_the_move_and_by_doctor(hub: HubPaths, s3: S3) -> None:
    quick = msgspec.structs.replace(HubConfig.load(hub.root).bucket, request_timeout_s=0.3)
    msgspec.structs.replace(HubConfig.load(hub.root), bucket=quick).write(hub.root)
    with s3.away():
        moving = run("blobs", "move", str(hub.root), TO)
        assert (moving.exit_code, "blob-store-unreachable" in moving.output) == (1, True)
        assert HubConfig.load(hub.root).blobs == "folder"
        msgspec.structs.replace(HubConfig.load(hub.root), blobs=TO).write(hub.root)
        examined = run("doctor", str(hub.root))
        assert (examined.exit_code, TO in examined.output) == (1, True)


@pytest.mark.parametrize("to", ["s3://", "/elsewhere", "folder"])
def test_a_place_that_is_none_or_the_same_is_refused(hub: HubPaths, to: str) -> None:
    assert run("blobs", "move", str(hub.root), to).exit_code == 1
