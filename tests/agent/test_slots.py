"""Slots: whole or not there, read-only, and only of exactly the signed bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.config import StatePaths
from agent.slots import SlotError, Slots, verify_file
from modules.bundle import FileEntry
from modules.manifest import Runtime
from support.built import assemble, build, entry, install

DATA = b"the signed bytes"
ENTRY = entry("model.onnx", DATA)


@pytest.fixture
def slots(state_dir: StatePaths) -> Slots:
    return Slots(state_dir.slots)


def test_a_slot_holds_the_manifest_and_every_file_and_cannot_be_written(slots: Slots, state_dir: StatePaths) -> None:
    module = assemble("deep", 1, {"model.onnx": b"m", "data/labels.txt": b"l"}, Runtime())
    slot = install(slots, module, state_dir.staging)
    assert slot.path.name == module.sha256[:32]
    assert slot.manifest == module.manifest
    assert {p.relative_to(slot.path).as_posix(): p.stat().st_mode & 0o222 for p in slot.path.rglob("*")} == {
        "manifest.json": 0, "model.onnx": 0, "data": 0, "data/labels.txt": 0,
    }  # fmt: skip


def test_a_staged_file_stays_until_staging_is_cleared_so_that_staging_can_be_repeated(
    slots: Slots, state_dir: StatePaths
) -> None:
    module = build()
    install(slots, module, state_dir.staging)
    assert (
        slots.make(module.manifest_bytes, module.manifest, lambda file: state_dir.staging / file.sha256).manifest_sha256
        == module.sha256
    )


def test_a_half_made_slot_is_cleaned_away_and_its_links_with_it(slots: Slots, state_dir: StatePaths) -> None:
    staged = state_dir.staging / ENTRY.sha256
    staged.write_bytes(DATA)
    half = state_dir.slots / ".new-0123"
    half.mkdir()
    os.link(staged, half / "model.onnx")
    half.chmod(0o555)
    with pytest.raises(SlotError, match="expected one name, got 2"):
        verify_file(staged, ENTRY)
    slots.clean()
    verify_file(staged, ENTRY)


def test_a_missing_file_leaves_no_slot_behind(slots: Slots, state_dir: StatePaths) -> None:
    module = build()
    with pytest.raises(SlotError, match="was removed") as caught:
        slots.make(module.manifest_bytes, module.manifest, lambda file: state_dir.staging / file.sha256)
    assert caught.value.key == "disk"
    assert list(state_dir.slots.iterdir()) == []


@pytest.mark.parametrize("spoiled", ["manifest.json", "model.onnx"])
def test_a_slot_that_was_changed_or_cut_short_counts_as_not_there(
    spoiled: str, slots: Slots, state_dir: StatePaths
) -> None:
    module = build()
    slot = install(slots, module, state_dir.staging)
    path = slot.path / spoiled
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    assert not slots.has(module.sha256)
    with pytest.raises(SlotError, match=slot.path.name):
        slots.open(module.sha256)


def test_pruning_keeps_what_it_is_told_and_finds_shared_files_only_there(slots: Slots, state_dir: StatePaths) -> None:
    first, second = build(version=1), build(version=2)
    for module in (first, second):
        install(slots, module, state_dir.staging)
    digest = first.manifest.file("model.onnx").sha256
    assert slots.find(digest) is not None
    slots.prune({second.sha256})
    assert not slots.has(first.sha256)
    assert slots.has(second.sha256)
    assert slots.find(digest) is None


def _link(path: Path) -> None:
    path.with_name("real").write_bytes(DATA)
    path.symlink_to("real")


def _second_name(path: Path) -> None:
    path.write_bytes(DATA)
    os.link(path, path.with_name("other"))


@pytest.mark.parametrize(
    ("spoil", "key"),
    [
        (_link, "not-regular"),
        (lambda path: path.mkdir(), "not-regular"),
        (os.mkfifo, "not-regular"),
        (lambda path: None, "not-regular"),
        (_second_name, "link-count"),
        (lambda path: path.write_bytes(DATA[:-1]), "length-or-hash"),
        (lambda path: path.write_bytes(DATA[:-1] + b"!"), "length-or-hash"),
    ],
)
def test_anything_but_the_signed_bytes_in_a_plain_file_is_refused(
    spoil: Callable[[Path], object], key: str, tmp_path: Path
) -> None:
    path = tmp_path / "staged"
    spoil(path)
    with pytest.raises(SlotError, match=r"model\.onnx") as caught:
        verify_file(path, ENTRY)
    assert caught.value.key == key


def test_exactly_the_signed_bytes_are_taken(tmp_path: Path) -> None:
    (tmp_path / "staged").write_bytes(DATA)
    verify_file(tmp_path / "staged", FileEntry("model.onnx", len(DATA), ENTRY.sha256, ENTRY.chunks))


def test_a_slots_file_with_a_second_name_elsewhere_is_not_loaded(slots: Slots, state_dir: StatePaths) -> None:
    """Row 40: whoever holds the other name could change the file after it was verified."""
    module = build()
    slot = install(slots, module, state_dir.staging)
    assert slots.has(module.sha256), "its staged name is our own"
    for path in state_dir.staging.iterdir():
        path.unlink()
    os.link(slot.path / "model.onnx", state_dir.root / "another-name")
    with pytest.raises(SlotError, match=r"model\.onnx: expected one name, got 2"):
        slots.open(module.sha256)
    (state_dir.root / "another-name").unlink()
    assert slots.has(module.sha256)


def test_a_slots_file_that_became_a_link_is_not_loaded(slots: Slots, state_dir: StatePaths) -> None:
    """Rows 33 and 40."""
    module = build()
    slot = install(slots, module, state_dir.staging)
    slot.path.chmod(0o755)
    (state_dir.root / "copy").write_bytes((slot.path / "model.onnx").read_bytes())
    (slot.path / "model.onnx").unlink()
    (slot.path / "model.onnx").symlink_to(state_dir.root / "copy")
    with pytest.raises(SlotError, match="expected a plain file"):
        slots.open(module.sha256)


def test_files_with_the_same_content_have_a_name_each(slots: Slots, state_dir: StatePaths) -> None:
    module = assemble("twins", 1, {"model.onnx": b"m", "a.bin": b"same", "b.bin": b"same"}, Runtime())
    slot = install(slots, module, state_dir.staging)
    assert (slot.path / "a.bin").stat().st_ino != (slot.path / "b.bin").stat().st_ino
    other = assemble("other", 1, {"model.onnx": b"m"}, Runtime())
    assert install(slots, other, state_dir.staging).path != slot.path
    assert slots.has(module.sha256)


def test_all_files_of_all_slots_are_known_the_newest_slot_first(slots: Slots, state_dir: StatePaths) -> None:
    older, newer = (assemble("iris", v, {"model.onnx": b"%d" % v, "labels.txt": b"l"}, Runtime()) for v in (1, 2))
    for age, module in ((2_000_000_000, newer), (1_000_000_000, older)):
        slot = install(slots, module, state_dir.staging)
        os.utime(slot.path / "manifest.json", (age, age))
    (state_dir.slots / ("0" * 32)).mkdir()
    (state_dir.slots / ("0" * 32) / "manifest.json").write_bytes(b"spoilt")
    found = [(path.read_bytes(), entry.sha256) for path, entry in slots.files() if entry.path == "model.onnx"]
    assert found == [(data, entry("model.onnx", data).sha256) for data in (b"2", b"1")]
    assert len(list(slots.files())) == 4
