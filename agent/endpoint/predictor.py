"""Runs the backend for the endpoint: in the event loop when the model is quick, else in a bounded pool of threads.

A hop to a thread costs more than a small model's whole run; a slow run in the loop would stall every other client.
So the choice is made per request size from what runs of that size took so far. Requests that came in one turn of the
loop, or wait for the pool, are run together where that is proven to change no answer. Either way a run has a deadline,
see `turns`. Called by `resources`, and by threads of callers' own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from agent.backends import Array, Backend, BackendError
from agent.endpoint.batches import cut, differs
from agent.endpoint.counters import Counters
from agent.endpoint.exchange import RETRY, Refused
from agent.endpoint.jobs import Desk, Job, portion
from agent.endpoint.pace import Pace
from agent.endpoint.turns import Turns

log = logging.getLogger(__name__)

OVER_DEADLINE = 75  # the worker's exit status when a run cannot be ended
WARM_UP_RUNS = 60
WARM_UP_S = 0.05

Run = Callable[[Mapping[str, Array]], dict[str, Array]]


def leave() -> None:
    """Ends the process, whatever its threads do. The agent starts another."""
    os._exit(OVER_DEADLINE)


class Predictor:
    """One backend. `batch_rows` is how many rows requests may have that are run together (1: never); nothing is run
    together before `prove` was called.
    """

    def __init__(
        self,
        backend: Backend,
        counters: Counters,
        max_queue: int,
        deadline_s: float = 60.0,
        end: Callable[[], None] = leave,
        batch_rows: int = 1,
    ) -> None:
        """`end` ends the worker, for a run that is over its deadline and cannot be stopped."""
        self._backend = backend
        self._counters = counters
        self._parallel = backend.parallel
        self._capacity = max_queue + backend.parallel
        self._deadline_s = deadline_s
        self._batch_rows = batch_rows
        self._proven = False
        self._pace = Pace()
        self._turns = Turns(backend, deadline_s, end)
        self._pool = ThreadPoolExecutor(backend.parallel, thread_name_prefix="predict")
        self._desk: Desk | None = None
        self._tick: list[Job] = []  # of this turn of the loop
        self._waiting: deque[Job] = deque()  # for the pool
        self._running = 0  # in the pool
        self.held = False  # for cooler times: everybody is told to come back later

    @property
    def typical_us(self) -> Callable[[int], float]:
        return self._pace.typical_us

    def is_quick(self, rows: int) -> bool:
        """Whether a run of that size may be made in the loop."""
        return self._pace.is_quick(rows)

    @property
    def joins(self) -> bool:
        """Whether requests may be run together: proven, and wanted."""
        return self._proven and self._batch_rows > 1

    def serve(self, desk: Desk) -> None:
        self._desk = desk

    # Before serving

    def warm_up(self, inputs: Mapping[str, Array], rows: int) -> None:
        """Runs until it is known what this size takes: the first runs are slower. Raises BackendError."""
        limit = time.monotonic() + WARM_UP_S
        for _ in range(WARM_UP_RUNS):
            self._timed(inputs, rows)
            if time.monotonic() > limit:
                return

    def prove(self, inputs: Mapping[str, Array], rows: int, rtol: float, atol: float) -> None:
        """Whether rows are independent: these give the same together as one by one. Where they do not, requests are
        never run together. Raises BackendError.
        """
        if self._batch_rows <= 1 or rows < 2:
            return
        whole = self._backend.run(inputs)
        parts = [self._backend.run(cut(inputs, row, row + 1)) for row in range(min(rows, 8))]
        why = next((why for row, one in enumerate(parts) if (why := differs(whole, rows, row, one, rtol, atol))), "")
        self._proven = not why
        if why:
            log.warning("requests are not run together: %s", why)
            self._batch_rows = 1

    # For the endpoint, on the loop's thread

    def submit(self, job: Job) -> None:
        """Answers it at the desk, at once or later."""
        if self.held:
            assert self._desk is not None  # noqa: S101
            self._desk.failed(job, _held())
            return
        if not self._proven or job.single or (job.request.alone and not self._tick):
            self._run_or_queue([job])
            return
        if not self._tick:
            asyncio.get_running_loop().call_soon(self._run_tick)
        self._tick.append(job)

    def _run_tick(self) -> None:
        """What has queued in this turn of the loop, in portions that stay quick."""
        jobs, self._tick = self._tick, []
        most = self._pace.quick_rows(self._batch_rows)
        while jobs:
            some = portion(jobs, most, len(jobs))
            del jobs[: len(some)]
            self._run_or_queue(some)

    def _run_or_queue(self, jobs: list[Job]) -> None:
        rows = jobs[0].rows if len(jobs) == 1 else sum(job.rows for job in jobs)
        if self._pace.is_quick(rows) and self._turns.begin():
            self._run_in_loop(jobs, rows)
        else:
            for job in jobs:
                self._queue(job)

    def _run_in_loop(self, jobs: list[Job], rows: int) -> None:
        problem: Exception | None = None
        inputs: dict[str, Array] = {}
        outputs: dict[str, Array] = {}
        try:
            self._begin(jobs)
            inputs = self._desk_inputs(jobs)
            outputs = self._timed(inputs, rows)
        except Exception as error:
            problem = error
        stopped = self._turns.end()
        if problem is None:
            self._answered(jobs, inputs, outputs)
        else:
            self._failed(jobs, problem, stopped)

    def _begin(self, jobs: list[Job]) -> None:
        """Raises Refused when one of them is too late."""
        now = time.perf_counter_ns()
        for job in jobs:
            job.started_ns = now
            if job.due_ns and now > job.due_ns:
                raise Refused(504, "the client's deadline was over before the request's turn: it was not run")

    def _desk_inputs(self, jobs: list[Job]) -> dict[str, Array]:
        assert self._desk is not None  # noqa: S101 - the composition root calls `serve`
        return self._desk.inputs(jobs)

    def _answered(self, jobs: list[Job], inputs: Mapping[str, Array], outputs: dict[str, Array]) -> None:
        """Raises nothing: what does not come back in rows is run one by one."""
        assert self._desk is not None  # noqa: S101
        rows = sum(job.rows for job in jobs)
        if len(jobs) > 1 and any(array.shape[:1] != (rows,) for array in outputs.values()):
            log.warning("requests are not run together any more: %d rows gave another count", rows)
            self._proven = False
            self._failed(jobs, BackendError("run-failed", "rows"), stopped=False)
            return
        self._counters.ran(rows, (time.perf_counter_ns() - jobs[0].started_ns) // 1000)
        for job in jobs:
            self._leave(job)
        self._desk.answered(jobs, inputs, outputs)

    def _failed(self, jobs: list[Job], error: Exception, stopped: bool) -> None:
        """Of those that ran together, each gets its own try: one of them is to blame."""
        assert self._desk is not None  # noqa: S101
        if len(jobs) == 1:
            job = jobs[0]
            self._leave(job)
            if not job.over:
                self._desk.failed(job, self._too_long() if stopped and isinstance(error, BackendError) else error)
            return
        for job in jobs:
            job.single, job.thread, job.started_ns = True, [], 0
            if job.over:
                continue
            if job.timer is not None:
                self._waiting.append(job)
            elif stopped:
                self._queue(job)
            else:
                self._run_or_queue([job])
        self._dispatch()

    # In the pool

    def _queue(self, job: Job) -> None:
        assert self._desk is not None  # noqa: S101
        if self._counters.in_flight >= self._capacity:
            text = f"expected at most {self._capacity} requests at once, got more: try again"
            self._desk.failed(job, Refused(503, text, RETRY))
            return
        self._counters.in_flight += 1
        wait_s = self._deadline_s
        if job.due_ns:
            wait_s = min(wait_s, max(0.0, (job.due_ns - time.perf_counter_ns()) / 1e9))
        job.timer = asyncio.get_running_loop().call_later(wait_s, self._late, job)
        self._waiting.append(job)
        self._dispatch()

    def _dispatch(self) -> None:
        """Gives the pool what it has room for, shared out evenly."""
        loop = asyncio.get_running_loop()
        while self._waiting and self._running < self._parallel:
            share = -(-len(self._waiting) // (self._parallel - self._running))
            jobs = portion(self._waiting, self._batch_rows if self._proven else 0, share)
            jobs = jobs if self._pace.pays([job.rows for job in jobs]) else jobs[:1]
            thread: list[int] = []
            for job in jobs:
                self._waiting.popleft()
                job.thread = thread
            self._running += 1
            future = self._pool.submit(self._run_there, jobs, thread)
            future.add_done_callback(lambda done, jobs=jobs: _tell(loop, self._ran, jobs, done))  # type: ignore[misc]

    def _run_there(
        self, jobs: list[Job], thread: list[int]
    ) -> tuple[Exception | None, bool, dict[str, Array], dict[str, Array]]:
        """What went wrong, whether it was asked to stop, inputs and outputs."""
        if not self._turns.begin(self._deadline_s):
            return self._no_turn(), False, {}, {}
        if all(job.over for job in jobs):  # while this thread waited for its turn
            return self._no_turn(), self._turns.end(), {}, {}
        thread.append(threading.get_ident())
        problem: Exception | None = None
        inputs: dict[str, Array] = {}
        outputs: dict[str, Array] = {}
        try:
            self._begin(jobs)
            inputs = self._desk_inputs(jobs)
            outputs = self._timed(inputs, sum(job.rows for job in jobs))
        except Exception as error:
            problem = error
        thread.clear()
        return problem, self._turns.end(), inputs, outputs

    def _ran(
        self, jobs: list[Job], done: Future[tuple[Exception | None, bool, dict[str, Array], dict[str, Array]]]
    ) -> None:
        self._running -= 1
        if done.cancelled():
            return
        problem, stopped, inputs, outputs = done.result()
        if problem is None:
            self._answered(jobs, inputs, outputs)
        else:
            self._failed(jobs, problem, stopped)
        self._dispatch()

    def _late(self, job: Job) -> None:
        """Its client, or its module, waits no longer. A run for others goes on, but not over the module's deadline."""
        assert self._desk is not None  # noqa: S101
        ours = not job.due_ns or time.perf_counter_ns() < job.due_ns
        for thread in [*job.thread] if ours else ():
            self._turns.stop(thread)
        if job in self._waiting:
            self._waiting.remove(job)
        self._leave(job)
        if ours:
            self._desk.failed(job, self._too_long() if job.started_ns else self._no_turn())
        else:
            self._desk.failed(job, Refused(504, "the client's deadline was over before the answer was there"))

    def _leave(self, job: Job) -> None:
        if job.timer is not None:
            job.timer.cancel()
            job.timer = None
            self._counters.in_flight -= 1

    # In threads of callers' own

    def run_here(self, inputs: Mapping[str, Array], rows: int, run: Run | None = None) -> dict[str, Array]:
        """For a thread of the caller's own, never the loop's: waits for its turn there. `run` in place of the
        backend's own is for a bound one. Raises BackendError; Refused when it gets no turn, or takes too long.
        """
        if self.held:
            raise _held()
        if not self._turns.begin(self._deadline_s):
            raise self._no_turn()
        started = time.perf_counter_ns()
        try:
            outputs = (run or self._backend.run)(inputs)
        except BaseException as error:
            if self._turns.end() and isinstance(error, BackendError):
                raise self._too_long() from None
            raise
        self._pace.learn(rows, (time.perf_counter_ns() - started) / 1000)
        self._turns.end()
        return outputs

    def _timed(self, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """Raises BackendError."""
        started = time.perf_counter_ns()
        outputs = self._backend.run(inputs)
        self._pace.learn(rows, (time.perf_counter_ns() - started) / 1000)
        return outputs

    def _no_turn(self) -> Refused:
        return Refused(503, f"waited {self._deadline_s:g} s for its turn: try again", RETRY)

    def _too_long(self) -> Refused:
        return Refused(504, f"expected an answer within {self._deadline_s:g} s, got none: the prediction was ended")

    def close(self) -> None:
        """Waits for nothing: a run that never ends must not keep the worker."""
        self._turns.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _held() -> Refused:
    return Refused(503, "this device is too hot for this module: try again later", b"Retry-After: 30\r\n")


def _tell(loop: asyncio.AbstractEventLoop, hear: Callable[..., None], *what: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(hear, *what)
