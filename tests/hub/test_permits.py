"""What a device was found to be allowed holds for a moment, and not beyond a change."""

from __future__ import annotations

import pytest

from cloud_hub import permits
from cloud_hub.permits import PERMIT_S, Permits


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_a_permission_ends_by_itself() -> None:
    clock = Clock()
    kept = Permits(clock)
    kept.keep("cam-17", "blob")
    assert kept.holds("cam-17", "blob")
    clock.seconds = PERMIT_S
    assert not kept.holds("cam-17", "blob")


def test_a_permission_is_for_one_device_one_file_and_one_grant() -> None:
    kept = Permits(Clock())
    kept.keep("cam-17", "blob", "grant")
    assert kept.holds("cam-17", "blob", "grant")
    assert not kept.holds("cam-18", "blob", "grant")
    assert not kept.holds("cam-17", "other", "grant")
    assert not kept.holds("cam-17", "blob")


def test_a_change_ends_what_the_device_was_allowed_and_nothing_else() -> None:
    kept = Permits(Clock())
    kept.keep("cam-17", "blob")
    kept.keep("cam-18", "blob")
    kept.forget("cam-17")
    kept.forget("cam-19")
    assert not kept.holds("cam-17", "blob")
    assert kept.holds("cam-18", "blob")


def test_permissions_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permits, "MAX_PERMITS", 10)
    kept = Permits(Clock())
    for number in range(1000):
        kept.keep(f"cam-{number}", "blob")
    assert kept.holds("cam-999", "blob")
    assert sum(kept.holds(f"cam-{number}", "blob") for number in range(1000)) <= 10
