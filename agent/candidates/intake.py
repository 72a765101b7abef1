"""The candidate's part: predicts what the serving worker gives it, records that as its own, answers where it was asked.

A Desk of the predictor, as the endpoint is. While more waits than it should, nothing is read: the serving worker then
finds no room, and counts what it leaves out. Worker side; made by `agent.sandbox.session`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping

from agent.backends import Array
from agent.candidates.agreement import Agreement
from agent.candidates.frames import Answered, Fed, FrameError, Frames, arrays, feds, framed, parts
from agent.candidates.hearing import Hearing
from agent.candidates.terms import Terms
from agent.endpoint.counters import Counters
from agent.endpoint.exchange import Refused, Request
from agent.endpoint.failures import as_refused
from agent.endpoint.jobs import Job
from agent.endpoint.oip import Call, Parser
from agent.endpoint.predictor import Predictor
from agent.endpoint.recorder import Prediction, Recorder, Together
from modules.errors import TensorError
from modules.manifest import Manifest

log = logging.getLogger(__name__)

MOST_WAITING = 64  # predictions that were read and not made yet


class _FedJob(Job):
    """One that was given to us; `theirs` is what the serving version answered."""

    __slots__ = ("fed", "source", "theirs")

    def __init__(self, call: Call, fed: Fed, source: Frames, theirs: dict[str, Array]) -> None:
        now = time.perf_counter_ns()
        due_ns = now + fed.left_us * 1000 if fed.left_us else 0
        super().__init__(Request(b"", b"", b"", None, True, now, due_ns, alone=False, event_s=fed.event_s), call)
        self.fed, self.source, self.theirs = fed, source, theirs


class Intake:
    """`met` hears of the version that serves beside us. `counts` is what happened, by word."""

    def __init__(
        self,
        manifest: Manifest,
        tap: int,
        parser: Parser,
        predictor: Predictor,
        counters: Counters,
        recorder: Recorder,
        scores: str,
        met: Callable[[Terms], None],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._manifest = manifest
        self._parser = parser
        self._predictor = predictor
        self._counters = counters
        self._recorder = recorder
        self._agreement = Agreement(manifest, scores)
        self._met = met
        self._hearing = Hearing(tap, self._heard)
        self._sources: set[Frames] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._deaf = False
        self._idle = asyncio.Event()
        predictor.serve(self)

    def start(self) -> None:
        self._hearing.start()

    async def drain(self, deadline_s: float) -> int:
        """Reads no more, answers what it has, and leaves. How many were not answered."""
        self._hearing.stop()
        self._deaf = True
        for source in self._sources:
            _listen(source, False)
        if self._waiting:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline_s):
                    await self._idle.wait()
        for source in list(self._sources):
            source.close()
        for task in self._opening:
            task.cancel()
        if self._opening:
            await asyncio.wait(self._opening, timeout=1.0)
        return self._waiting

    # Who feeds us

    def _heard(self, terms: Terms, pipe: socket.socket | None) -> None:
        self._met(terms)
        if pipe is not None:
            task = asyncio.create_task(self._open(pipe), name="candidate-intake")
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, pipe: socket.socket) -> None:
        source = Frames(lambda body: self._take(source, body), lambda: self._sources.discard(source))
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: source, pipe)
        except OSError as error:
            pipe.close()
            log.warning("the version that serves is not there any more: %s", error)
            return
        self._sources.add(source)

    def _take(self, source: Frames, body: bytes) -> None:
        """Raises FrameError and what decoding raises: then that worker is left."""
        fed = feds.decode(body)
        try:
            inputs = arrays(self._manifest.inputs, fed.inputs)
            theirs = arrays(self._manifest.outputs, fed.outputs)
        except TensorError as error:
            raise FrameError(str(error)) from error
        if len(inputs) < len(self._manifest.inputs):
            raise FrameError(f"expected {len(self._manifest.inputs)} inputs, got {len(inputs)}")
        self._waiting += 1
        if self._waiting == MOST_WAITING:
            self._listen_all(False)
        self._predictor.submit(_FedJob(Call(self._parser, fed.id, (), inputs), fed, source, theirs))

    def _listen_all(self, listens: bool) -> None:
        for source in self._sources:
            _listen(source, listens and not self._deaf)

    # Desk

    def inputs(self, jobs: list[Job]) -> dict[str, Array]:
        return jobs[0].call.inputs if len(jobs) == 1 else self._parser.join([job.call for job in jobs])

    def answered(self, jobs: list[Job], inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        start = 0
        for job in jobs:
            stop = start + job.rows
            ours = outputs if len(jobs) == 1 else {name: array[start:stop] for name, array in outputs.items()}
            self._settle(job, ours)
            start = stop
        ids, rows, events = ([job.call.id for job in jobs], [job.rows for job in jobs], [job.event_s for job in jobs])
        if len(jobs) == 1:
            self._recorder.observe(Prediction(ids[0], rows[0], inputs, outputs, events[0]))
        else:
            self._recorder.observe_together(Together(ids, rows, inputs, outputs, events if any(events) else ()))

    def failed(self, job: Job, error: Exception) -> None:
        """What found no turn, or no time, is no fault of the module's where nobody waited for it."""
        refused = as_refused(error)
        assert isinstance(job, _FedJob)  # noqa: S101 - only `_take` makes jobs
        if job.over:
            return
        self._leave(job)
        if job.fed.number:
            self._counters.answered(refused.status)
            self._send(job.source, Answered(job.fed.number, [], _WHY.get(refused.status, "failed")))
        elif _is_delay(refused):
            self.counts["missed-late"] += 1
        else:
            self._counters.answered(refused.status)

    def _settle(self, job: Job, ours: Mapping[str, Array]) -> None:
        assert isinstance(job, _FedJob)  # noqa: S101
        if job.over:
            return
        self._leave(job)
        took_us = (time.perf_counter_ns() - job.request.arrived_ns) // 1000
        self._recorder.count(job.rows, took_us)
        if job.fed.number:
            self._send(job.source, Answered(job.fed.number, parts(self._manifest.outputs, ours)))
        elif job.theirs:
            agreed = self._agreement.rows(job.rows, ours, job.theirs)
            if agreed is not None:
                self.counts["compared"] += job.rows
                self.counts["agreed"] += agreed

    def _leave(self, job: Job) -> None:
        job.over = True
        self._waiting -= 1
        if not self._waiting:
            self._idle.set()
        if self._waiting == MOST_WAITING // 2:
            self._listen_all(True)

    def _send(self, source: Frames, answered: Answered) -> None:
        try:
            source.send(framed(answered))
        except FrameError:
            source.send(framed(Answered(answered.number, [], "large")))


_WHY = {503: "busy", 504: "late"}


def _is_delay(refused: Refused) -> bool:
    return refused.status in _WHY


def _listen(source: Frames, listens: bool) -> None:
    transport = source.transport
    if transport is not None and not transport.is_closing():
        (transport.resume_reading if listens else transport.pause_reading)()
