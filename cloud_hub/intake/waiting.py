"""Reports that come while others are being stored share the next transaction, and are told to rollouts together.

Whoever waits first stores what waits, its own and others'. Each caller learns what became of its own report only. No
device sends a report again because the database was away, so they wait for it here.
Called by `link`, of whose workers each waits here with one report; what a report means is not known here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cloud_hub.errors import Unavailable
from cloud_hub.intake.checking import Arrived
from cloud_hub.intake.storing import Outcome
from modules.messages import DeviceReport, SignedReport

MAX_GROUP: Final = 256  # reports: about 20 ms of checks in a thread, and as much of writing
# Between two groups, unless so many wait: one transaction for a few reports costs as much as one for many. At 167
# reports a second this halves what they cost; a report that comes alone is stored at once.
GATHER_S: Final = 0.05
ENOUGH: Final = 64
AGAIN_S: Final = 1.0
PATIENCE_S: Final = 120.0  # how long a report waits for the database; the device says more by then
Take = Callable[[Sequence[Arrived]], Awaitable[Sequence[Outcome]]]
Heard = Callable[[Sequence[tuple[str, DeviceReport]]], Awaitable[object]]
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job:
    device: str
    signed: SignedReport
    since: float = field(default_factory=time.monotonic)
    done: bool = False
    abandoned: bool = False  # nobody waits for it any more
    error: Exception | None = None

    def end(self, error: Exception | None) -> None:
        if not self.done:
            self.done, self.error = True, error


class Intake:
    """`take_all` stores a group; `on_reports` is called after its commit with those that were taken."""

    def __init__(self, take_all: Take, on_reports: Heard) -> None:
        self._take_all = take_all
        self._on_reports = on_reports
        self._waiting: deque[_Job] = deque()
        self._turn = asyncio.Lock()
        self._ended = float("-inf")  # the last group
        self.taken = 0  # reports that counted, since the start

    async def take(self, device: str, signed: SignedReport) -> None:
        """Returns when the report is stored and was told. Raises HubError saying why it counts for nothing."""
        job = _Job(device, signed)
        self._waiting.append(job)
        try:
            while not job.done:
                async with self._turn:
                    if not job.done:
                        await self._next()
        finally:
            job.abandoned = not job.done
            if job in self._waiting:
                self._waiting.remove(job)
        if job.error is not None:
            raise job.error

    async def _next(self) -> None:
        if len(self._waiting) < ENOUGH and (pause_s := self._ended + GATHER_S - time.monotonic()) > 0:
            await asyncio.sleep(pause_s)
        jobs = [self._waiting.popleft() for _ in range(min(MAX_GROUP, len(self._waiting)))]
        try:
            await self._store(jobs)
        except Unavailable as error:
            await self._wait(jobs, error)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].end(error)
            # One of them is at fault, and must not keep the others from being stored. Counters make it safe.
            for job in jobs if len(jobs) > 1 else ():
                try:
                    await self._store([job])
                except Exception as its_error:
                    job.end(its_error)
        finally:
            self._ended = time.monotonic()
            # Of a cancellation, or because the database is away: the next in turn stores them.
            self._waiting.extendleft(reversed([job for job in jobs if not job.done and not job.abandoned]))

    async def _wait(self, jobs: Sequence[_Job], error: Unavailable) -> None:
        now = time.monotonic()
        for job in jobs:
            if now - job.since > PATIENCE_S:
                job.end(error)
        _log.warning("reports wait for the database: %s", error.message, extra={"reports": len(self._waiting)})
        await asyncio.sleep(AGAIN_S)

    async def _store(self, jobs: Sequence[_Job]) -> None:
        outcomes = await self._take_all([(job.device, job.signed) for job in jobs])
        taken: list[tuple[str, DeviceReport]] = []
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, DeviceReport):
                taken.append((job.device, outcome))
            else:
                job.end(outcome)
        self.taken += len(taken)
        failure = await self._tell(taken)
        for job in jobs:
            job.end(failure)

    async def _tell(self, taken: Sequence[tuple[str, DeviceReport]]) -> Exception | None:
        """Why it failed. They are stored, so storing them again would tell nobody: who is told makes up for it."""
        try:
            if taken:
                await self._on_reports(taken)
        except Exception as error:
            _log.warning("reports were stored and could not be acted on yet", exc_info=True)
            return error
        return None
