"""Waiting with an end: nothing goes on afterwards, and only time that counts is counted."""

from __future__ import annotations

import asyncio

import pytest

from agent.update.patience import LOOK_S, finished, run_out


class Work:
    """Runs until released; knows whether it was cancelled."""

    def __init__(self, error: Exception | None = None) -> None:
        self.release, self.error, self.cancelled = asyncio.Event(), error, False

    async def run(self) -> None:
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error


async def test_work_that_ends_first_is_finished_and_the_rest_is_cancelled() -> None:
    work, end = Work(), Work()
    work.release.set()
    assert await finished(work.run(), end.run())
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_work_that_becomes_needless_is_cancelled_and_waited_for() -> None:
    work, end = Work(), Work()
    waiting = asyncio.create_task(finished(work.run(), end.run()))
    await asyncio.sleep(0)
    end.release.set()
    assert not await waiting
    assert work.cancelled


async def test_what_work_raises_comes_out_and_so_does_a_fault_of_what_would_end_it() -> None:
    work, end = Work(OSError("disk")), Work(ValueError("bug"))
    work.release.set()
    with pytest.raises(OSError, match="disk"):
        await finished(work.run(), end.run())
    end.release.set()
    with pytest.raises(ValueError, match="bug"):
        await finished(Work().run(), end.run())


async def test_cancelling_from_outside_leaves_nothing_behind() -> None:
    work, end = Work(), Work()
    waiting = asyncio.create_task(finished(work.run(), end.run()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert work.cancelled
    assert end.cancelled


class Clock:
    def __init__(self, counting: list[bool]) -> None:
        self.now, self.counting = 0.0, counting

    async def pause(self, seconds: float) -> None:
        self.now += seconds

    def counts(self) -> bool:
        return self.counting.pop(0) if self.counting else True


@pytest.mark.parametrize("idle", [0, 1, 100])
async def test_a_deadline_passes_only_in_time_that_counts(idle: int) -> None:
    clock = Clock([False] * idle)
    await run_out(12.0, clock.counts, clock.pause, lambda: clock.now)
    assert clock.now == pytest.approx(12.0 + idle * LOOK_S)
