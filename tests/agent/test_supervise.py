"""A unit that fails starts again by its policy, one that gives up leaves the others alone, and stopping has an end."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from agent.supervise import Restart, Supervisor, Unit, UnitState
from support.waiting import until

QUICK = Restart(first_s=0.001, ceiling_s=0.002)


def failing(times: int, log: list[int]) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        log.append(len(log))
        if len(log) <= times:
            raise LookupError(f"failure {len(log)}")
        await asyncio.Event().wait()

    return run


async def test_a_unit_that_fails_starts_again_until_it_runs() -> None:
    log: list[int] = []
    supervisor, stop = Supervisor([Unit("a", failing(3, log), QUICK)]), asyncio.Event()
    task = asyncio.create_task(supervisor.run(stop))
    await until(lambda: len(log) == 4, "the fourth start")
    status = supervisor.status()["a"]
    assert (status.state, status.failures, status.error) == (UnitState.RUNNING, 3, "LookupError: failure 3")
    stop.set()
    await task


async def test_a_unit_that_gives_up_is_recorded_and_its_peers_go_on(caplog: pytest.LogCaptureFixture) -> None:
    bad, good = list[int](), list[int]()
    units = [
        Unit("bad", failing(100, bad), Restart(first_s=0.001, ceiling_s=0.002, most=2)),
        Unit("good", failing(0, good), QUICK),
    ]
    supervisor, stop = Supervisor(units), asyncio.Event()
    task = asyncio.create_task(supervisor.run(stop))
    await until(lambda: supervisor.status()["bad"].state is UnitState.GAVE_UP, "the bad unit to give up")
    assert len(bad) == 3
    assert supervisor.status()["good"].state is UnitState.RUNNING
    assert "the others keep running: unit=bad" in caplog.text
    stop.set()
    await task


async def test_failures_long_ago_are_forgotten() -> None:
    log, now = list[int](), iter(float(1000 * number) for number in range(1000))
    unit = Unit("a", failing(10, log), Restart(first_s=0.001, ceiling_s=0.002, most=1, within_s=600))
    supervisor, stop = Supervisor([unit], clock=lambda: next(now)), asyncio.Event()
    task = asyncio.create_task(supervisor.run(stop))
    await until(lambda: len(log) == 11, "the eleventh start")
    stop.set()
    await task


async def test_a_unit_that_returns_has_ended() -> None:
    async def run() -> None:
        return

    supervisor, stop = Supervisor([Unit("short", run)]), asyncio.Event()
    task = asyncio.create_task(supervisor.run(stop))
    await until(lambda: supervisor.status()["short"].state is UnitState.ENDED, "the end")
    stop.set()
    await task


async def test_stopping_lets_units_clean_up() -> None:
    cleaned: list[str] = []

    async def run() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("up")

    supervisor, stop = Supervisor([Unit("a", run)]), asyncio.Event()
    task = asyncio.create_task(supervisor.run(stop))
    await until(lambda: supervisor.status()["a"].state is UnitState.RUNNING, "the start")
    stop.set()
    await task
    assert cleaned == ["up"]


async def test_a_unit_that_resists_does_not_hold_the_end_up(caplog: pytest.LogCaptureFixture) -> None:
    release = asyncio.Event()

    async def run() -> None:
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()

    supervisor, stop = Supervisor([Unit("stubborn", run)], drain_s=0.05), asyncio.Event()
    task = asyncio.create_task(supervisor.run(stop))
    await until(lambda: supervisor.status()["stubborn"].state is UnitState.RUNNING, "the start")
    stop.set()
    await task
    assert "did not end in time: task=unit-stubborn" in caplog.text
    release.set()
    await asyncio.gather(*(t for t in asyncio.all_tasks() if t.get_name() == "unit-stubborn"), return_exceptions=True)


async def test_cancelling_the_supervisor_cancels_its_units() -> None:
    log: list[int] = []
    supervisor = Supervisor([Unit("a", failing(0, log))])
    task = asyncio.create_task(supervisor.run(asyncio.Event()))
    await until(lambda: bool(log), "the start")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [task for task in asyncio.all_tasks() if task.get_name() == "unit-a"] == []


def test_the_pause_doubles_up_to_a_ceiling_with_full_jitter() -> None:
    policy = Restart(first_s=1.0, ceiling_s=10.0)
    assert [policy.pause_s(failures, 1.0) for failures in (1, 2, 3, 4, 5, 5000)] == [1, 2, 4, 8, 10, 10]
    assert policy.pause_s(3, 0.0) == 0.0


def test_two_units_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="names that differ"):
        Supervisor([Unit("a", failing(0, [])), Unit("a", failing(0, []))])
