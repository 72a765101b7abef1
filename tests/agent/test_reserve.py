"""A start on a disk that others have filled."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent import reserve


def say_free(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def statvfs(folder: Path) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 10**6, free // 4096, free // 4096, 9, 9, 9, 0, 255))

    monkeypatch.setattr("os.statvfs", statvfs)


def test_the_reserve_is_made_while_there_is_room_and_given_back_when_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = tmp_path / reserve.NAME
    reserve.keep(tmp_path)
    assert held.stat().st_size == reserve.RESERVE_BYTES
    reserve.give_back(tmp_path)
    assert held.exists(), "the disk has room"
    say_free(0, monkeypatch)
    reserve.give_back(tmp_path)
    assert not held.exists()
    reserve.keep(tmp_path)
    assert not held.exists(), "taken only where others do not need it"


def test_a_reserve_that_a_cut_has_left_in_part_is_made_whole(tmp_path: Path) -> None:
    (tmp_path / reserve.NAME).write_bytes(b"")
    reserve.keep(tmp_path)
    assert (tmp_path / reserve.NAME).stat().st_size == reserve.RESERVE_BYTES
