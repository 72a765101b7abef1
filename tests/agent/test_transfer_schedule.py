"""Allowed hours, the bandwidth cap, and which way to a file is the cheapest."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from agent.config import AgentConfig, FetchLimits, StatePaths
from agent.errors import ConfigError
from agent.transfer.plan import best_patch
from agent.transfer.schedule import Bucket, Gate, minutes_until, parse_hours
from modules.messages import PatchOffer, Way


@pytest.mark.parametrize(
    ("text", "span"),
    [("22:00-06:00", (1320, 360)), ("00:00-24:00", (0, 1440)), ("09:30-10:00", (570, 600))],
)
def test_hours_are_read_as_minutes_of_the_day(text: str, span: tuple[int, int]) -> None:
    assert parse_hours(text) == span


@pytest.mark.parametrize("text", ["", "22-06", "22:00", "24:00-06:00", "22:60-23:00", "22:00-22:00", "22:00 - 06:00"])
def test_hours_that_are_none_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="hours: expected"):
        parse_hours(text)


@pytest.mark.parametrize(
    ("minute", "wait"),
    [(1320, 0), (1439, 0), (0, 0), (359, 0), (360, 960), (1319, 1), (720, 600)],
)
def test_hours_across_midnight(minute: int, wait: int) -> None:
    assert minutes_until([parse_hours("22:00-06:00")], minute) == wait


def test_of_several_hours_the_next_one_counts() -> None:
    spans = [parse_hours("22:00-06:00"), parse_hours("12:00-13:00")]
    assert minutes_until(spans, 11 * 60) == 60
    assert minutes_until(spans, 12 * 60 + 30) == 0
    assert minutes_until([], 0) == 0


async def test_the_gate_waits_as_long_as_the_hours_say_and_looks_at_the_clock_again() -> None:
    now = datetime(2026, 11, 21, 21, 59, 40, tzinfo=UTC)
    waits: list[float] = []
    said: list[str] = []

    async def pause(seconds: float) -> None:
        nonlocal now
        waits.append(seconds)
        said.append(gate.waiting)
        now = (
            datetime(2026, 11, 21, 22, 0, tzinfo=UTC) if len(waits) > 1 else now
        )  # at first the clock is set back meanwhile

    gate = Gate(["22:00-06:00"], now=lambda: now, pause=pause)
    assert await gate.open()
    assert waits == [20.0, 20.0]
    assert set(said) == {"outside the allowed hours, waiting until 22:00"}
    assert gate.waiting == ""
    assert not await gate.open()


def test_the_cap_holds_on_average_and_bounds_what_comes_at_once() -> None:
    bucket, now, taken = Bucket(100_000), 1000.0, 0
    passed: list[float] = []
    while now < 1010.0:
        wait = bucket.wait_s(now)
        now += wait
        bucket.take(10_000)
        passed.append(now)
        taken += 10_000
    assert taken <= 100_000 * 10 + 0.25 * 100_000 + 2 * 10_000
    assert taken >= 100_000 * 9.5
    assert sum(at == 1000.0 for at in passed) <= 4  # a quarter of a second's worth, and the block that goes beyond


def test_without_a_cap_nothing_waits() -> None:
    bucket = Bucket(0)
    bucket.take(10**9)
    assert bucket.wait_s(1.0) == 0.0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hours": ["25:00-06:00"]}, "expected HH:MM-HH:MM"),
        ({"max_bytes_per_s": -1}, "expected 0 or more bytes"),
        ({"transports": []}, "at least one"),
        ({"transports": ["mqtt", "mqtt"]}, "each once"),
        ({"transports": ["carrier-pigeon"]}, "Invalid enum value"),
        ({"window_first": 3}, "unknown field"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises((msgspec.ValidationError, ValueError), match=words):
        msgspec.convert(fields, FetchLimits)


def test_a_file_of_an_older_agent_is_read_and_its_retired_settings_are_passed_over(
    agent_config: AgentConfig, state_dir: StatePaths
) -> None:
    text = agent_config.to_toml()
    state_dir.config.write_text(text.replace("[fetch]", "[fetch]\nwindow_first = 2\nwindow_most = 8\nslow_ms = 200.0"))
    assert AgentConfig.load(state_dir) == agent_config
    state_dir.config.write_text(text.replace("[fetch]", "[fetch]\nwindow_frist = 2"))
    with pytest.raises(ConfigError, match="window_frist"):
        AgentConfig.load(state_dir)


# The cheapest way


def way(*patches: tuple[str, str, int]) -> Way:
    return Way("f" * 64, patches=tuple(PatchOffer(*patch) for patch in patches))


MIB = 2**20


def test_the_smallest_patch_from_a_file_that_is_held_is_taken() -> None:
    offers = way(("old", "p1", 3 * MIB), ("older", "p2", 2 * MIB), ("foreign", "p3", MIB))
    best = best_patch(10 * MIB, offers, {"old", "older"}, ())
    assert best is not None
    assert best.sha256 == "p2"


@pytest.mark.parametrize(
    ("missing", "size", "taken"),
    [(10 * MIB, 7 * MIB, True), (10 * MIB, 8 * MIB, False), (10 * MIB, 20 * MIB, False), (60_000, 100, False)],
)
def test_a_patch_must_save_a_fifth_of_what_is_missing(missing: int, size: int, taken: bool) -> None:
    assert (best_patch(missing, way(("old", "p", size)), {"old"}, ()) is not None) == taken


def test_a_patch_that_has_failed_is_not_tried_again() -> None:
    assert best_patch(10 * MIB, way(("old", "p", MIB)), {"old"}, {"p"}) is None
    assert best_patch(10 * MIB, None, {"old"}, ()) is None
    assert best_patch(10 * MIB, way(), {"old"}, ()) is None
