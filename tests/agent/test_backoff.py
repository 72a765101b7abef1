"""The wait before another try, also after very many."""

from __future__ import annotations

import asyncio

from agent.backoff import longest_s
from agent.config import UpdateLimits
from agent.update.bell import Bell


def test_the_wait_doubles_up_to_its_ceiling() -> None:
    assert [longest_s(1.0, 10.0, failures) for failures in (0, 1, 2, 3, 4, 5)] == [1, 1, 2, 4, 8, 10]


def test_what_never_gives_up_fails_for_years() -> None:
    assert longest_s(0.5, 60.0, 1_000_000) == 60.0


def test_a_hub_that_was_away_for_weeks_is_asked_again() -> None:
    limits = UpdateLimits()
    bell = Bell(limits, asyncio.Event())
    bell.retry_later(5000)
    assert limits.retry_ceiling_s / 2 <= bell.due_s <= limits.retry_ceiling_s
