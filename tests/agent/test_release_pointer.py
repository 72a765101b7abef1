"""Which agent starts next: told by one small file, whatever happened before."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.release.pointer import (
    CURRENT_BOOTS,
    FILE,
    TRIAL_BOOTS,
    Pointer,
    load,
    next_start,
    save,
    settled,
    tried,
)

OLD, NEW = "a" * 32, "b" * 32


def whole(release: str) -> bool:
    return True


def damaged(release: str) -> bool:
    return False


def test_a_device_without_the_file_runs_the_installed_agent(tmp_path: Path) -> None:
    assert next_start(load(tmp_path), damaged) == (Pointer(), "")


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    pointer = tried(settled(Pointer(), OLD), NEW, 90, online=True)
    save(tmp_path, pointer)
    assert load(tmp_path) == pointer


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"current": "../../../bin"}',
        b'{"current": 7}',
        b'{"trial": "ABC"}',
        b'{"boots": -1}',
        b'{"boots": "2"}',
        b'{"trial_s": null}',
        b'{"failed": 3}',
        b'{"online": "yes"}',
        b"[" * 100_000,
    ],
)
def test_a_file_that_nobody_can_read_means_the_installed_agent(tmp_path: Path, text: bytes) -> None:
    (tmp_path / FILE).write_bytes(text)
    assert load(tmp_path) == Pointer()


def test_a_trial_starts_counted_and_is_given_up_after_its_last_start() -> None:
    pointer = tried(settled(Pointer(), OLD), NEW, 90, online=False)
    for start in range(1, TRIAL_BOOTS + 1):
        pointer, release = next_start(pointer, whole)
        assert (release, pointer.boots, pointer.trial) == (NEW, start, NEW)
    pointer, release = next_start(pointer, whole)
    assert (release, pointer.current, pointer.trial, pointer.failed) == (OLD, OLD, "", NEW)
    assert f"started {TRIAL_BOOTS} times" in pointer.why


def test_a_trial_whose_files_are_not_whole_is_never_started() -> None:
    pointer, release = next_start(tried(Pointer(), NEW, 90, online=False), damaged)
    assert (release, pointer.trial, pointer.failed, pointer.why) == ("", "", NEW, "its files are not whole")


def test_a_release_that_cannot_stay_up_makes_way_for_the_installed_agent() -> None:
    pointer = settled(Pointer(), OLD)
    for _ in range(CURRENT_BOOTS):
        pointer, release = next_start(pointer, whole)
        assert release == OLD
    assert next_start(pointer, whole) == (pointer, "")
    assert pointer.current == OLD  # what was committed stays known, for the report


def test_a_release_whose_folder_is_damaged_makes_way_too() -> None:
    assert next_start(settled(Pointer(), OLD), damaged)[1] == ""


@given(st.lists(st.sampled_from(["start", "steady", "try", "settle-new", "settle-old"]), max_size=40), st.booleans())
def test_no_sequence_of_starts_leaves_a_device_with_a_trial_that_starts_for_ever(
    events: list[str], is_complete: bool
) -> None:
    pointer, starts = Pointer(), 0
    for event in events:
        if event == "start":
            pointer, release = next_start(pointer, lambda release: is_complete)
            starts = starts + 1 if release and release == pointer.trial else 0
            assert starts <= TRIAL_BOOTS
            assert not release or is_complete
        elif event == "try":
            pointer, starts = tried(pointer, NEW, 60, online=True), 0
        elif event.startswith("settle"):
            pointer, starts = settled(pointer, NEW if event == "settle-new" else OLD), 0
        assert msgspec.json.decode(msgspec.json.encode(pointer), type=Pointer) == pointer
