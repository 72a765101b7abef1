"""A folder that somebody brought: only regular files at known names, nothing outside of it, gone at any moment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.errors import LinkDown, Refused
from agent.offline.folder import MAX_METADATA_BYTES, Folder, FolderError
from agent.offline.source import FolderSource
from modules import offline
from modules.bundle import sha256_hex
from modules.offline import NOTE_FILE
from support.repository import World
from support.stick import largest_blob, write_stick

DEVICE = "cam-17"


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    world = World()
    world.install()
    return write_stick(world, tmp_path / "stick")


def refused(stick: Path, key: str, look: str = "timestamp.json") -> str:
    with pytest.raises(FolderError) as caught:
        Folder(stick).metadata("image", DEVICE, look, 0, 1000)
    assert caught.value.key == key
    return str(caught.value)


def test_a_whole_folder_is_read(stick: Path) -> None:
    folder, blob = Folder(stick), largest_blob(stick)
    assert folder.check(DEVICE).complete
    assert folder.blob(blob.name, 3, 10) == blob.read_bytes()[3:13]
    assert folder.blob_size(blob.name) == blob.stat().st_size
    size, data = folder.metadata("director", DEVICE, "targets.json", 0, 10)
    assert (size, data) == (
        (stick / "director" / DEVICE / "targets.json").stat().st_size,
        (stick / "director" / DEVICE / "targets.json").read_bytes()[:10],
    )


def test_a_blob_in_parts_is_one(stick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(250)) * 4
    digest = sha256_hex(data)
    for module in (offline, __import__("agent.offline.folder", fromlist=["x"])):
        monkeypatch.setattr(module, "PART_BYTES", 400)
    for name, start, end in offline.parts_of(digest, len(data)):
        (stick / "blobs" / name).write_bytes(data[start:end])
    folder = Folder(stick)
    assert folder.blob_size(digest) == 1000
    assert folder.blob(digest, 350, 500) == data[350:850]
    assert folder.blob(digest, 900, 500) == data[900:]


def test_no_link_is_followed(stick: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of another")
    file = stick / "image" / "timestamp.json"
    file.unlink()
    file.symlink_to(secret)
    assert "got a link" in refused(stick, "not-regular")


def test_no_folder_behind_a_link_is_entered(stick: Path, tmp_path: Path) -> None:
    (stick / "image").rename(tmp_path / "elsewhere")
    (stick / "image").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FolderError):
        Folder(stick).metadata("image", DEVICE, "timestamp.json", 0, 10)


def test_a_pipe_does_not_stop_the_agent(stick: Path) -> None:
    file = stick / "image" / "timestamp.json"
    file.unlink()
    os.mkfifo(file)
    assert "expected a regular file" in refused(stick, "not-regular")


@pytest.mark.parametrize("name", ["../roots/x.json", "/etc/passwd", "", ".hidden", "a/b"])
def test_only_plain_names_are_looked_up(stick: Path, name: str) -> None:
    refused(stick, "bad-name", name)


def test_metadata_without_end_is_refused(stick: Path) -> None:
    with (stick / "image" / "timestamp.json").open("wb") as file:
        file.truncate(MAX_METADATA_BYTES + 1)
    refused(stick, "too-large")


def test_a_stick_that_was_pulled_out_is_told_from_a_file_that_is_missing(stick: Path) -> None:
    (stick / "image" / "timestamp.json").unlink()
    assert "is missing" in refused(stick, "file-missing")
    stick.rename(stick.with_name("away"))
    assert "pulled out" in refused(stick, "folder-gone")
    stick.mkdir()  # the mount point that it leaves behind
    assert "pulled out" in refused(stick, "folder-gone")


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"{}",
        b"\xff",
        b'{"format":2,"devices":[],"made_at":0,"valid_until":0}',
        b'{"format":1,"devices":[],"made_at":0,"valid_until":1e300}',
    ],
)
def test_a_note_that_is_none_is_refused(stick: Path, note: bytes) -> None:
    (stick / NOTE_FILE).write_bytes(note)
    with pytest.raises(FolderError) as caught:
        Folder(stick).check(DEVICE)
    assert caught.value.key == "folder-no-export"


async def test_the_source_says_in_the_links_words_what_it_met(stick: Path) -> None:
    source = FolderSource(DEVICE)
    try:
        with pytest.raises(LinkDown, match="no folder"):
            await source.read("0" * 64, 0, 10, 5.0)
        source.folder = Folder(stick)
        with pytest.raises(Refused) as caught:
            await source.read("0" * 64, 0, 10, 5.0)
        assert caught.value.key == "not-found"
        with pytest.raises(Refused) as caught:
            await source.get("blob", "../x")
        assert caught.value.key == "bad-request"
        blob = largest_blob(stick)
        assert (await source.get("blob", blob.name)).data == blob.read_bytes()
        stick.rename(stick.with_name("away"))
        with pytest.raises(LinkDown, match="pulled out"):
            await source.read(blob.name, 0, 10, 5.0)
    finally:
        source.close()
