"""Requests to predict on their way: what the endpoint gives the predictor, and gets back. No policy here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Protocol

from agent.backends import Array
from agent.endpoint.exchange import Later, Reply, Request
from agent.endpoint.oip import Call


class Job(Later):
    """One request to predict. `single`: it is run by itself; `over`: it has been answered; `thread` is where it runs.

    `due_ns` is when its client stops waiting (0: never), on the clock of `perf_counter_ns`, as the other times are.
    """

    __slots__ = ("call", "due_ns", "event_s", "over", "rows", "single", "started_ns", "thread", "timer")

    def __init__(self, request: Request, call: Call) -> None:
        super().__init__(request)
        self.call = call
        self.rows = call.rows
        self.event_s = call.event_s or request.event_s
        self.due_ns = request.due_ns
        if call.timeout_us:
            due_ns = request.arrived_ns + call.timeout_us * 1000
            self.due_ns = min(self.due_ns, due_ns) if self.due_ns else due_ns
        self.single = not call.even
        self.over = False
        self.started_ns = 0
        self.thread: list[int] = []  # shared by those that run together; empty while it waits
        self.timer: asyncio.TimerHandle | None = None

    def tell(self, reply: Reply) -> None:
        """Only the first one counts."""
        if not self.over:
            self.over = True
            super().tell(reply)


class Desk(Protocol):
    """Who gave the jobs: makes their arrays, and answers them. `inputs` may be called on any thread."""

    def inputs(self, jobs: list[Job]) -> dict[str, Array]:
        """One below the other. Raises Refused."""

    def answered(self, jobs: list[Job], inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """All of one run, those included that are over."""

    def failed(self, job: Job, error: Exception) -> None: ...


def portion(jobs: Iterable[Job], most_rows: int, most: int) -> list[Job]:
    """The first, and those right behind it that can be run with it."""
    rows = 0
    some: list[Job] = []
    for job in jobs:
        rows += job.rows
        fits = rows <= most_rows and len(some) < most and not job.single
        if some and not (fits and job.call.tails == some[0].call.tails):
            break
        some.append(job)
        if job.single:
            break
    return some
