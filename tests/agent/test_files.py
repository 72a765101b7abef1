"""What a power cut leaves of a small file that was being written."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.files import sweep, write_durably


def test_what_a_cut_left_of_a_write_is_swept_and_nothing_else(tmp_path: Path) -> None:
    write_durably(tmp_path / "floor.json", b"whole")
    (tmp_path / ".floor.json.0123abcd").write_bytes(b"ha")
    for name in (".floor.json.new", ".hidden", "floor.json.0123abcd"):
        (tmp_path / name).touch()
    sweep((tmp_path, tmp_path / "not there"))
    assert {path.name for path in tmp_path.iterdir()} == {
        "floor.json",
        ".floor.json.new",
        ".hidden",
        "floor.json.0123abcd",
    }


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_durably(tmp_path / "floor.json", b"old")

    def refuse(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="No space"):
        write_durably(tmp_path / "floor.json", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
