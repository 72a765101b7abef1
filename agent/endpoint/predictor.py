"""Runs the backend for the endpoint: in the event loop when the model is quick, else in a bounded pool of threads.

A hop to a thread costs more than a small model's whole run; a slow run in the loop would stall every other client.
So the choice is made per request size from what runs of that size took so far. Either way a run has a deadline: the
loop watches the pool, and a thread watches the loop. Called by `resources`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from agent.backends import Array, Backend, BackendError
from agent.endpoint.counters import Counters
from agent.endpoint.exchange import RETRY, Refused

log = logging.getLogger(__name__)

QUICK_US = 300.0
WATCH_S = 1.0
GRACE_S = 1.0  # from asking a run to stop to ending the worker: the answer goes out meanwhile
OVER_DEADLINE = 75  # the worker's exit status then
WARM_UP_RUNS = 60
WARM_UP_S = 0.05
_STEP = 1.05  # the running median moves by this factor per run
_SIZES = 48


def leave() -> None:
    """Ends the process, whatever its threads do. The agent starts another."""
    os._exit(OVER_DEADLINE)


class _Run:
    """One call in the pool: the thread it is in, 0 before and after."""

    thread = 0


class Predictor:
    """One backend. `typical_us(rows)` is a running median, kept per power of two of rows."""

    def __init__(
        self,
        backend: Backend,
        counters: Counters,
        max_queue: int,
        deadline_s: float = 60.0,
        end: Callable[[], None] = leave,
    ) -> None:
        """`end` ends the worker, for a run that is over its deadline and cannot be stopped."""
        self._backend = backend
        self._counters = counters
        self._capacity = max_queue + backend.parallel
        self._deadline_s = deadline_s
        self._end = end
        self._typical_us = [0.0] * _SIZES
        self._since = 0.0  # when the run in the loop began; 0 while there is none
        self._overdue = False
        self._turns = threading.Lock() if backend.parallel == 1 else threading.BoundedSemaphore(backend.parallel)
        self._here: dict[int, float] = {}  # when runs in threads of callers' own began, by thread
        self._watchdog: threading.Thread | None = None
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(backend.parallel, thread_name_prefix="predict")

    def typical_us(self, rows: int) -> float:
        """0 when no run of that size, nor a smaller one, has been seen."""
        size = min(rows.bit_length(), _SIZES - 1)
        if not self._typical_us[size]:
            known = next((i for i in range(size - 1, -1, -1) if self._typical_us[i]), None)
            return 0.0 if known is None else self._typical_us[known] * 2.0 ** (size - known)
        return self._typical_us[size]

    def is_quick(self, rows: int) -> bool:
        """Whether to run in the loop. Not while a backend for one thread is busy in the pool."""
        if self._counters.in_flight and self._backend.parallel == 1:
            return False
        return 0.0 < self.typical_us(rows) < QUICK_US

    def warm_up(self, inputs: Mapping[str, Array], rows: int) -> None:
        """Runs until it is known what this size takes: the first runs are slower. Raises BackendError."""
        limit = time.monotonic() + WARM_UP_S
        for _ in range(WARM_UP_RUNS):
            self.run(inputs, rows)
            if time.monotonic() > limit:
                return

    def run(self, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """Raises BackendError."""
        started = time.perf_counter_ns()
        outputs = self._backend.run(inputs)
        self._learn(rows, (time.perf_counter_ns() - started) / 1000)
        return outputs

    def run_in_loop(self, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """Raises BackendError, and Refused when the watchdog had to end it."""
        if self._watchdog is None:
            loop_thread = threading.get_ident()
            self._watchdog = threading.Thread(target=self._watch, args=(loop_thread,), name="deadline", daemon=True)
            self._watchdog.start()
        self._since = time.monotonic()
        try:
            return self.run(inputs, rows)
        except BackendError:
            if self._overdue:
                raise self._too_long() from None
            raise
        finally:
            self._since, self._overdue = 0.0, False

    def run_here(self, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """For a thread of the caller's own, never the loop's: waits for its turn there. Raises BackendError; Refused
        when it gets no turn, or takes too long.
        """
        if not self._turns.acquire(timeout=self._deadline_s):
            raise Refused(503, f"waited {self._deadline_s:g} s for its turn: try again", RETRY)
        thread = threading.get_ident()
        self._here[thread] = time.monotonic()
        try:
            return self.run(inputs, rows)
        except BackendError:
            if thread not in self._here:
                raise self._too_long() from None
            raise
        finally:
            self._here.pop(thread, None)
            self._turns.release()

    async def run_in_pool(self, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """Raises BackendError; Refused when too many requests wait already, and when it takes too long."""
        if self._counters.in_flight >= self._capacity:
            raise Refused(503, f"expected at most {self._capacity} requests at once, got more: try again", RETRY)
        self._counters.in_flight += 1
        run = _Run()
        future = self._pool.submit(self._run_noted, run, inputs, rows)
        try:
            async with asyncio.timeout(self._deadline_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise self._late(run, future) from None
        finally:
            self._counters.in_flight -= 1

    def _run_noted(self, run: _Run, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        run.thread = threading.get_ident()
        try:
            return self.run(inputs, rows)
        finally:
            run.thread = 0

    def _late(self, run: _Run, future: Future[dict[str, Array]]) -> Refused:
        """What to answer; a run that goes on is ended, and the worker with it where it does not end."""
        if future.cancelled() or not (run.thread or future.done()):
            return Refused(503, f"waited {self._deadline_s:g} s for its turn: try again", RETRY)
        if not future.done():
            if not self._backend.interrupt(run.thread):
                log.error("a prediction took longer than %g s and cannot be stopped: the worker ends", self._deadline_s)
            asyncio.get_running_loop().call_later(GRACE_S, self._end_if_running, future)
        return self._too_long()

    def _too_long(self) -> Refused:
        return Refused(504, f"expected an answer within {self._deadline_s:g} s, got none: the prediction was ended")

    def _watch(self, loop_thread: int) -> None:
        """A run in the loop that was quick until now and does not end leaves nobody but this thread to end it."""
        while not self._closed.wait(min(WATCH_S, self._deadline_s / 4)):
            self._watch_threads()
            took_s = time.monotonic() - self._since if self._since else 0.0
            if took_s > self._deadline_s + GRACE_S or (took_s > self._deadline_s and not self._interrupt(loop_thread)):
                log.error("a prediction took longer than %g s and cannot be stopped: the worker ends", self._deadline_s)
                self._end()
                return

    def _watch_threads(self) -> None:
        """Those that run predictions of their own. A run that was asked to stop is not in the list any more."""
        for thread, since in list(self._here.items()):
            if time.monotonic() - since <= self._deadline_s:
                continue
            self._here.pop(thread, None)
            if not self._backend.interrupt(thread):
                log.error("a prediction took longer than %g s and cannot be stopped: the worker ends", self._deadline_s)
                self._end()

    def _interrupt(self, thread: int) -> bool:
        if not self._overdue:
            self._overdue = True
            return self._backend.interrupt(thread)
        return True

    def _end_if_running(self, future: Future[dict[str, Array]]) -> None:
        if not future.done():
            self._end()

    def close(self) -> None:
        """Waits for nothing: a run that never ends must not keep the worker."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _learn(self, rows: int, took_us: float) -> None:
        size = min(rows.bit_length(), _SIZES - 1)
        seen = self._typical_us[size]
        if not seen:
            self._typical_us[size] = took_us
        else:
            self._typical_us[size] = seen * _STEP if took_us > seen else seen / _STEP
